"""Intervals and p values over images, the unit that was drawn from a population.

The N(N-1) comparisons of two-way identification share images, so a binomial test over them is
wrong; here images are resampled, and pairings of brain and image are permuted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """Percentile interval of the mean over images."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]


def bootstrap_means(
    scores: NDArray[np.float64], *, resamples: int, seed: int
) -> NDArray[np.float64]:
    """Return the mean (resample, ...) of every resample of the images with replacement.

    Parameters
    ----------
    scores
        (image, ...); all columns share the resamples, so their differences are paired.
    resamples
        How many.
    seed
        Of the draw.
    """
    images = len(scores)
    flat = np.ascontiguousarray(scores.reshape(images, -1), dtype=np.float64)
    rng = np.random.default_rng(seed)
    share = np.full(images, 1.0 / images)
    means = [
        rng.multinomial(images, share, size=size) @ flat / images
        for size in _blocks(resamples, width=images)
    ]
    return np.concatenate(means).reshape(resamples, *scores.shape[1:])


def interval_of(means: NDArray[np.float64], *, level: float = LEVEL) -> Interval:
    """Return the percentile interval over the first axis of resampled means."""
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail], axis=0)
    return Interval(low=low, high=high)


def bootstrap(scores: NDArray[np.float64], *, resamples: int, seed: int) -> Interval:
    """Return the 95 % interval of the mean over images of each column of scores (image, ...).

    The percentile interval of the bootstrap (Efron 1979).

    Parameters
    ----------
    scores : ndarray of float64, shape (image, ...)
        Every column by itself; all share the resamples.
    resamples : int
        How often as many images are drawn with replacement.
    seed : int
        Of the draws.
    """
    return interval_of(bootstrap_means(scores, resamples=resamples, seed=seed))


def pairing_p(
    matrices: Sequence[NDArray[np.float64]], *, permutations: int, seed: int
) -> NDArray[np.float64]:
    """Return one p value per matrix: how often a random pairing has as large a mean score.

    Parameters
    ----------
    matrices
        (image, reconstruction) each, larger is better: what reconstruction k would score as that
        of image j; the diagonal is what was observed. All share the permutations.
    permutations
        How many pairings; p is never below ``1 / (permutations + 1)``.
    seed
        Of the draw.
    """
    if not matrices:
        return np.empty(0)
    images = len(matrices[0])
    rng = np.random.default_rng(seed)
    rows = np.arange(images)
    # A sum in another order differs in the last bits; an equal one must count as extreme.
    observed = [np.trace(matrix) - 1e-9 * images for matrix in matrices]
    extreme = np.zeros(len(matrices))
    for size in _blocks(permutations, width=images):
        order = rng.permuted(np.tile(rows, (size, 1)), axis=1)
        for k, matrix in enumerate(matrices):
            extreme[k] += (matrix[rows, order].sum(axis=1) >= observed[k]).sum()
    return (1 + extreme) / (1 + permutations)


def sign_flip_p(differences: NDArray[np.float64], *, flips: int, seed: int) -> NDArray[np.float64]:
    """Return how often a random sign of every image's difference gives as large a mean, per column.

    Two-sided (Fisher 1935); exact in the sense that differences are exchangeable with their
    negatives if neither run is better. All columns share the signs.

    Parameters
    ----------
    differences
        (image, column).
    flips
        How many random signs; p is never below ``1 / (flips + 1)``.
    seed
        Of the draw.

    Returns
    -------
    ndarray of float64, shape (column,)
    """
    images = len(differences)
    rng = np.random.default_rng(seed)
    # A sum in another order differs in the last bits; an equal one must count as extreme.
    observed = np.abs(differences.sum(axis=0)) * (1 - 1e-9)
    extreme = np.zeros(differences.shape[1])
    for size in _blocks(flips, width=images):
        signs = 2.0 * rng.integers(0, 2, size=(size, images)) - 1.0
        extreme += (np.abs(signs @ differences) >= observed).sum(axis=0)
    return (1 + extreme) / (1 + flips)


def holm(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return p values adjusted for their number by Holm's step-down method (Holm 1979)."""
    order = np.argsort(p)
    steps = (len(p) - np.arange(len(p))) * p[order]
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted


@dataclass(frozen=True)
class MeanOfFew:
    """A mean over a few units, such as subjects, by Student's t."""

    value: float
    low: float
    """95 % interval; NaN for a single unit."""
    high: float
    p: float
    """Two-sided, of a mean of zero; NaN for a single unit."""


def mean_of_few(values: NDArray[np.float64], *, level: float = LEVEL) -> MeanOfFew:
    """Return the mean of values (unit,) with the t interval of ``len(values) - 1`` degrees.

    Parameters
    ----------
    values : ndarray of float64, shape (unit,)
        One of each unit, such as a subject.
    level : float
        Share of such intervals that hold the true mean.
    """
    from scipy import stats

    value, count = float(values.mean()), len(values)
    if count < 2:
        return MeanOfFew(value, np.nan, np.nan, np.nan)
    error = float(values.std(ddof=1)) / count**0.5
    if error == 0.0:
        return MeanOfFew(value, value, value, 1.0 if value == 0.0 else 0.0)
    half = float(stats.t.ppf((1 + level) / 2, count - 1)) * error
    p = float(2 * stats.t.sf(abs(value) / error, count - 1))
    return MeanOfFew(value, value - half, value + half, p)


def derangements(*, images: int, count: int, seed: int) -> NDArray[np.int64]:
    """Return pairings (derangement, image) in which no image keeps its own reconstruction.

    They are different rotations of one random cycle, so no pair occurs twice; at most
    ``images - 1`` exist.

    Examples
    --------
    >>> found = derangements(images=5, count=9, seed=0)
    >>> found.shape, bool((found == np.arange(5)).any())
    ((4, 5), False)
    """
    if images < 2:
        raise ValueError(f"shuffling needs at least 2 images; found {images}")
    cycle = np.random.default_rng(seed).permutation(images)
    position = np.argsort(cycle)
    shifts = range(1, min(count, images - 1) + 1)
    return np.stack([cycle[(position + shift) % images] for shift in shifts])


def _blocks(total: int, *, width: int) -> Iterator[int]:
    step = max(1, 4_000_000 // width)  # 32 MB of indices at a time
    for start in range(0, total, step):
        yield min(step, total - start)
