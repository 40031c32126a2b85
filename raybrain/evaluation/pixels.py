"""PixCorr and SSIM: what a blurred image wins, so never to be read without the mean-image row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raybrain.evaluation.identification import standardised

LUMA = (0.2125, 0.7154, 0.0721)
"""Weights of red, green and blue in grey (CRT primaries, as `skimage.color.rgb2gray` has them)."""


def pixcorr(
    *, seen: NDArray[np.floating], reconstructed: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return Pearson r (image,) over all values of each pair of images (image, ...); 0 for flat.

    PixCorr of Ozcelik and VanRullen 2023 and Scotti et al. 2023.

    Parameters
    ----------
    seen, reconstructed : ndarray, shape (image, ...)
        Row k of one belongs to row k of the other; trailing axes are one list of values.

    Examples
    --------
    >>> seen = np.array([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    >>> pixcorr(seen=seen, reconstructed=np.array([[5.0, 7.0, 9.0], [1, 1, 1]])).round(3).tolist()
    [1.0, 0.0]
    """
    product = standardised(seen) * standardised(reconstructed)
    return product.sum(axis=1, dtype=np.float64)


def grey(images: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return luminance (image, y, x) of images (image, y, x, rgb) in 0..1."""
    return images @ np.asarray(LUMA, dtype=images.dtype)


def ssim(
    *,
    seen: Iterable[NDArray[np.floating]],
    reconstructed: Iterable[NDArray[np.floating]],
    window: Literal["gaussian", "uniform"] = "gaussian",
) -> NDArray[np.float64]:
    """Return structural similarity (image,) of pairs of grey images (y, x) in 0..1.

    Two-dimensional on one channel, data range 1 (Wang et al. 2004, computed by scikit-image).

    Parameters
    ----------
    seen, reconstructed : iterable of ndarray, shape (y, x) each
        Grey images in 0..1, in pairs.
    window
        ``gaussian``: sigma 1.5 and population covariance, as in the paper. ``uniform``: 7 x 7 and
        sample covariance, scikit-image's own default.
    """
    from skimage.metrics import structural_similarity

    gaussian = window == "gaussian"
    return np.array(
        [
            structural_similarity(
                np.asarray(a, dtype=np.float64),
                np.asarray(b, dtype=np.float64),
                data_range=1.0,
                gaussian_weights=gaussian,
                use_sample_covariance=not gaussian,
                channel_axis=None,
                **({"sigma": 1.5} if gaussian else {"win_size": 7}),
            )
            for a, b in zip(seen, reconstructed, strict=True)
        ]
    )
