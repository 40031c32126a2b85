"""Ridge regression with one factorisation for every penalty and target, and exact held-out errors.

For standardised betas X (image, voxel), targets Y (image, dimension) and n repeats per image, solve
per dimension

    min over w, b of   sum_i n_i (y_i - b - x_i w)^2 + alpha ||w||^2

The intercept b is not penalised, so X and Y are centred at their n-weighted means and multiplied by
sqrt(n). With U D U' the eigendecomposition of the centred, weighted X X', the held-out residual of
image i is exactly

    e_i = r_i / (1 - h_i),    r = Y - H Y,    H = U D / (D + alpha) U' + s s',   s = sqrt(n / sum n)

(Allen 1974; Golub, Heath & Wahba 1979; the s term is the intercept), and that of a fold g of images
is (I - H_gg)^-1 r_g, for every alpha and target from one factor.

Fitting on single trials instead solves the same equations with the scatter of repeats about their
means added to the penalty (a test shows it), on up to three times the rows; averages are what test
images are decoded from, so averages are what is fitted.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raybrain.decoders.normalisation import (
    Floats,
    Integers,
    Moments,
    TargetScaler,
    target_moments,
)
from raybrain.decoders.ridge_arrays import Array, Device, full_precision, host, namespace, place
from raybrain.decoders.ridge_factor import Factor, factorise
from raybrain.decoders.ridge_selection import (
    HeldOut,
    choose_penalties,
    leave_folds_out,
    leave_one_out,
)

ALPHAS: tuple[float, ...] = tuple(float(a) for a in np.logspace(-3, 3, 13))
"""Penalties in units of the mean eigenvalue."""

EDGE_SHARE = 0.05
"""More targets than this at an end of the grid mean that the grid is too short."""

LEAST_SPREAD = 1e-6
"""Predictions that vary less than this, in deviations of the target, are rounding."""


@dataclass(frozen=True)
class StoredWeights:
    """Weights that wait in a file, so that a decoder larger than memory can be made and used."""

    path: str
    targets: int
    name: str = "weights"
    """Of the array in the file."""

    def read(self) -> Floats:
        """Return the weights (voxel, target)."""
        from safetensors import safe_open

        with safe_open(self.path, framework="np") as file:
            return file.get_tensor(self.name)


Weights = Floats | StoredWeights


@dataclass(frozen=True)
class RidgeBlock:
    """Linear predictions of a block of targets: ``mean + (betas - centre) @ weights``.

    Attributes
    ----------
    weights : ndarray of float32, shape (voxel, target), or StoredWeights
        Of a kernel (image, target), for rows of the kernel in place of betas.
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

    weights: Weights
    mean: Floats
    deviation: Floats
    alpha: Floats
    held_out_r2: Floats
    gain: Floats


def solve_block(
    factor: Factor,
    *,
    targets: Array,
    alphas: Sequence[float] = ALPHAS,
    folds: Integers | None = None,
) -> RidgeBlock:
    """Return the ridge solution of each target at the penalty with the least held-out error.

    Parameters
    ----------
    factor : Factor
        From `factorise`; what is computed, is computed where the factor is.
    targets : ndarray or tensor, shape (image, target)
    alphas : sequence of float
        Penalties in units of ``factor.mean_eigenvalue``.
    folds : ndarray of int, shape (image,), optional
        Images with the same number are left out together; one at a time when not given.

    Raises
    ------
    ValueError
        If the rows of ``targets`` are not the images of the factor, a target is not finite, or
        there are fewer than two folds.
    """
    images = len(factor.left)
    if len(targets) != images:
        raise ValueError(f"targets should have {images} rows like the betas, found {len(targets)}")
    grid = np.sort(np.asarray(alphas, np.float64))
    if not len(grid) or grid[0] <= 0:
        raise ValueError(f"penalties should be positive, found {list(alphas)}")
    with full_precision(factor.device):
        return _solved(factor, targets=place(targets, device=factor.device), grid=grid, folds=folds)


def _solved(
    factor: Factor, *, targets: Array, grid: NDArray[np.float64], folds: Integers | None
) -> RidgeBlock:
    xp = namespace(targets)
    moments = target_moments(targets, count=factor.count)
    scale = xp.asarray(xp.where(moments.varying, moments.deviation, 1.0), dtype=xp.float32)
    standard = _standardised(targets, moments=moments, scale=scale, factor=factor)
    penalties = place(grid * factor.mean_eigenvalue, device=factor.device)
    held_out: HeldOut = (
        leave_one_out(factor, penalties=penalties)
        if folds is None
        else leave_folds_out(factor, penalties=penalties, folds=folds)
    )
    projected = factor.left.T @ standard
    chosen = choose_penalties(
        factor, standard=standard, projected=projected, penalties=penalties, held_out=held_out
    )
    weights = _weights(factor, projected=projected, penalty=penalties[chosen.at])
    weights *= xp.asarray(xp.where(moments.varying, scale, 0.0), dtype=xp.float32)
    # First what is large: until then a GPU need not be waited for.
    weights, varying = host(weights), host(moments.varying)
    spread = np.where(varying, host(chosen.spread), 1.0)
    return RidgeBlock(
        weights=weights,
        mean=host(moments.mean),
        deviation=host(moments.deviation),
        alpha=np.where(varying, grid[host(chosen.at)], np.nan).astype(np.float32),
        held_out_r2=np.where(varying, 1 - host(chosen.loss), 0.0).astype(np.float32),
        gain=(1.0 / np.maximum(spread, LEAST_SPREAD)).astype(np.float32),
    )


def _standardised(targets: Array, *, moments: Moments, scale: Array, factor: Factor) -> Array:
    """Return standardised targets times the square root of repeats; 0 where constant."""
    xp = namespace(targets)
    root = xp.asarray(xp.sqrt(factor.count), dtype=xp.float32)[:, None]
    standard = targets - moments.mean
    if xp is not np:
        standard = standard.float()  # torch multiplies no float64 with float32
    standard *= root / scale
    standard[:, ~moments.varying] = 0.0
    return standard


def _weights(factor: Factor, *, projected: Array, penalty: Array) -> Array:
    """Return weights (voxel, target) in units of the targets' deviations."""
    xp = namespace(projected)
    spectrum = xp.asarray(factor.eigenvalues, dtype=xp.float32)[:, None]
    solution = projected / (spectrum + xp.asarray(penalty, dtype=xp.float32))
    if factor.form == "dual":
        return factor.right.T @ (factor.left @ solution)
    if factor.form == "kernel":
        return factor.right * (factor.left @ solution)
    solution *= xp.sqrt(spectrum)
    return factor.right @ solution


@dataclass(frozen=True)
class RidgeFit:
    """Ridge over all targets; attributes as in `RidgeBlock`, with the centre of the betas."""

    centre: Floats
    blocks: tuple[Weights, ...]
    """Weights of consecutive targets."""
    mean: Floats
    deviation: Floats
    alpha: Floats
    held_out_r2: Floats
    gain: Floats

    @property
    def weights(self) -> Floats:
        """All weights, shape (voxel, target)."""
        return np.concatenate([read_weights(block) for block in self.blocks], axis=1)

    def scaler(self, *, images: int) -> TargetScaler:
        """Return the scaler of the targets that were fitted on so many images.

        Raises
        ------
        InputError
            If no target varies.
        """
        moments = Moments(mean=self.mean, deviation=self.deviation, varying=self.deviation > 0)
        return TargetScaler.of(moments, images=images)

    def predict(self, betas: NDArray) -> Floats:
        """Return least-squares predictions (image, target) of standardised betas."""
        return predict_linear(betas, centre=self.centre, blocks=self.blocks, mean=self.mean)


def read_weights(weights: Weights) -> Floats:
    """Return weights (voxel, target), from their file if they are stored."""
    return weights.read() if isinstance(weights, StoredWeights) else weights


def predict_linear(
    betas: NDArray, *, centre: Floats, blocks: Sequence[Weights], mean: Floats
) -> Floats:
    """Return ``mean + (betas - centre) @ weights``, one block of weights in memory at a time."""
    centred = betas - centre
    return np.concatenate([centred @ read_weights(block) for block in blocks], axis=1) + mean


def fit_ridge(
    betas: Array,
    *,
    targets: Array,
    count: Integers | None = None,
    alphas: Sequence[float] = ALPHAS,
    folds: Integers | None = None,
    memory: int | None = None,
    device: Device = None,
) -> RidgeFit:
    """Return ridge regression of every target, each at its own best penalty.

    Warns when more than 5 % of the targets choose an end of the grid.

    Parameters
    ----------
    betas : ndarray or tensor, shape (image, voxel)
        Standardised betas.
    targets : ndarray or tensor, shape (image, target)
        Anything that slices like an array, such as a memory map: read a block at a time.
    count : ndarray of int, shape (image,), optional
        Repeats averaged in each row.
    alphas : sequence of float
        Penalties in units of the mean eigenvalue.
    folds : ndarray of int, shape (image,), optional
        Images with the same number are left out together; one at a time when not given.
    memory : int, optional
        Bytes of working memory for one block of targets; see `Factor.targets_per_block`.
    device : str, optional
        Where torch computes, such as ``cuda``; NumPy does on the CPU when not given.
    """
    factor = factorise(betas, count=count, device=device)
    fit = fit_factor(factor, targets=targets, alphas=alphas, folds=folds, memory=memory)
    warn_at_edges(fit.alpha, alphas=alphas)
    return fit


def fit_factor(
    factor: Factor,
    *,
    targets: Array,
    alphas: Sequence[float] = ALPHAS,
    folds: Integers | None = None,
    memory: int | None = None,
) -> RidgeFit:
    """Return the solution of all targets of what is factorised already, without a warning.

    Parameters
    ----------
    factor : Factor
        Of the betas, or of rows of a kernel.
    targets : ndarray or tensor, shape (image, target)
        Anything that slices like an array: read a block at a time.
    alphas : sequence of float
        Penalties in units of the mean eigenvalue.
    folds : ndarray of int, shape (image,), optional
        Images with the same number are left out together; one at a time when not given.
    memory : int, optional
        Bytes of working memory for one block of targets; see `Factor.targets_per_block`.
    """
    blocks = solve_blocks(factor, targets=targets, alphas=alphas, folds=folds, memory=memory)
    return join_blocks(list(blocks), centre=host(factor.centre))


def solve_blocks(
    factor: Factor,
    *,
    targets: Array,
    alphas: Sequence[float] = ALPHAS,
    folds: Integers | None = None,
    memory: int | None = None,
) -> Iterator[RidgeBlock]:
    """Yield the solution of one block of targets after another, in order."""
    size = factor.targets_per_block(memory)
    for start in range(0, targets.shape[1], size):
        block = targets[:, start : start + size]
        if namespace(block) is np:
            block = np.asarray(block)
        yield solve_block(factor, targets=block, alphas=alphas, folds=folds)


def store_block(block: RidgeBlock, *, path: str | Path) -> RidgeBlock:
    """Return ``block`` with its weights in a file: what a task returns instead of gigabytes."""
    from safetensors.numpy import save_file

    weights = read_weights(block.weights)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_file({"weights": np.ascontiguousarray(weights)}, str(path))
    return replace(block, weights=StoredWeights(path=str(path), targets=weights.shape[1]))


def join_blocks(blocks: Sequence[RidgeBlock], *, centre: Floats) -> RidgeFit:
    """Return the blocks, given in the order of their targets, as one fit.

    Parameters
    ----------
    blocks : sequence of RidgeBlock
        In the order of their targets.
    centre : ndarray of float32, shape (voxel,)
        What is subtracted from what is predicted from, before the weights.
    """
    return RidgeFit(
        centre=centre,
        blocks=tuple(block.weights for block in blocks),
        mean=np.concatenate([block.mean for block in blocks]),
        deviation=np.concatenate([block.deviation for block in blocks]),
        alpha=np.concatenate([block.alpha for block in blocks]),
        held_out_r2=np.concatenate([block.held_out_r2 for block in blocks]),
        gain=np.concatenate([block.gain for block in blocks]),
    )


def grouped_folds(groups: Sequence[object] | NDArray, *, number: int) -> NDArray[np.int64]:
    """Return a fold for each image so that a group is never split and folds are of even size.

    Parameters
    ----------
    groups : sequence, shape (image,)
        What must stay together, such as the concept of an image.
    number : int
        How many folds.

    Returns
    -------
    ndarray of int64, shape (image,)
        Number of the fold, from 0.

    Raises
    ------
    ValueError
        If there are fewer groups than folds.
    """
    names, at, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    if len(names) < number or number < 2:
        raise ValueError(f"{number} folds need 2 or more, and as many groups; found {len(names)}")
    filled = np.zeros(number, np.int64)
    fold = np.empty(len(names), np.int64)
    for name in np.argsort(-sizes, kind="stable"):  # the largest first, each to the emptiest fold
        fold[name] = np.argmin(filled)
        filled[fold[name]] += sizes[name]
    return fold[at]


def warn_at_edges(
    alpha: NDArray, *, alphas: Sequence[float] = ALPHAS, smallest: bool = True
) -> None:
    """Warn when more than 5 % of the targets that vary chose an end of the grid.

    Only with ``smallest`` is the smallest penalty such an end.
    """
    chosen = alpha[np.isfinite(alpha)]
    if not len(chosen) or len(alphas) < 2:
        return
    low = float(np.mean(np.isclose(chosen, min(alphas), rtol=1e-5))) if smallest else 0.0
    high = float(np.mean(np.isclose(chosen, max(alphas), rtol=1e-5)))
    if low + high > EDGE_SHARE:
        warnings.warn(
            f"of {len(chosen)} targets {low:.1%} chose the smallest penalty ({min(alphas):g}) and "
            f"{high:.1%} the largest ({max(alphas):g}, in mean eigenvalues); widen alphas if these "
            f"targets should be predictable",
            stacklevel=2,
        )
