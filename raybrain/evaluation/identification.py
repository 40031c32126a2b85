"""How often a reconstruction is closer to the image seen than wrong candidates are.

Everything follows from one matrix of Pearson correlations per layer, ``r[i, j]`` between seen image
``i`` and reconstruction ``j``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from raybrain.evaluation.declarations import Distractors

FLAT = 1e-6
"""A row whose standard deviation is this small beside its root mean square is rounding noise."""


def standardised(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return rows with mean zero and length one, so that products are Pearson correlations.

    A constant row becomes zero: it correlates with nothing, and identification counts it as tied
    with every candidate.
    """
    values = np.asarray(features, dtype=np.float32).reshape(len(features), -1)
    size = np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.float64))
    values = values - values.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    norm = np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.float64))
    scale = np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > FLAT * size)
    values *= scale[:, None].astype(np.float32)
    return values


def correlations(
    *, seen: NDArray[np.floating], reconstructed: NDArray[np.floating]
) -> NDArray[np.float32]:
    """Return Pearson r (seen, reconstructed) between two sets of rows (image, feature)."""
    return standardised(seen) @ standardised(reconstructed).T


@dataclass(frozen=True)
class Ranks:
    """For each pair, how many of the other candidates are less like and exactly as like."""

    below: NDArray[np.int32]
    """(seen, reconstruction)."""
    tied: NDArray[np.int32]
    """(seen, reconstruction), the pair itself not counted."""
    candidates: int
    """Wrong candidates of each pair."""


def ranks(r: NDArray[np.floating], *, distractors: Distractors = "seen") -> Ranks:
    """Return the rank of every pair among its wrong candidates.

    Parameters
    ----------
    r
        (seen, reconstruction) similarities, larger is more alike.
    distractors
        ``seen``: a reconstruction is compared with the other seen images, as MindEye and
        Brain-Diffuser do. ``reconstructed``: a seen image is compared with the other
        reconstructions, as Takagi and Nishimoto do.
    """
    if r.ndim != 2 or r.shape[0] != r.shape[1] or len(r) < 2:
        raise ValueError(f"identification needs at least 2 images in pairs; found {r.shape}")
    values = r if distractors == "seen" else r.T
    ordered = np.sort(values, axis=0)
    below = np.empty(values.shape, dtype=np.int32)
    upto = np.empty(values.shape, dtype=np.int32)
    for column in range(values.shape[1]):
        below[:, column] = np.searchsorted(ordered[:, column], values[:, column], side="left")
        upto[:, column] = np.searchsorted(ordered[:, column], values[:, column], side="right")
    tied = upto - below - 1
    if distractors == "reconstructed":
        below, tied = below.T, tied.T
    return Ranks(below=below, tied=tied, candidates=len(r) - 1)


def credits_among(found: Ranks, *, ways: int) -> NDArray[np.float64]:
    """Return the expected credit of every pair when ``ways - 1`` wrong candidates are drawn.

    The right one must be the most alike; t candidates tied with it share the credit, so guessing
    earns exactly ``1 / ways``. The expectation over draws without replacement is exact
    (hypergeometric), so nothing is sampled. NaN where there are fewer candidates than `ways` needs.
    """
    if ways == 2:
        return (found.below + 0.5 * found.tied) / found.candidates
    drawn = ways - 1
    if drawn > found.candidates:
        return np.full(found.below.shape, np.nan)
    total = np.zeros(found.below.shape)
    for ties in range(min(drawn, int(found.tied.max())) + 1):
        log = _log_choose(found.below, drawn - ties) + _log_choose(found.tied, ties)
        total += np.exp(log - _log_choose(np.int32(found.candidates), drawn)) / (ties + 1)
    return total


def _log_choose(n: NDArray[np.int32] | np.int32, k: int) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        value = gammaln(n + 1.0) - gammaln(k + 1.0) - gammaln(n - k + 1.0)
    return np.where(np.asarray(n) >= k, value, -np.inf)


def n_way(
    *,
    seen: NDArray[np.floating],
    reconstructed: NDArray[np.floating],
    ways: int,
    distractors: Distractors = "seen",
) -> NDArray[np.float64]:
    """Return the expected credit (image,) of identification among `ways` candidates, by Pearson r.

    Identification by the candidate most alike is that of Kay et al. 2008, there among predicted
    brain responses.

    Parameters
    ----------
    seen, reconstructed
        (image, feature), row k of one belonging to row k of the other.
    ways
        Candidates, the right one included.
    distractors
        Whose the wrong candidates are; see `ranks`.

    Examples
    --------
    A constant prediction is tied with everything and earns what guessing earns.

    >>> seen = np.eye(4)
    >>> n_way(seen=seen, reconstructed=seen, ways=4).round(3).tolist()
    [1.0, 1.0, 1.0, 1.0]
    >>> n_way(seen=seen, reconstructed=np.ones((4, 4)), ways=4).round(3).tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    r = correlations(seen=seen, reconstructed=reconstructed)
    return np.diagonal(credits_among(ranks(r, distractors=distractors), ways=ways)).copy()


def two_way(
    *,
    seen: NDArray[np.floating],
    reconstructed: NDArray[np.floating],
    distractors: Distractors = "seen",
) -> NDArray[np.float64]:
    """Return the share (image,) of wrong candidates less alike by Pearson r; ties earn half.

    Ozcelik and VanRullen 2023; Scotti et al. 2023. A constant prediction scores exactly one half.

    Parameters
    ----------
    seen, reconstructed : ndarray, shape (image, feature)
        Row k of one belongs to row k of the other.
    distractors : {'seen', 'reconstructed'}
        Whose the wrong candidates are.

    Examples
    --------
    >>> seen = np.array([[0.0, 1.0, 5.0], [1.0, 0.0, 2.0], [3.0, 2.0, 0.0]])
    >>> two_way(seen=seen, reconstructed=seen[[0, 2, 1]]).tolist()  # the last two are exchanged
    [1.0, 0.5, 0.0]
    """
    return n_way(seen=seen, reconstructed=reconstructed, ways=2, distractors=distractors)


def correlation_distance(
    *, seen: NDArray[np.floating], reconstructed: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return 1 - Pearson r (image,) between paired rows (image, feature); 1 if r is undefined.

    The distance of features in Ozcelik and VanRullen 2023 and Scotti et al. 2023.

    Parameters
    ----------
    seen, reconstructed : ndarray, shape (image, feature)
        Row k of one belongs to row k of the other.

    Examples
    --------
    >>> seen = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    >>> drawn = np.array([[3.0, 2.0, 1.0], [0.0, 0.0, 0.0]])
    >>> correlation_distance(seen=seen, reconstructed=drawn).round(3).tolist()
    [2.0, 1.0]
    """
    product = standardised(seen) * standardised(reconstructed)
    return 1.0 - product.sum(axis=1, dtype=np.float64)
