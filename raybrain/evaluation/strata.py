"""Scores by how far an image lies from what was trained on, and by other divisions of the images.

A system that only retrieves does well on test images that resemble training images; the decile of
likeness shows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raybrain.evaluation.identification import standardised
from raybrain.evaluation.statistics import bootstrap
from raybrain.evaluation.table import Table


@dataclass(frozen=True)
class Stratum:
    """Scores of some of the images."""

    label: str
    row: str
    metric: str
    value: float
    """Mean over these images, in the unit of the metric."""
    low: float
    """95 % bootstrap interval over these images."""
    high: float
    """Upper end of the interval."""
    n: int
    """Images."""


def likeness_to_training(
    images: NDArray[np.floating], *, training: NDArray[np.floating], block: int = 1024
) -> NDArray[np.float64]:
    """Return Pearson r (image,) of each image's features with the nearest training image's.

    Parameters
    ----------
    images, training
        (image, feature) and (training image, feature) of the true images.
    block
        Training images compared at a time.
    """
    mine = standardised(images)
    nearest = np.full(len(mine), -np.inf)
    for start in range(0, len(training), block):
        r = mine @ standardised(training[start : start + block]).T
        nearest = np.maximum(nearest, r.max(axis=1))
    return nearest


def thumbnails(
    images: NDArray[np.uint8], *, side: int = 16, block: int = 256
) -> NDArray[np.float32]:
    """Return (image, feature) means over squares of pixels: layout and colours without detail.

    Parameters
    ----------
    images
        (image, y, x, rgb), square; rows and columns that fill no square are left out.
    side
        Squares along one side, or pixels where the images have fewer.
    block
        Images shrunk at a time.
    """
    step = max(1, images.shape[1] // side)
    kept = images.shape[1] // step
    found = np.empty((len(images), kept * kept * images.shape[3]), dtype=np.float32)
    for start in range(0, len(images), block):
        part = np.asarray(images[start : start + block, : kept * step, : kept * step])
        squares = part.reshape(len(part), kept, step, kept, step, images.shape[3])
        found[start : start + block] = squares.mean(axis=(2, 4), dtype=np.float32).reshape(
            len(part), -1
        )
    return found


def nearness_text(likeness: Mapping[str, NDArray[np.floating]]) -> str:
    """Return lines that say how near the nearest training image is, so that scores can be read.

    Parameters
    ----------
    likeness
        What was compared -> Pearson r (image,) with the nearest training image.
    """
    lines = []
    for what, values in likeness.items():
        low, middle, high = np.quantile(values, (0.05, 0.5, 0.95))
        lines.append(
            f"nearest training image by {what}: r {middle:.2f} at the median, "
            f"{low:.2f} to {high:.2f} for nine in ten test images\n"
        )
    return "".join(lines)


def quantile_labels(values: NDArray[np.floating], *, parts: int = 10) -> list[str]:
    """Return a label for each value that names its quantile and the range it spans.

    Equal values share a quantile, so there can be fewer parts than asked for.

    Parameters
    ----------
    values : ndarray, shape (image,)
        Such as how much an image is like those of training.
    parts : int
        Quantiles of even size: 10 for deciles.
    """
    edges = np.unique(np.quantile(values, np.linspace(0, 1, parts + 1)))
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, max(len(edges) - 2, 0))
    width = len(str(len(edges)))
    return [
        f"{k + 1:0{width}d} ({edges[k]:.2f} to {edges[min(k + 1, len(edges) - 1)]:.2f})"
        for k in place.tolist()
    ]


def scores_by(
    table: Table, *, labels: Sequence[str], row: str, metric: str, resamples: int = 10_000
) -> tuple[Stratum, ...]:
    """Return the score of each group of images, in the order of the labels.

    The scores themselves are those of the whole test set: distractors come from all images, so
    groups can be compared.

    Parameters
    ----------
    table
        Scores of all images.
    labels
        Of each image: a decile, a category, or whether its concept was held out of training.
    row, metric
        Which scores.
    resamples
        For the interval over the images of a group.

    Raises
    ------
    ValueError
        If labels are not as many as the images that were scored.
    """
    if len(labels) != len(table.image_ids):
        raise ValueError(f"{len(table.image_ids)} images were scored; found {len(labels)} labels")
    scores = table.per_image(row=row, metric=metric)
    groups = np.asarray(labels)
    found = []
    for label in sorted(set(labels)):
        chosen = scores[groups == label]
        interval = bootstrap(chosen, resamples=resamples, seed=table.seed)
        found.append(
            Stratum(
                label=str(label),
                row=row,
                metric=metric,
                value=float(chosen.mean()),
                low=float(interval.low),
                high=float(interval.high),
                n=len(chosen),
            )
        )
    return tuple(found)
