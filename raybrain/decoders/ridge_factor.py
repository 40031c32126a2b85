"""The part of ridge regression that depends on the betas alone, shared by all targets.

With X the centred betas, each row multiplied by the square root of its number of repeats, the
factor is the eigendecomposition of X'X or of XX', whichever is smaller. Of any other kernel it is
that of the kernel, centred and multiplied likewise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from raybrain.decoders.gpu_memory import free_memory
from raybrain.decoders.normalisation import CONSTANT, Integers
from raybrain.decoders.ridge_arrays import (
    Array,
    Device,
    device_of,
    eigenpairs,
    full_precision,
    namespace,
    place,
    row_squares,
)

BLOCK_BYTES = 512 * 2**20
"""Working memory of one block of targets on the CPU."""

FREE_SHARE = 0.5
"""Of a GPU's free memory, what a block of targets may take: another task may share the GPU."""

TARGETS_ON_GPU = 8192
"""Targets of a block that keep a GPU busy; more would only make the files of a decoder larger."""

ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Factor:
    """What ridge needs of the betas, whatever the targets: share it between blocks of targets.

    Attributes
    ----------
    form : {'primal', 'dual', 'kernel'}
        Which Gram matrix was smaller, (voxel, voxel) or (image, image), or that it was given.
    centre : ndarray of float32, shape (voxel,)
        Mean of the betas, weighted by repeats; of a kernel that of its rows, shape (image,).
    count : ndarray of float64, shape (image,)
    left : ndarray of float32, shape (image, component)
        U. Unless primal a complete basis of what is orthogonal to the intercept.
    right : ndarray of float32
        Primal: V, shape (voxel, component). Dual: weighted centred betas, shape (image, voxel). Of
        a kernel: the weights themselves, shape (image, 1).
    eigenvalues : ndarray of float64, shape (component,)
    mean_eigenvalue : float
        Unit of the penalties: the trace over the rank.

    Notes
    -----
    The arrays are tensors where a GPU solves. Ray's object store is to hold ndarrays: a tensor in a
    GPU's memory means nothing to a process that has another GPU, or none.
    """

    form: Literal["primal", "dual", "kernel"]
    centre: Array
    count: Array
    left: Array
    right: Array
    eigenvalues: Array
    mean_eigenvalue: float

    @property
    def device(self) -> Device:
        """Where `solve_block` computes with it; None is NumPy."""
        return device_of(self.left)

    def on(self, device: Device) -> Factor:
        """Return the factor with its arrays on a device, or with ndarrays if None."""
        return replace(
            self,
            centre=place(self.centre, device=device),
            count=place(self.count, device=device),
            left=place(self.left, device=device),
            right=place(self.right, device=device),
            eigenvalues=place(self.eigenvalues, device=device),
        )

    def targets_per_block(self, memory: int | None = None) -> int:
        """Return how many targets `solve_block` can take within ``memory`` bytes.

        When not given, within 512 MiB on the CPU, and half of what is free on a GPU.
        """
        images, components = self.left.shape
        # Standardised targets, residuals and held-out predictions; projections and solutions.
        numbers = 5 * images + 4 * components + len(self.centre)
        memory = working_memory(self.device) if memory is None else memory
        width = max(16, memory // (4 * numbers))
        return width if self.device is None else min(width, TARGETS_ON_GPU)


def working_memory(device: Device) -> int:
    """Return how many bytes a block of targets may take."""
    if device is None or not device.startswith("cuda"):
        return BLOCK_BYTES
    return int(FREE_SHARE * free_memory(device))


def factorise(betas: Array, *, count: Integers | None = None, device: Device = None) -> Factor:
    """Return the eigendecomposition of the smaller Gram matrix of ``betas``, which is in float64.

    Parameters
    ----------
    betas : ndarray or tensor, shape (image, voxel)
        Standardised betas, one row per image (or per trial).
    count : ndarray of int, shape (image,), optional
        Repeats averaged in each row; 1 when not given.
    device : str, optional
        Where torch computes, such as ``cuda``, and where the factor stays; NumPy does on the CPU
        when not given.

    Raises
    ------
    ValueError
        If there are fewer than three rows, or no voxel varies.
    """
    images, voxels = betas.shape
    weight = _weight(count, images=images, device=device)
    if voxels == 0:
        raise ValueError("ridge needs at least one voxel, found none; choose other ROIs")
    with full_precision(device):
        return _factorised(place(betas, device=device), weight=weight)


def _factorised(betas: Array, *, weight: Array) -> Factor:
    xp = namespace(betas)
    images, voxels = betas.shape
    root = xp.sqrt(weight)
    centre = _centre(betas, weight=weight / weight.sum())
    if not xp.isfinite(centre).all():
        raise ValueError(f"{int((~xp.isfinite(centre)).sum())} voxels hold NaN or infinity")
    form: Literal["primal", "dual"] = "primal" if voxels <= images else "dual"
    decompose = _decompose_primal if form == "primal" else _decompose_dual
    left, right, eigenvalues = decompose(betas, centre=centre, root=root)
    energy = weight @ row_squares(betas)
    if eigenvalues.sum() <= CONSTANT**2 * energy:
        raise ValueError(f"none of the {voxels} voxels varies over {images} training images")
    rank = min(images - 1, len(eigenvalues))
    return Factor(
        form=form,
        centre=xp.asarray(centre, dtype=xp.float32),
        count=weight,
        left=left,
        right=right,
        eigenvalues=eigenvalues,
        mean_eigenvalue=float(eigenvalues.sum() / rank),
    )


def factorise_kernel(
    kernel: Array, *, count: Integers | None = None, device: Device = None
) -> Factor:
    """Return the factor of any positive semi-definite kernel, which predicts from rows of it.

    Because solutions are orthogonal to the intercept, centring the kernel of new rows comes down to
    subtracting the training rows' mean: predictions are ``mean + (rows - centre) @ weights``, as
    those of betas are.

    Parameters
    ----------
    kernel : ndarray or tensor, shape (image, image)
        Symmetric.
    count : ndarray of int, shape (image,), optional
        Repeats averaged in each row; 1 when not given.
    device : str, optional
        As for `factorise`.

    Raises
    ------
    ValueError
        If there are fewer than three rows, one is not finite, or all are alike.
    """
    weight = _weight(count, images=len(kernel), device=device)
    with full_precision(device):
        return _factorised_kernel(place(kernel, device=device), weight=weight)


def _factorised_kernel(kernel: Array, *, weight: Array) -> Factor:
    xp, images = namespace(kernel), len(kernel)
    if not xp.isfinite(kernel).all():
        raise ValueError("the kernel holds NaN or infinity")
    root, share = xp.sqrt(weight), weight / weight.sum()
    if xp is not np:
        kernel = kernel.double()  # which NumPy makes of it piece by piece, below
    mean = kernel @ share
    centred = kernel - mean[:, None]
    centred -= mean
    centred += share @ mean
    centred *= root[:, None]
    centred *= root
    left, eigenvalues = _off_the_intercept(centred, root=root)
    if eigenvalues.sum() <= CONSTANT**2 * (weight @ kernel.diagonal()):
        raise ValueError(f"the patterns of all {images} training images are alike")
    return Factor(
        form="kernel",
        centre=xp.asarray(mean, dtype=xp.float32),
        count=weight,
        left=left,
        right=xp.asarray(root[:, None], dtype=xp.float32),
        eigenvalues=eigenvalues,
        mean_eigenvalue=float(eigenvalues.sum() / (images - 1)),
    )


def _weight(count: Integers | None, *, images: int, device: Device) -> Array:
    if images < 3:
        raise ValueError(f"ridge needs at least 3 training images, found {images}")
    weight = np.ones(images) if count is None else np.asarray(count, np.float64)
    return place(weight, device=device)


def _centre(betas: Array, *, weight: Array) -> Array:
    xp = namespace(betas)
    total = xp.zeros(betas.shape[1], dtype=xp.float64, device=betas.device)
    for start in range(0, len(betas), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        total += weight[part] @ xp.asarray(betas[part], dtype=xp.float64)
    return total


Decomposition = tuple[Array, Array, Array]


def _decompose_primal(betas: Array, *, centre: Array, root: Array) -> Decomposition:
    xp = namespace(betas)
    images, voxels = betas.shape
    gram = xp.zeros((voxels, voxels), dtype=xp.float64, device=betas.device)
    step = max(1, 2**26 // (8 * voxels))
    for start in range(0, images, step):
        rows = _weighted(betas[start : start + step], centre, root[start : start + step])
        gram += rows.T @ rows
    eigenvalues, basis = eigenpairs(gram)
    real = eigenvalues > eigenvalues[-1] * voxels * np.finfo(np.float64).eps
    eigenvalues, basis = eigenvalues[real], basis[:, real]
    left = xp.empty((images, len(eigenvalues)), dtype=xp.float32, device=betas.device)
    for start in range(0, images, step):
        rows = _weighted(betas[start : start + step], centre, root[start : start + step])
        left[start : start + step] = (rows @ basis) / xp.sqrt(eigenvalues)
    return left, xp.asarray(basis, dtype=xp.float32), eigenvalues


def _decompose_dual(betas: Array, *, centre: Array, root: Array) -> Decomposition:
    xp = namespace(betas)
    images, voxels = betas.shape
    kernel = xp.zeros((images, images), dtype=xp.float64, device=betas.device)
    weighted = xp.empty((images, voxels), dtype=xp.float32, device=betas.device)
    step = max(1, 2**27 // (8 * images))
    for start in range(0, voxels, step):
        part = slice(start, start + step)
        columns = _weighted(betas[:, part], centre[part], root)
        weighted[:, part] = columns
        kernel += columns @ columns.T
    left, eigenvalues = _off_the_intercept(kernel, root=root)
    return left, weighted, eigenvalues


def _off_the_intercept(kernel: Array, *, root: Array) -> tuple[Array, Array]:
    """Return the eigenvectors and values of a centred kernel, which is overwritten, but one."""
    xp = namespace(kernel)
    eigenvalues, basis = eigenpairs(kernel, without=root / xp.linalg.norm(root))
    return xp.asarray(basis, dtype=xp.float32), xp.clip(eigenvalues, 0.0, None)


def _weighted(betas: Array, centre: Array, root: Array) -> Array:
    rows = betas - centre  # float64, as the centre is
    rows *= root[:, None]
    return rows
