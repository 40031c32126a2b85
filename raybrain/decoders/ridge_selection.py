"""Which penalty predicts left-out images best, per target, exactly and without refitting.

The loss of a penalty needs the residuals of all images, a matrix product as large as the fit. But
the sum of squared residuals follows from the projections alone, and bounds the held-out loss from
below, because leaving an image out can only enlarge its residual. So penalties are tried outwards
from an estimate, and those whose bound is above the best loss so far are never computed. The result
is that of computing them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from raybrain.decoders.normalisation import Integers
from raybrain.decoders.ridge_arrays import Array, column_squares, inverse, namespace, place
from raybrain.decoders.ridge_factor import Factor

SLACK = 1e-5
"""Rounding of a sum of squares in float32, as a share of the variance."""

ROWS_AT_ONCE = 512


class HeldOut(Protocol):
    """Turns residuals of the fit into those of images that were left out."""

    @property
    def enlargement(self) -> Array:
        """A lower bound on held-out over fitted squared error, shape (penalty,)."""

    def errors(self, residual: Array, *, at: int) -> Array:
        """Return held-out errors (image, target) of fitted ``residual`` at one penalty."""


@dataclass(frozen=True)
class LeaveOneOut:
    """One image at a time: its residual over the share of its own error that it shows."""

    retained: Array
    """1 - leverage, shape (penalty, image)."""

    @property
    def enlargement(self) -> Array:
        """See `HeldOut`."""
        xp = namespace(self.retained)
        return 1.0 / xp.asarray(xp.amax(self.retained, axis=1), dtype=xp.float64) ** 2

    def errors(self, residual: Array, *, at: int) -> Array:
        """See `HeldOut`."""
        return residual / self.retained[at][:, None]


@dataclass(frozen=True)
class LeaveFoldsOut:
    """All images of a fold together: (I - H_gg)^-1 times their residuals."""

    images: tuple[Array, ...]
    """Rows of each fold."""
    inverses: tuple[tuple[Array, ...], ...]
    """Of I - H_gg, by penalty and fold."""

    @property
    def enlargement(self) -> Array:
        """See `HeldOut`; the eigenvalues of I - H_gg are at most 1."""
        first = self.inverses[0][0]
        xp = namespace(first)
        return xp.ones(len(self.inverses), dtype=xp.float64, device=first.device)

    def errors(self, residual: Array, *, at: int) -> Array:
        """See `HeldOut`."""
        result = namespace(residual).empty_like(residual)
        for rows, enlarge in zip(self.images, self.inverses[at], strict=True):
            result[rows] = enlarge @ residual[rows]
        return result


def leave_one_out(factor: Factor, *, penalties: Array) -> LeaveOneOut:
    """Return what leaving out one image at a time does to residuals, for every penalty."""
    xp = namespace(penalties)
    return LeaveOneOut(retained=xp.asarray(_retained(factor, penalties), dtype=xp.float32))


def leave_folds_out(factor: Factor, *, penalties: Array, folds: Integers) -> LeaveFoldsOut:
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
    images = tuple(
        place(np.flatnonzero(folds == name), device=factor.device) for name in np.unique(folds)
    )
    inverses = []
    for penalty in penalties:
        share = factor.eigenvalues / (factor.eigenvalues + penalty)
        shown = 1.0 - share if factor.form != "primal" else share
        inverses.append(tuple(_inverse(factor, rows, shown) for rows in images))
    return LeaveFoldsOut(images=images, inverses=tuple(inverses))


def _inverse(factor: Factor, rows: Array, spectrum: Array) -> Array:
    xp = namespace(factor.left)
    basis = xp.asarray(factor.left[rows], dtype=xp.float64)
    block = (basis * spectrum) @ basis.T
    if factor.form == "primal":
        intercept = xp.sqrt(factor.count[rows] / factor.count.sum())
        one = xp.eye(len(rows), dtype=xp.float64, device=block.device)
        block = one - xp.outer(intercept, intercept) - block
    return xp.asarray(inverse(block), dtype=xp.float32)


def _retained(factor: Factor, penalties: Array) -> Array:
    """Return 1 - leverage, shape (penalty, image)."""
    xp = namespace(factor.left)
    square = xp.asarray(factor.left, dtype=xp.float64) ** 2
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
    at : array of int, shape (target,)
        Position among the penalties.
    loss : array of float64, shape (target,)
        Held-out squared error, weighted by repeats, in units of the target's variance.
    spread : array of float64, shape (target,)
        Standard deviation of the held-out predictions, in units of the target's.
    computed : float
        Share of all (penalty, target) pairs whose loss had to be computed.
    """

    at: Array
    loss: Array
    spread: Array
    computed: float


def choose_penalties(
    factor: Factor,
    *,
    standard: Array,
    projected: Array,
    penalties: Array,
    held_out: HeldOut,
) -> Chosen:
    """Return for each target the penalty with the least held-out error; of equals the largest.

    Parameters
    ----------
    factor : Factor
        All arrays are where it is.
    standard : array of float32, shape (image, target)
        Standardised targets times the square root of repeats.
    projected : array of float32, shape (component, target)
        ``factor.left.T @ standard``.
    penalties : array of float64, shape (penalty,)
        Ascending.
    held_out : HeldOut
    """
    xp = namespace(standard)
    total = factor.count.sum()
    fitted = _fitted_loss(factor, standard=standard, projected=projected, penalties=penalties)
    bound = xp.clip(fitted - SLACK * total, 0.0, None) * held_out.enlargement[:, None]
    freedom = _retained(factor, penalties).mean(axis=1)[:, None]
    # Generalised cross-validation (Golub, Heath & Wahba 1979) is where to start.
    start = len(penalties) - 1 - xp.argmin(xp.flip(fitted / freedom**2, (0,)), axis=0)

    targets = standard.shape[1]
    best = xp.full((targets,), np.inf, dtype=xp.float64, device=standard.device)
    spread = xp.zeros_like(best)
    at = xp.asarray(start, copy=True)
    computed = 0
    rounds = _nearest_first if xp is np else _estimate_first
    for penalty, near in rounds(start, len(penalties)):
        columns = near[bound[penalty, near] <= best[near]]
        if not len(columns):
            continue
        computed += len(columns)
        own = standard[:, columns]
        residual = _fitted_residual(
            factor, standard=own, projected=projected[:, columns], penalty=penalties[penalty]
        )
        errors = held_out.errors(residual, at=penalty)
        loss = _sum_of_squares(errors)
        before = best[columns]
        better = (loss < before) | ((loss == before) & (penalty > at[columns]))
        best[columns] = xp.where(better, loss, before)
        at[columns] = xp.where(better, penalty, at[columns])
        # While the errors are at hand: computing them again would cost another product.
        own -= errors
        spread[columns] = xp.where(better, _spread(own, count=factor.count), spread[columns])
    return Chosen(
        at=at, loss=best / total, spread=spread, computed=computed / (targets * len(penalties))
    )


def _nearest_first(start: Array, penalties: int) -> Iterator[tuple[int, Array]]:
    """Yield a penalty and targets to try it on, outwards from ``start``: bounds spare the most."""
    for step in sorted(range(-penalties + 1, penalties), key=abs):
        tried = start + step
        for penalty in np.unique(tried[(tried >= 0) & (tried < penalties)]):
            yield int(penalty), np.flatnonzero(tried == penalty)


def _estimate_first(start: Array, penalties: int) -> Iterator[tuple[int, Array]]:
    """Yield a penalty and targets to try it on, ``start`` and then all others: few large products.

    A GPU computes a few penalties more in less time than it takes many small products.
    """
    xp = namespace(start)
    for penalty in range(penalties):
        yield penalty, xp.where(start == penalty)[0]
    for penalty in range(penalties):
        yield penalty, xp.where(start != penalty)[0]


def _fitted_loss(factor: Factor, *, standard: Array, projected: Array, penalties: Array) -> Array:
    """Return the sum of squared residuals, shape (penalty, target), from projections alone."""
    xp = namespace(projected)
    square = projected**2
    left_over = penalties[:, None] / (factor.eigenvalues + penalties[:, None])
    inside = xp.asarray(left_over**2, dtype=xp.float32) @ square
    if factor.form != "primal":
        return xp.asarray(inside, dtype=xp.float64)
    outside = _sum_of_squares(standard) - square.sum(axis=0, dtype=xp.float64)
    return inside + xp.clip(outside, 0.0, None)


def _fitted_residual(factor: Factor, *, standard: Array, projected: Array, penalty: Array) -> Array:
    """Return residuals (image, target) of the fit to all images at one penalty."""
    xp = namespace(projected)
    share = factor.eigenvalues / (factor.eigenvalues + penalty)
    if factor.form != "primal":
        shown = xp.asarray(1.0 - share, dtype=xp.float32)
        return factor.left @ (projected * shown[:, None])
    fit = factor.left @ (projected * xp.asarray(share, dtype=xp.float32)[:, None])
    return xp.subtract(standard, fit, out=fit)


def _spread(weighted: Array, *, count: Array) -> Array:
    """Return standard deviations of predictions given times the square root of repeats."""
    xp = namespace(weighted)
    mean = xp.asarray(xp.sqrt(count), dtype=xp.float32) @ weighted / count.sum()
    return xp.sqrt(xp.clip(_sum_of_squares(weighted) / count.sum() - mean**2, 0.0, None))


def _sum_of_squares(errors: Array) -> Array:
    xp = namespace(errors)
    total = xp.zeros(errors.shape[1], dtype=xp.float64, device=errors.device)
    for start in range(0, len(errors), ROWS_AT_ONCE):
        total += column_squares(errors[start : start + ROWS_AT_ONCE])
    return total
