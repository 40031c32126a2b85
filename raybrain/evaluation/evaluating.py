"""Pictures in, table out: the floors that need no decoder, then `score_rows`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raybrain.config import InputError
from raybrain.evaluation.declarations import Protocol
from raybrain.evaluation.floors import mean_image, random_training
from raybrain.evaluation.protocols import protocol_named
from raybrain.evaluation.scoring import (
    MEAN_IMAGE,
    RANDOM_TRAINING,
    SYSTEM,
    Mapper,
    score_rows,
)
from raybrain.evaluation.table import Table
from raybrain.evaluation.weights import weights_folder

Images = NDArray[np.uint8]

RANDOM_SAMPLES = 5
"""Training images drawn at random for every image seen."""
MEAN_OF_SEEN = "the mean of the images seen, for want of training images: what pixels pay for blur"


def evaluate(
    seen: Images,
    drawn: Images | Mapping[str, Images],
    protocol: str | Protocol = "lite0-v1",
    *,
    training: Images | None = None,
    image_ids: Sequence[str] | None = None,
    bootstrap: int = 10_000,
    seed: int = 0,
    weights: str | Path | None = None,
    mapper: Mapper | None = None,
) -> Table:
    """Return the scores of reconstructions, whoever drew them, beside floors, with intervals.

    Beside the reconstructions stand the mean image, training images at random, and the same
    reconstructions scored as those of other images.

    Parameters
    ----------
    seen : ndarray of uint8, shape (image, y, x, rgb)
        What was shown, 0 to 255.
    drawn : ndarray of uint8, shape (image, y, x, rgb) or (image, sample, y, x, rgb), or a mapping
        Reconstructions in the order of `seen`; their size may be another. A mapping of names to
        such arrays scores several rows, of which ``system`` is the one that is shuffled and
        ``ceiling`` what the true targets give; floors that it has are not made again.
    protocol : str or Protocol
        What is measured, by its name and version.
    training : ndarray of uint8, shape (image, y, x, rgb), optional
        Images shown in training. Without them the mean image is that of `seen`, a harder floor,
        and nothing is drawn at random.
    image_ids : sequence of str, optional
        Names by which another table can be paired with this one; positions when not given.
    bootstrap : int
        Resamples of the images for every 95 % interval.
    seed : int
        Of resamples, permutations and what is drawn at random.
    weights : str or Path, optional
        Folder of the protocol's weights; torch's own when not given.
    mapper : callable, optional
        Measures parts elsewhere; see `score_rows`.

    Returns
    -------
    Table

    Raises
    ------
    InputError
        If the arrays do not fit together, or the protocol or its weights are not there.

    Examples
    --------
    >>> import numpy as np, raybrain
    >>> rng = np.random.default_rng(0)
    >>> seen = rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    >>> table = raybrain.evaluate(seen, drawn=seen, training=seen[::-1], bootstrap=100)
    >>> round(table.score(row="system", metric="pixcorr").value, 3)
    1.0
    """
    named = {SYSTEM: drawn} if not isinstance(drawn, Mapping) else dict(drawn)
    seen = _pictures(seen, name="seen", images=None, dimensions=(4,))
    images = len(seen)
    rows = {
        name: _pictures(row, name=f"drawn, row '{name}',", images=images, dimensions=(4, 5))
        for name, row in named.items()
    }
    if images < 2:
        raise InputError(f"scores tell an image from others, so 2 are needed; seen has {images}")
    if training is not None:
        training = _pictures(training, name="training", images=None, dimensions=(4,))
    floors = {}
    if MEAN_IMAGE not in rows:
        floors[MEAN_IMAGE] = mean_image(seen if training is None else training, images=images)
    if RANDOM_TRAINING not in rows and training is not None:
        floors[RANDOM_TRAINING] = _at_random(training, images=images, seed=seed)
    table = score_rows(
        seen,
        {**floors, **{name: row if row.ndim == 5 else row[:, None] for name, row in rows.items()}},
        protocol=protocol_named(protocol) if isinstance(protocol, str) else protocol,
        image_ids=image_ids,
        bootstrap_resamples=bootstrap,
        seed=seed,
        weights=weights_folder(None if weights is None else str(weights)),
        mapper=mapper,
    )
    if training is None and MEAN_IMAGE not in named:
        table = replace(table, about={**table.about, MEAN_IMAGE: MEAN_OF_SEEN})
    return table


def floor_rows(training: Images, *, images: int, seed: int) -> dict[str, Images]:
    """Return the rows (image, sample, y, x, rgb) that know the training images and no brain.

    Parameters
    ----------
    training : ndarray of uint8, shape (image, y, x, rgb)
    images : int
        How many were seen.
    seed : int
        Of the draw.
    """
    return {
        MEAN_IMAGE: mean_image(training, images=images),
        RANDOM_TRAINING: _at_random(training, images=images, seed=seed),
    }


def _at_random(training: Images, *, images: int, seed: int) -> Images:
    chosen = random_training(
        training=len(training), images=images, samples=RANDOM_SAMPLES, seed=seed
    )
    return training[chosen]


def _pictures(
    array: Images, *, name: str, images: int | None, dimensions: tuple[int, ...]
) -> Images:
    found = np.asarray(array)
    if (
        found.dtype == np.uint8
        and found.ndim in dimensions
        and found.shape[-1] == 3
        and found.size
        and (images is None or len(found) == images)
    ):
        return found
    samples = " or (image, sample, y, x, rgb)" if 5 in dimensions else ""
    many = "" if images is None else f" of {images} images, as many as were seen"
    raise InputError(
        f"{name} should be uint8 (image, y, x, rgb){samples}{many}; found {found.dtype} "
        f"{found.shape}"
    )
