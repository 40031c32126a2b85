"""What ridge needs of arrays that NumPy, on the CPU, and torch, on a GPU, do not do alike.

Everything else ridge is made of has the same name and arguments in both, so that it is written once
in terms of the ``namespace`` of what it is given.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import linalg

Array = Any
"""An ndarray, or a tensor on any device."""

Device = str | None
"""As torch calls it, such as ``cuda``; None is NumPy."""

SMALLEST_PENALTY = 1e-5
"""In mean eigenvalues: from here on eigenpairs found in float32 serve as those of float64 do."""

NEARLY_NULL = 1e-9
"""As a share of the largest eigenvalue: below, float32 tells no small direction from a null one."""


def namespace(array: Array) -> Any:
    """Return ``torch`` or ``numpy``, whichever an array is of."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(array, torch.Tensor) else np


def device_of(array: Array) -> Device:
    """Return where a tensor is; None for an ndarray."""
    return None if namespace(array) is np else str(array.device)


def place(array: Array, *, device: Device) -> Array:
    """Return ``array`` on a device, as it is if it is there already."""
    if device is None:
        return host(array)
    import torch

    if not isinstance(array, torch.Tensor):
        with warnings.catch_warnings():
            # Arrays of Ray's object store are read-only; nothing here writes to what it is given.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            array = torch.from_numpy(np.ascontiguousarray(array))
    return array.to(device)


def host(array: Array) -> Array:
    """Return a tensor as an ndarray, and anything else as it is."""
    if namespace(array) is np:
        return array
    import torch

    if array.device.type == "cpu":
        return array.numpy()
    kept = torch.empty(array.shape, dtype=array.dtype)
    kept.zero_()  # touches the pages of memory while the GPU is still computing what goes there
    return kept.copy_(array).numpy()


@contextlib.contextmanager
def full_precision(device: Device) -> Iterator[None]:
    """Multiply float32 as float32 on a GPU, whatever a training in this process has set."""
    if device is None:
        yield
        return
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def row_squares(rows: Array) -> Array:
    """Return the sum of squares of each row, in float64."""
    if namespace(rows) is np:
        return np.einsum("iv,iv->i", rows, rows, dtype=np.float64)
    import torch

    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64) ** 2


def column_squares(rows: Array) -> Array:
    """Return the sum of squares of each column of a few rows."""
    if namespace(rows) is np:
        return np.einsum("it,it->t", rows, rows)
    import torch

    return torch.linalg.vector_norm(rows, dim=0, dtype=torch.float64) ** 2


def inverse(matrix: Array) -> Array:
    """Return the inverse of a positive definite float64 matrix, which may be overwritten."""
    if namespace(matrix) is np:
        return linalg.inv(matrix, overwrite_a=True, check_finite=False, assume_a="pos")
    import torch

    return torch.cholesky_inverse(torch.linalg.cholesky(matrix))


def eigenpairs(matrix: Array, *, without: Array | None = None) -> tuple[Array, Array]:
    """Return the eigenvalues and eigenvectors of a float64 matrix, ascending.

    Which of them are null can be told from the eigenvalues, unless one is left ``without``.

    Parameters
    ----------
    matrix : array, shape (n, n)
        Symmetric and positive semi-definite; may be overwritten.
    without : array, shape (n,), optional
        A vector of length 1 and eigenvalue 0 that is left out of the result.
    """
    if namespace(matrix) is not np:
        values, basis = _eigenpairs_from_float32(matrix, without=without)
        if without is None and values[0] <= NEARLY_NULL * values[-1]:
            import torch

            values, basis = torch.linalg.eigh(matrix)
        return values, basis
    if without is not None:
        # It has eigenvalue 0 like any other null direction; lifted above all others it comes out as
        # the last eigenvector and can be left out exactly.
        matrix += 2 * np.trace(matrix) * np.outer(without, without)
    values, basis = linalg.eigh(matrix, overwrite_a=True, check_finite=False, driver="evd")
    return (values, basis) if without is None else (values[:-1], basis[:, :-1])


def _eigenpairs_from_float32(matrix: Array, *, without: Array | None) -> tuple[Array, Array]:
    """Return eigenpairs that are as good for ridge as those of float64, in a fraction of its time.

    The eigenvectors are those of ``shift (matrix + shift)^-1``, whose eigenvalues lie between 0
    and 1: float32 errs by a share of the largest eigenvalue, which of the matrix itself may be a
    million times the smallest penalty. Ogita & Aishima's refinement (2018) in float64, of pairs
    whose eigenvalues are well apart, makes the basis orthogonal and what is left between large and
    small eigenvalues negligible.
    """
    import torch

    size = len(matrix)
    one = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    mean = matrix.trace() / size
    # Finite for a matrix of zeros, which is refused by whoever asked.
    least = torch.finfo(matrix.dtype).tiny
    shift = (SMALLEST_PENALTY * mean * torch.linalg.norm(matrix)).sqrt().clip(least)
    resolvent = inverse(matrix + shift * one) * shift
    if without is not None:
        resolvent -= 2 * torch.outer(without, without)  # from eigenvalue 1 to -1: the first
    basis = torch.linalg.eigh(resolvent.float())[1].double()
    del resolvent
    if without is not None:
        basis = basis[:, 1:]
        basis = basis - torch.outer(without, without @ basis)
    basis = basis.flip(1)
    basis = _refined(matrix, basis, shift=shift)
    values, order = (basis * (matrix @ basis)).sum(dim=0).sort()
    return values, basis[:, order]


def _refined(matrix: Array, basis: Array, *, shift: Array) -> Array:
    """Return eigenvectors of a matrix with the square of their error, as far as they are apart."""
    import torch

    one = torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device)
    lacking = one - basis.T @ basis
    values = basis.T @ (matrix @ basis)
    diagonal = values.diagonal() / (1 - lacking.diagonal())
    gap = diagonal - diagonal[:, None]
    apart = gap.abs() > torch.maximum(diagonal, diagonal[:, None]) / 2 + shift / 10
    values += (diagonal + diagonal[:, None]) / 2 * lacking
    values /= torch.where(apart, gap, 1.0)
    return basis + basis @ (lacking / 2 + torch.where(apart, values, 0.0))
