"""Ridge regression with one factorisation for every penalty and target, and exact held-out errors.

For standardised betas X (image, voxel), targets Y (image, dimension) and n repeats per image, solve
per dimension

    min over w, b of   sum_i n_i (y_i - b - x_i w)^2 + alpha ||w||^2

The intercept b is not penalised, so X and Y are centred at their n-weighted means and multiplied by
sqrt(n). With U D U' the eigendecomposition of the centred, weighted X X', the held-out residual of
image i is exactly

    e_i = r_i / (1 - h_i),    r = Y - H Y,    H = U D / (D + alpha) U' + s s',   s = sqrt(n / sum n)

(Allen 1974; Golub, Heath & Wahba 1979; the s term is the intercept), for every alpha and target
from one factor. Fitting on single trials instead solves the same equations with the scatter of
repeats about their means added to the penalty (a test shows it), on up to three times the rows;
averages are what test images are decoded from, so averages are what is fitted.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from raybrain.decoders.normalisation import CONSTANT, Floats, Integers, target_moments

ALPHAS: tuple[float, ...] = tuple(float(a) for a in np.logspace(-3, 3, 13))
"""Penalties in units of the mean eigenvalue."""

EDGE_SHARE = 0.05
"""More targets than this at an end of the grid mean that the grid is too short."""

BLOCK_BYTES = 512 * 2**20
"""Working memory of one block of targets."""


@dataclass(frozen=True)
class Factor:
    """What ridge needs of the betas, whatever the targets: share it between blocks of targets.

    Attributes
    ----------
    form : {'primal', 'dual'}
        Which Gram matrix was smaller: (voxel, voxel) or (image, image).
    centre : ndarray of float32, shape (voxel,)
        Mean of the betas, weighted by repeats.
    count : ndarray of float64, shape (image,)
    left : ndarray of float32, shape (image, component)
        U. In dual form a complete basis of what is orthogonal to the intercept.
    right : ndarray of float32
        Primal: V, shape (voxel, component). Dual: weighted centred betas, shape (image, voxel).
    eigenvalues : ndarray of float64, shape (component,)
    mean_eigenvalue : float
        Unit of the penalties: the trace over the rank.
    """

    form: Literal["primal", "dual"]
    centre: Floats
    count: NDArray[np.float64]
    left: Floats
    right: Floats
    eigenvalues: NDArray[np.float64]
    mean_eigenvalue: float

    def targets_per_block(self, memory: int = BLOCK_BYTES) -> int:
        """Return how many targets `solve_block` can take within ``memory`` bytes."""
        images, components = self.left.shape
        voxels = len(self.centre)
        return max(16, memory // (4 * (4 * images + 2 * components + voxels)))


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
    if images < 3:
        raise ValueError(f"ridge needs at least 3 training images, found {images}")
    if voxels == 0:
        raise ValueError("ridge needs at least one voxel, found none; choose other ROIs")
    weight = np.ones(images) if count is None else np.asarray(count, np.float64)
    root = np.sqrt(weight)
    centre = (weight / weight.sum()) @ betas.astype(np.float64)
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
    step = max(1, 2**26 // (8 * images))
    for start in range(0, voxels, step):
        part = slice(start, start + step)
        columns = _weighted(betas[:, part], centre[part], root)
        weighted[:, part] = columns
        kernel += columns @ columns.T
    # The intercept's direction has eigenvalue 0, like any other null direction; lifted above all
    # others it comes out as the last eigenvector and can be left out exactly.
    intercept = root / np.linalg.norm(root)
    kernel += 2 * np.trace(kernel) * np.outer(intercept, intercept)
    eigenvalues, basis = linalg.eigh(kernel, overwrite_a=True, check_finite=False, driver="evd")
    return basis[:, :-1].astype(np.float32), weighted, np.maximum(eigenvalues[:-1], 0.0)


def _weighted(betas: NDArray, centre: NDArray, root: NDArray) -> NDArray[np.float64]:
    return (betas.astype(np.float64) - centre) * root[:, None]


@dataclass(frozen=True)
class RidgeBlock:
    """Linear predictions of a block of targets: ``mean + (betas - centre) @ weights``.

    Attributes
    ----------
    weights : ndarray of float32, shape (voxel, target)
    mean : ndarray of float32, shape (target,)
    deviation : ndarray of float32, shape (target,)
        Standard deviation of the training targets; 0 where constant.
    alpha : ndarray of float32, shape (target,)
        Chosen penalty in units of the mean eigenvalue; NaN for a constant target.
    held_out_r2 : ndarray of float32, shape (target,)
        1 - held-out squared error over variance, on images left out; 0 for a constant target.
    gain : ndarray of float32, shape (target,)
        Standard deviation of the targets over that of the held-out predictions; 1 for a constant.
    """

    weights: Floats
    mean: Floats
    deviation: Floats
    alpha: Floats
    held_out_r2: Floats
    gain: Floats


def solve_block(
    factor: Factor,
    *,
    targets: NDArray,
    alphas: Sequence[float] = ALPHAS,
) -> RidgeBlock:
    """Return the ridge solution of each target at the penalty with the least held-out error.

    Parameters
    ----------
    factor : Factor
        From `factorise`.
    targets : ndarray, shape (image, target)
    alphas : sequence of float
        Penalties in units of ``factor.mean_eigenvalue``.

    Raises
    ------
    ValueError
        If the rows of ``targets`` are not the images of the factor, or a target is not finite.
    """
    images = len(factor.left)
    if len(targets) != images:
        raise ValueError(f"targets should have {images} rows like the betas, found {len(targets)}")
    grid = np.sort(np.asarray(alphas, np.float64))
    if not len(grid) or grid[0] <= 0:
        raise ValueError(f"penalties should be positive, found {list(alphas)}")
    moments = target_moments(targets, count=factor.count)
    scale = np.where(moments.varying, moments.deviation, 1.0).astype(np.float32)
    root = np.sqrt(factor.count).astype(np.float32)
    standard = (targets - moments.mean).astype(np.float32, copy=False) / scale * root[:, None]
    standard[:, ~moments.varying] = 0.0

    projected = factor.left.T @ standard
    penalties = grid * factor.mean_eigenvalue
    retained = _retained(factor, penalties)
    losses = np.stack(
        [
            _loss(_residual(factor, standard, projected, alpha) / kept[:, None])
            for alpha, kept in zip(penalties, retained, strict=True)
        ]
    )
    losses /= factor.count.sum()
    # The last of equal minima: where nothing tells penalties apart the larger one is safer.
    chosen = len(grid) - 1 - np.argmin(losses[::-1], axis=0)

    alpha = penalties[chosen].astype(np.float32)
    solution = projected / (factor.eigenvalues.astype(np.float32)[:, None] + alpha)
    if factor.form == "dual":
        dual = factor.left @ solution
        residual = dual * alpha
        weights = factor.right.T @ dual
    else:
        spectrum = factor.eigenvalues.astype(np.float32)[:, None]
        residual = standard - factor.left @ (spectrum * solution)
        weights = factor.right @ (np.sqrt(spectrum) * solution)
    residual /= retained[chosen].T
    held_out = (standard - residual) / root[:, None]
    varying = moments.varying
    return RidgeBlock(
        weights=weights * np.where(varying, scale, 0.0).astype(np.float32),
        mean=moments.mean,
        deviation=moments.deviation,
        alpha=np.where(varying, grid[chosen], np.nan).astype(np.float32),
        held_out_r2=np.where(varying, 1 - losses.min(axis=0), 0.0).astype(np.float32),
        gain=_gain(held_out, count=factor.count, varying=varying),
    )


def _retained(factor: Factor, penalties: NDArray) -> Floats:
    """Return 1 - leverage, shape (penalty, image): the share of its own error an image shows."""
    square = factor.left.astype(np.float64) ** 2
    if factor.form == "dual":
        # A complete basis: summing what is kept avoids 1 minus almost 1 at small penalties.
        shrunk = penalties[:, None] / (factor.eigenvalues + penalties[:, None])
        return (shrunk @ square.T).astype(np.float32)
    fitted = factor.eigenvalues / (factor.eigenvalues + penalties[:, None])
    intercept = factor.count / factor.count.sum()
    return (1.0 - intercept - fitted @ square.T).astype(np.float32)


def _residual(factor: Factor, standard: Floats, projected: Floats, alpha: float) -> Floats:
    if factor.form == "dual":
        shrunk = (alpha / (factor.eigenvalues + alpha)).astype(np.float32)
        return factor.left @ (projected * shrunk[:, None])
    fitted = (factor.eigenvalues / (factor.eigenvalues + alpha)).astype(np.float32)
    return standard - factor.left @ (projected * fitted[:, None])


def _loss(residual: Floats) -> NDArray[np.float64]:
    return np.einsum("it,it->t", residual, residual).astype(np.float64)


def _gain(held_out: Floats, *, count: NDArray, varying: NDArray) -> Floats:
    share = (count / count.sum()).astype(np.float32)
    mean = share @ held_out
    deviation = np.sqrt(share @ (held_out - mean) ** 2)
    usable = varying & (deviation > 0)
    return np.divide(1.0, deviation, out=np.ones_like(deviation), where=usable)


@dataclass(frozen=True)
class RidgeFit:
    """Ridge over all targets; attributes as in `RidgeBlock`, with the centre of the betas."""

    centre: Floats
    weights: Floats
    mean: Floats
    deviation: Floats
    alpha: Floats
    held_out_r2: Floats
    gain: Floats

    def predict(self, betas: NDArray) -> Floats:
        """Return least-squares predictions (image, target) of standardised betas."""
        return (betas - self.centre) @ self.weights + self.mean


def fit_ridge(
    betas: NDArray,
    *,
    targets: NDArray,
    count: Integers | None = None,
    alphas: Sequence[float] = ALPHAS,
    memory: int = BLOCK_BYTES,
) -> RidgeFit:
    """Return ridge regression of every target, each at its own best penalty.

    Warns when more than 5 % of the targets choose an end of the grid.

    Parameters
    ----------
    betas : ndarray, shape (image, voxel)
        Standardised betas.
    targets : ndarray, shape (image, target)
    count : ndarray of int, shape (image,), optional
        Repeats averaged in each row.
    alphas : sequence of float
        Penalties in units of the mean eigenvalue.
    memory : int
        Bytes of working memory for one block of targets.
    """
    factor = factorise(betas, count=count)
    blocks = list(solve_blocks(factor, targets=targets, alphas=alphas, memory=memory))
    fit = join_blocks(blocks, centre=factor.centre)
    warn_at_edges(fit.alpha, alphas=alphas)
    return fit


def solve_blocks(
    factor: Factor,
    *,
    targets: NDArray,
    alphas: Sequence[float] = ALPHAS,
    memory: int = BLOCK_BYTES,
) -> Iterator[RidgeBlock]:
    """Yield the solution of one block of targets after another, in order."""
    size = factor.targets_per_block(memory)
    for start in range(0, targets.shape[1], size):
        yield solve_block(factor, targets=targets[:, start : start + size], alphas=alphas)


def join_blocks(blocks: Sequence[RidgeBlock], *, centre: Floats) -> RidgeFit:
    """Return the blocks, given in the order of their targets, as one fit."""
    return RidgeFit(
        centre=centre,
        weights=np.concatenate([block.weights for block in blocks], axis=1),
        mean=np.concatenate([block.mean for block in blocks]),
        deviation=np.concatenate([block.deviation for block in blocks]),
        alpha=np.concatenate([block.alpha for block in blocks]),
        held_out_r2=np.concatenate([block.held_out_r2 for block in blocks]),
        gain=np.concatenate([block.gain for block in blocks]),
    )


def warn_at_edges(alpha: NDArray, *, alphas: Sequence[float] = ALPHAS) -> None:
    """Warn when more than 5 % of the targets that vary chose an end of the grid."""
    chosen = alpha[np.isfinite(alpha)]
    if not len(chosen) or len(alphas) < 2:
        return
    low = float(np.mean(np.isclose(chosen, min(alphas), rtol=1e-5)))
    high = float(np.mean(np.isclose(chosen, max(alphas), rtol=1e-5)))
    if low + high > EDGE_SHARE:
        warnings.warn(
            f"of {len(chosen)} targets {low:.1%} chose the smallest penalty ({min(alphas):g}) and "
            f"{high:.1%} the largest ({max(alphas):g}, in mean eigenvalues); widen alphas if these "
            f"targets should be predictable",
            stacklevel=2,
        )
