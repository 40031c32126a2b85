"""Retrieval by embedding: which of many images was seen, and which brain saw an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raybrain.evaluation.identification import credits_among, ranks

POOL = 300  # Lin et al. 2022; Scotti et al. 2023


@dataclass(frozen=True)
class Retrieval:
    """Top-1 accuracy per image, in both directions."""

    brain_to_image: NDArray[np.float64]
    """(image,) a predicted embedding finds its image among `pool` images (MindEye's code calls this
    direction ``bwd``)."""
    image_to_brain: NDArray[np.float64]
    """(image,) an image finds its predicted embedding (MindEye's code calls this ``fwd``, which is
    not what its paper's label says)."""
    pool: int
    """Candidates, the right one included."""
    centred: bool

    @property
    def chance(self) -> float:
        """The accuracy of guessing."""
        return 1.0 / self.pool


def retrieval(
    *,
    predicted: NDArray[np.floating],
    true: NDArray[np.floating],
    pool: int = POOL,
    centred: bool = False,
) -> Retrieval:
    """Return top-1 retrieval by cosine among `pool` candidates, the right one included.

    The field averages 30 random draws of 300 (Lin et al. 2022; Scotti et al. 2023); this is the
    expectation over all draws, exactly (hypergeometric), with ties sharing the credit.

    Parameters
    ----------
    predicted, true
        (image, ...) embeddings, row k of one belonging to row k of the other.
    pool
        Candidates.
    centred
        Take each set's own mean over images from it first. Embeddings that share a large common
        direction (CLIP's do) look alike without it.

    Raises
    ------
    ValueError
        If there are fewer images than the pool needs.

    Examples
    --------
    >>> true = np.eye(3)
    >>> found = retrieval(predicted=true[[0, 2, 1]], true=true, pool=2)
    >>> found.brain_to_image.round(3).tolist(), found.chance
    ([1.0, 0.25, 0.25], 0.5)
    """
    if len(predicted) != len(true) or len(true) < pool:
        raise ValueError(
            f"retrieval among {pool} needs as many images in pairs; found {len(predicted)} "
            f"predicted and {len(true)} true: choose a pool of at most {len(true)}"
        )
    brain, image = (_unit(values, centred=centred) for values in (predicted, true))
    similarity = image @ brain.T
    by_brain = credits_among(ranks(similarity, distractors="seen"), ways=pool)
    by_image = credits_among(ranks(similarity, distractors="reconstructed"), ways=pool)
    return Retrieval(
        brain_to_image=np.diagonal(by_brain).copy(),
        image_to_brain=np.diagonal(by_image).copy(),
        pool=pool,
        centred=centred,
    )


def nearest_first(
    *, predicted: NDArray[np.floating], true: NDArray[np.floating], centred: bool = False
) -> NDArray[np.intp]:
    """Return positions (image, rank) of the true embeddings, those nearest a prediction first.

    What `retrieval` ranks by (Lin et al. 2022; Scotti et al. 2023).

    Parameters
    ----------
    predicted, true : ndarray, shape (image, ...)
        Embeddings, row k of one belonging to row k of the other.
    centred : bool
        Take each set's own mean over images from it first, as `retrieval` does.
    """
    brain, image = (_unit(values, centred=centred) for values in (predicted, true))
    return np.argsort(-(brain @ image.T), axis=1, kind="stable")


def _unit(values: NDArray[np.floating], *, centred: bool) -> NDArray[np.float64]:
    rows = values.reshape(len(values), -1).astype(np.float64)
    if centred:
        rows = rows - rows.mean(axis=0)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    # What centring leaves of equal rows is rounding: no direction at all.
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 1e-9)
