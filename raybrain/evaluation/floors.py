"""Rows that know nothing, or little, of the brain: what a system has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]


def mean_image(training: Images, *, images: int) -> Images:
    """Return a row (image, 1, y, x, rgb) that shows the mean of the training images every time.

    Parameters
    ----------
    training
        (image, y, x, rgb), 0..255; summed in blocks, so a memory map or lazy array will do.
    images
        How many were seen.
    """
    total = np.zeros(training.shape[1:], dtype=np.float64)
    for start in range(0, len(training), 256):
        total += np.asarray(training[start : start + 256]).sum(axis=0, dtype=np.float64)
    mean = np.rint(total / len(training)).astype(np.uint8)
    return np.broadcast_to(mean, (images, 1, *mean.shape)).copy()


def random_training(
    *, training: int, images: int, samples: int = 1, seed: int
) -> NDArray[np.int64]:
    """Return positions (image, sample) of training images drawn at random with replacement.

    Parameters
    ----------
    training : int
        Training images to draw from.
    images : int
        Images that need one.
    samples : int
        Draws for each image.
    seed : int
        Of the draws.
    """
    return np.random.default_rng(seed).integers(training, size=(images, samples))


def nearest_training(
    *,
    predicted: NDArray[np.floating],
    training: NDArray[np.floating],
) -> NDArray[np.int64]:
    """Return the position (image,) of the training target nearest each prediction.

    Nearest by cosine after the training mean is taken from both and each dimension is divided by
    its standard deviation over the training set: retrieval with no generator.

    Parameters
    ----------
    predicted
        (image, ...), of the images to reconstruct.
    training
        (training image, ...), the true targets of the training images.

    Examples
    --------
    >>> training = np.array([[0.0, 1.0], [1.0, 0.0], [-1.0, -1.0]])
    >>> nearest_training(predicted=np.array([[0.9, 0.1], [-5.0, -6.0]]), training=training)
    array([1, 2])
    """
    library = np.asarray(training, dtype=np.float32).reshape(len(training), -1)
    queries = np.asarray(predicted, dtype=np.float32).reshape(len(predicted), -1)
    mean, scale = whitening(library)
    return (_unit((queries - mean) * scale) @ _unit((library - mean) * scale).T).argmax(axis=1)


def whitening(
    library: NDArray[np.floating],
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Return mean and inverse standard deviation (dimension,) of embeddings (image, dimension).

    0 in place of the inverse where nothing varies but rounding.

    Parameters
    ----------
    library : ndarray, shape (image, dimension)
        Embeddings of training images.
    """
    mean, sd = library.mean(axis=0), library.std(axis=0)
    varies = sd > 1e-6 * np.abs(library).max()
    return mean, np.divide(1.0, sd, out=np.zeros_like(sd), where=varies)


def category_means(
    targets: NDArray[np.floating],
    *,
    categories: Sequence[str],
    wanted: Sequence[str],
) -> NDArray[np.float32]:
    """Return the mean training target (image, ...) of each image's true category.

    Drawn by the generator with the mean latents, it shows how far a perfect guess of the category
    goes. An image whose category does not occur in training gets the mean of all.

    Parameters
    ----------
    targets
        (training image, ...).
    categories
        Of the training images.
    wanted
        Of the images to reconstruct.
    """
    groups = np.asarray(categories)
    overall = targets.mean(axis=0, dtype=np.float64)
    means = {
        name: targets[groups == name].mean(axis=0, dtype=np.float64) for name in set(categories)
    }
    return np.stack([means.get(name, overall) for name in wanted]).astype(np.float32)


def _unit(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1.0)
