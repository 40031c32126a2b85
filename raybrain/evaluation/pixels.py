"""PixCorr and SSIM: what a blurred image wins, so never to be read without the mean-image row."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from raybrain.evaluation.identification import standardised

LUMA = (0.2125, 0.7154, 0.0721)
"""Weights of red, green and blue in grey (CRT primaries, as `skimage.color.rgb2gray` has them)."""


def pixcorr(
    *, seen: NDArray[np.floating], reconstructed: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return Pearson r (image,) over all values of each pair of images (image, ...); 0 for flat."""
    product = standardised(seen) * standardised(reconstructed)
    return product.sum(axis=1, dtype=np.float64)


def grey(images: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return luminance (image, y, x) of images (image, y, x, rgb) in 0..1."""
    return images @ np.asarray(LUMA, dtype=images.dtype)


def ssim(
    *,
    seen: Iterable[NDArray[np.floating]],
    reconstructed: Iterable[NDArray[np.floating]],
) -> NDArray[np.float64]:
    """Return structural similarity (image,) of pairs of grey images (y, x) in 0..1.

    Gaussian window of sigma 1.5, population covariance, data range 1, two-dimensional on one
    channel (Wang et al. 2004, computed by scikit-image).
    """
    from skimage.metrics import structural_similarity

    return np.array(
        [
            structural_similarity(
                np.asarray(a, dtype=np.float64),
                np.asarray(b, dtype=np.float64),
                data_range=1.0,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
                channel_axis=None,
            )
            for a, b in zip(seen, reconstructed, strict=True)
        ]
    )
