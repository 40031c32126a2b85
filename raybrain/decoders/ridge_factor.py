"""The part of ridge regression that depends on the betas alone, shared by all targets.

With X the centred betas, each row multiplied by the square root of its number of repeats, the
factor is the eigendecomposition of X'X or of XX', whichever is smaller. Of any other kernel it is
that of the kernel, centred and multiplied likewise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from raybrain.decoders.normalisation import CONSTANT, Floats, Integers

BLOCK_BYTES = 512 * 2**20
"""Working memory of one block of targets."""

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
    """

    form: Literal["primal", "dual", "kernel"]
    centre: Floats
    count: NDArray[np.float64]
    left: Floats
    right: Floats
    eigenvalues: NDArray[np.float64]
    mean_eigenvalue: float

    def targets_per_block(self, memory: int = BLOCK_BYTES) -> int:
        """Return how many targets `solve_block` can take within ``memory`` bytes."""
        images, components = self.left.shape
        # Standardised targets, residuals and held-out predictions; projections and solutions.
        numbers = 5 * images + 4 * components + len(self.centre)
        return max(16, memory // (4 * numbers))


def factorise(betas: NDArray, *, count: Integers | None = None) -> Factor:
    """Return the eigendecomposition of the smaller Gram matrix of ``betas``, in float64.

    Parameters
    ----------
    betas : ndarray, shape (image, voxel)
        Standardised betas, one row per image (or per trial).
    count : ndarray of int, shape (image,), optional
        Repeats averaged in each row; 1 when not given.

    Raises
    ------
    ValueError
        If there are fewer than three rows, or no voxel varies.
    """
    images, voxels = betas.shape
    weight = _weight(count, images=images)
    if voxels == 0:
        raise ValueError("ridge needs at least one voxel, found none; choose other ROIs")
    root = np.sqrt(weight)
    centre = _centre(betas, weight=weight / weight.sum())
    if not np.isfinite(centre).all():
        raise ValueError(f"{int((~np.isfinite(centre)).sum())} voxels hold NaN or infinity")
    form: Literal["primal", "dual"] = "primal" if voxels <= images else "dual"
    decompose = _decompose_primal if form == "primal" else _decompose_dual
    left, right, eigenvalues = decompose(betas, centre=centre, root=root)
    energy = weight @ np.einsum("iv,iv->i", betas, betas, dtype=np.float64)
    if eigenvalues.sum() <= CONSTANT**2 * energy:
        raise ValueError(f"none of the {voxels} voxels varies over {images} training images")
    rank = min(images - 1, len(eigenvalues))
    return Factor(
        form=form,
        centre=centre.astype(np.float32),
        count=weight,
        left=left,
        right=right,
        eigenvalues=eigenvalues,
        mean_eigenvalue=float(eigenvalues.sum() / rank),
    )


def factorise_kernel(kernel: NDArray, *, count: Integers | None = None) -> Factor:
    """Return the factor of any positive semi-definite kernel, which predicts from rows of it.

    Because solutions are orthogonal to the intercept, centring the kernel of new rows comes down to
    subtracting the training rows' mean: predictions are ``mean + (rows - centre) @ weights``, as
    those of betas are.

    Parameters
    ----------
    kernel : ndarray, shape (image, image)
        Symmetric.
    count : ndarray of int, shape (image,), optional
        Repeats averaged in each row; 1 when not given.

    Raises
    ------
    ValueError
        If there are fewer than three rows, one is not finite, or all are alike.
    """
    images = len(kernel)
    weight = _weight(count, images=images)
    if not np.isfinite(kernel).all():
        raise ValueError("the kernel holds NaN or infinity")
    root, share = np.sqrt(weight), weight / weight.sum()
    mean = kernel @ share
    centred = kernel - mean[:, None]
    centred -= mean
    centred += share @ mean
    centred *= root[:, None]
    centred *= root
    left, eigenvalues = _off_the_intercept(centred, root=root)
    if eigenvalues.sum() <= CONSTANT**2 * (weight @ np.diagonal(kernel)):
        raise ValueError(f"the patterns of all {images} training images are alike")
    return Factor(
        form="kernel",
        centre=mean.astype(np.float32),
        count=weight,
        left=left,
        right=root[:, None].astype(np.float32),
        eigenvalues=eigenvalues,
        mean_eigenvalue=float(eigenvalues.sum() / (images - 1)),
    )


def _weight(count: Integers | None, *, images: int) -> NDArray[np.float64]:
    if images < 3:
        raise ValueError(f"ridge needs at least 3 training images, found {images}")
    return np.ones(images) if count is None else np.asarray(count, np.float64)


def _centre(betas: NDArray, *, weight: NDArray[np.float64]) -> NDArray[np.float64]:
    total = np.zeros(betas.shape[1])
    for start in range(0, len(betas), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        total += weight[part] @ betas[part].astype(np.float64)
    return total


Decomposition = tuple[Floats, Floats, NDArray[np.float64]]


def _decompose_primal(betas: NDArray, *, centre: NDArray, root: NDArray) -> Decomposition:
    images, voxels = betas.shape
    gram = np.zeros((voxels, voxels))
    step = max(1, 2**26 // (8 * voxels))
    for start in range(0, images, step):
        rows = _weighted(betas[start : start + step], centre, root[start : start + step])
        gram += rows.T @ rows
    eigenvalues, basis = linalg.eigh(gram, overwrite_a=True, check_finite=False, driver="evd")
    real = eigenvalues > eigenvalues[-1] * voxels * np.finfo(np.float64).eps
    eigenvalues, basis = eigenvalues[real], basis[:, real]
    left = np.empty((images, len(eigenvalues)), np.float32)
    for start in range(0, images, step):
        rows = _weighted(betas[start : start + step], centre, root[start : start + step])
        left[start : start + step] = (rows @ basis) / np.sqrt(eigenvalues)
    return left, basis.astype(np.float32), eigenvalues


def _decompose_dual(betas: NDArray, *, centre: NDArray, root: NDArray) -> Decomposition:
    images, voxels = betas.shape
    kernel = np.zeros((images, images))
    weighted = np.empty((images, voxels), np.float32)
    step = max(1, 2**27 // (8 * images))
    for start in range(0, voxels, step):
        part = slice(start, start + step)
        columns = _weighted(betas[:, part], centre[part], root)
        weighted[:, part] = columns
        kernel += columns @ columns.T
    left, eigenvalues = _off_the_intercept(kernel, root=root)
    return left, weighted, eigenvalues


def _off_the_intercept(
    kernel: NDArray[np.float64], *, root: NDArray
) -> tuple[Floats, NDArray[np.float64]]:
    """Return the eigenvectors and values of a centred kernel, which is overwritten, but one."""
    # The intercept's direction has eigenvalue 0, like any other null direction; lifted above all
    # others it comes out as the last eigenvector and can be left out exactly.
    intercept = root / np.linalg.norm(root)
    kernel += 2 * np.trace(kernel) * np.outer(intercept, intercept)
    eigenvalues, basis = linalg.eigh(kernel, overwrite_a=True, check_finite=False, driver="evd")
    return basis[:, :-1].astype(np.float32), np.maximum(eigenvalues[:-1], 0.0)


def _weighted(betas: NDArray, centre: NDArray, root: NDArray) -> NDArray[np.float64]:
    rows = betas - centre  # float64, as the centre is
    rows *= root[:, None]
    return rows
