"""Which penalty predicts left-out images best, per target, exactly and without refitting.

The loss of a penalty needs the residuals of all images, a matrix product as large as the fit. But
the sum of squared residuals follows from the projections alone, and bounds the held-out loss from
below, because leaving an image out can only enlarge its residual. So penalties are tried outwards
from an estimate, and those whose bound is above the best loss so far are never computed. The result
is that of computing them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from raybrain.decoders.normalisation import Floats, Integers
from raybrain.decoders.ridge_factor import Factor

SLACK = 1e-5
"""Rounding of a sum of squares in float32, as a share of the variance."""

ROWS_AT_ONCE = 512


class HeldOut(Protocol):
    """Turns residuals of the fit into those of images that were left out."""

    @property
    def enlargement(self) -> NDArray[np.float64]:
        """A lower bound on held-out over fitted squared error, shape (penalty,)."""

    def errors(self, residual: Floats, *, at: int) -> Floats:
        """Return held-out errors (image, target) of fitted ``residual`` at one penalty."""


@dataclass(frozen=True)
class LeaveOneOut:
    """One image at a time: its residual over the share of its own error that it shows."""

    retained: Floats
    """1 - leverage, shape (penalty, image)."""

    @property
    def enlargement(self) -> NDArray[np.float64]:
        """See `HeldOut`."""
        return 1.0 / self.retained.max(axis=1).astype(np.float64) ** 2

    def errors(self, residual: Floats, *, at: int) -> Floats:
        """See `HeldOut`."""
        return residual / self.retained[at][:, None]


@dataclass(frozen=True)
class LeaveFoldsOut:
    """All images of a fold together: (I - H_gg)^-1 times their residuals."""

    images: tuple[NDArray[np.intp], ...]
    """Rows of each fold."""
    inverses: tuple[tuple[Floats, ...], ...]
    """Of I - H_gg, by penalty and fold."""

    @property
    def enlargement(self) -> NDArray[np.float64]:
        """See `HeldOut`; the eigenvalues of I - H_gg are at most 1."""
        return np.ones(len(self.inverses))

    def errors(self, residual: Floats, *, at: int) -> Floats:
        """See `HeldOut`."""
        result = np.empty_like(residual)
        for rows, inverse in zip(self.images, self.inverses[at], strict=True):
            result[rows] = inverse @ residual[rows]
        return result


def leave_one_out(factor: Factor, *, penalties: NDArray[np.float64]) -> LeaveOneOut:
    """Return what leaving out one image at a time does to residuals, for every penalty."""
    return LeaveOneOut(retained=_retained(factor, penalties).astype(np.float32))


def leave_folds_out(
    factor: Factor, *, penalties: NDArray[np.float64], folds: Integers
) -> LeaveFoldsOut:
    """Return what leaving out all images of a fold does to residuals, for every penalty.

    Raises
    ------
    ValueError
        If there are fewer than two folds, or not one number per image.
    """
    if len(folds) != len(factor.left) or len(np.unique(folds)) < 2:
        raise ValueError(
            f"folds should number {len(factor.left)} images with at least 2 different numbers, "
            f"found {len(folds)} numbers of which {len(np.unique(folds))} differ"
        )
    images = tuple(np.flatnonzero(folds == name) for name in np.unique(folds))
    inverses = []
    for penalty in penalties:
        share = factor.eigenvalues / (factor.eigenvalues + penalty)
        shown = 1.0 - share if factor.form != "primal" else share
        inverses.append(tuple(_inverse(factor, rows, shown) for rows in images))
    return LeaveFoldsOut(images=images, inverses=tuple(inverses))


def _inverse(factor: Factor, rows: NDArray[np.intp], spectrum: NDArray[np.float64]) -> Floats:
    basis = factor.left[rows].astype(np.float64)
    block = (basis * spectrum) @ basis.T
    if factor.form == "primal":
        intercept = np.sqrt(factor.count[rows] / factor.count.sum())
        block = np.eye(len(rows)) - np.outer(intercept, intercept) - block
    inverse = linalg.inv(block, overwrite_a=True, check_finite=False, assume_a="pos")
    return inverse.astype(np.float32)


def _retained(factor: Factor, penalties: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 - leverage, shape (penalty, image)."""
    square = factor.left.astype(np.float64) ** 2
    share = factor.eigenvalues / (factor.eigenvalues + penalties[:, None])
    if factor.form != "primal":
        # A complete basis: summing what is kept avoids 1 minus almost 1 at small penalties.
        return (1.0 - share) @ square.T
    return 1.0 - factor.count / factor.count.sum() - share @ square.T


@dataclass(frozen=True)
class Chosen:
    """The best penalty of each target.

    Attributes
    ----------
    at : ndarray of int, shape (target,)
        Position among the penalties.
    loss : ndarray of float64, shape (target,)
        Held-out squared error, weighted by repeats, in units of the target's variance.
    spread : ndarray of float64, shape (target,)
        Standard deviation of the held-out predictions, in units of the target's.
    computed : float
        Share of all (penalty, target) pairs whose loss had to be computed.
    """

    at: NDArray[np.intp]
    loss: NDArray[np.float64]
    spread: NDArray[np.float64]
    computed: float


def choose_penalties(
    factor: Factor,
    *,
    standard: Floats,
    projected: Floats,
    penalties: NDArray[np.float64],
    held_out: HeldOut,
) -> Chosen:
    """Return for each target the penalty with the least held-out error; of equals the largest.

    Parameters
    ----------
    factor : Factor
    standard : ndarray of float32, shape (image, target)
        Standardised targets times the square root of repeats.
    projected : ndarray of float32, shape (component, target)
        ``factor.left.T @ standard``.
    penalties : ndarray of float64, shape (penalty,)
        Ascending.
    held_out : HeldOut
    """
    total = factor.count.sum()
    fitted = _fitted_loss(factor, standard=standard, projected=projected, penalties=penalties)
    bound = np.maximum(fitted - SLACK * total, 0.0) * held_out.enlargement[:, None]
    freedom = _retained(factor, penalties).mean(axis=1)[:, None]
    # Generalised cross-validation (Golub, Heath & Wahba 1979) is where to start.
    start = len(penalties) - 1 - np.argmin((fitted / freedom**2)[::-1], axis=0)

    targets = standard.shape[1]
    best, spread = np.full(targets, np.inf), np.zeros(targets)
    at = start.copy()
    computed = 0
    for step in sorted(range(-len(penalties) + 1, len(penalties)), key=abs):
        tried = start + step
        inside = (tried >= 0) & (tried < len(penalties))
        for penalty in np.unique(tried[inside]):
            columns = np.flatnonzero(tried == penalty)
            columns = columns[bound[penalty, columns] <= best[columns]]
            if not len(columns):
                continue
            computed += len(columns)
            own = standard[:, columns]
            residual = _fitted_residual(
                factor, standard=own, projected=projected[:, columns], penalty=penalties[penalty]
            )
            errors = held_out.errors(residual, at=penalty)
            loss = _sum_of_squares(errors)
            better = (loss < best[columns]) | ((loss == best[columns]) & (penalty > at[columns]))
            best[columns[better]] = loss[better]
            at[columns[better]] = penalty
            # While the errors are at hand: computing them again would cost another product.
            found = _spread(np.subtract(own, errors, out=own), count=factor.count)
            spread[columns[better]] = found[better]
    return Chosen(
        at=at, loss=best / total, spread=spread, computed=computed / (targets * len(penalties))
    )


def _fitted_loss(
    factor: Factor, *, standard: Floats, projected: Floats, penalties: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the sum of squared residuals, shape (penalty, target), from projections alone."""
    square = projected**2
    left_over = penalties[:, None] / (factor.eigenvalues + penalties[:, None])
    inside = (left_over**2).astype(np.float32) @ square
    if factor.form != "primal":
        return inside.astype(np.float64)
    outside = _sum_of_squares(standard) - square.sum(axis=0, dtype=np.float64)
    return inside + np.maximum(outside, 0.0)


def _fitted_residual(
    factor: Factor, *, standard: Floats, projected: Floats, penalty: float
) -> Floats:
    """Return residuals (image, target) of the fit to all images at one penalty."""
    share = factor.eigenvalues / (factor.eigenvalues + penalty)
    if factor.form != "primal":
        return factor.left @ (projected * (1.0 - share).astype(np.float32)[:, None])
    fit = factor.left @ (projected * share.astype(np.float32)[:, None])
    return np.subtract(standard, fit, out=fit)


def _spread(weighted: Floats, *, count: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return standard deviations of predictions given times the square root of repeats."""
    mean = np.sqrt(count).astype(np.float32) @ weighted / count.sum()
    return np.sqrt(np.maximum(_sum_of_squares(weighted) / count.sum() - mean**2, 0.0))


def _sum_of_squares(errors: Floats) -> NDArray[np.float64]:
    total = np.zeros(errors.shape[1])
    for start in range(0, len(errors), ROWS_AT_ONCE):
        rows = errors[start : start + ROWS_AT_ONCE]
        total += np.einsum("it,it->t", rows, rows)
    return total
