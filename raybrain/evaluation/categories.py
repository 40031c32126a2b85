"""Category decoding, for datasets whose targets stand for a category."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raybrain.evaluation.statistics import bootstrap


@dataclass(frozen=True)
class CategoryScore:
    """The share of trials whose category is decoded, with what it must be held against."""

    value: float
    """Share of trials whose category is decoded, 0 to 1."""
    low: float
    """95 % bootstrap interval over trials."""
    high: float
    """Upper end of the interval."""
    chance: float
    """One over the number of categories."""
    permuted: float
    """Mean accuracy when the trials' true categories are permuted."""
    p: float
    """Share of permutations that are as good."""
    n: int
    """Trials."""
    categories: int
    """How many there are to choose from."""

    def __str__(self) -> str:
        """Return the score in one line, never without chance, interval and n."""
        return (
            f"category accuracy {self.value:.1%} [{self.low:.1%}, {self.high:.1%}] of {self.n} "
            f"single trials among {self.categories} categories (chance {self.chance:.1%}, "
            f"permuted categories {self.permuted:.1%}, p {self.p:.2g})"
        )


def category_accuracy(
    *,
    predicted: NDArray[np.floating],
    prototypes: NDArray[np.floating],
    truth: NDArray[np.integer],
    resamples: int = 10_000,
    seed: int = 0,
) -> CategoryScore:
    """Return how often the prototype that correlates best with a prediction is the true one.

    Parameters
    ----------
    predicted
        (trial, ...), decoded targets.
    prototypes
        (category, ...), the target of each category; their mean is taken from both sides, so that
        what all categories share says nothing.
    truth
        (trial,), position of the true category among the prototypes.
    resamples
        For the interval over trials and for the permutations.
    seed
        Of both.
    """
    library = prototypes.reshape(len(prototypes), -1).astype(np.float64)
    mean = library.mean(axis=0)
    queries = predicted.reshape(len(predicted), -1).astype(np.float64) - mean
    r = _unit(queries) @ _unit(library - mean).T
    chosen = r.argmax(axis=1)
    hits = (chosen == truth).astype(np.float64)
    interval = bootstrap(hits, resamples=resamples, seed=seed)
    rng = np.random.default_rng(seed)
    shuffled = np.array([np.mean(chosen == rng.permutation(truth)) for _ in range(resamples)])
    return CategoryScore(
        value=float(hits.mean()),
        low=float(interval.low),
        high=float(interval.high),
        chance=1.0 / len(library),
        permuted=float(shuffled.mean()),
        p=float((1 + np.sum(shuffled >= hits.mean())) / (1 + resamples)),
        n=len(hits),
        categories=len(library),
    )


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / np.where(length > 0, length, 1.0)
