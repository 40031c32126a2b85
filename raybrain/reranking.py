"""Choosing among samples by the brain alone: the one whose predicted response fits best.

A linear encoding model, fitted on training images, predicts every voxel's response from an image's
features. Of the S reconstructions of a test image the one is chosen whose predicted response
pattern correlates best with the measured one. The true image is never looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raybrain.decoders import factorise, join_blocks
from raybrain.decoders.ridge import ALPHAS, RidgeFit, solve_blocks

Floats = NDArray[np.float32]
Integers = NDArray[np.integer]


@dataclass(frozen=True)
class EncodingModel:
    """Ridge regression from an image's features to the voxels that it can predict.

    Attributes
    ----------
    fit : RidgeFit
        Of every voxel.
    voxels : ndarray of bool, shape (voxel,)
        Those whose held-out variance is explained better than by the mean.
    """

    fit: RidgeFit
    voxels: NDArray[np.bool_]

    def predict(self, features: NDArray[np.floating]) -> Floats:
        """Return responses (image, predictable voxel) to features (image, feature)."""
        return self.fit.predict(features)[:, self.voxels]


def fit_encoding(
    features: NDArray[np.floating],
    *,
    responses: NDArray[np.floating],
    count: Integers | None = None,
) -> EncodingModel:
    """Return the encoding model of the training images, a penalty per voxel by leaving one out.

    Parameters
    ----------
    features : ndarray, shape (image, feature)
        Of the stimuli shown, such as their VAE latents; several kinds side by side should be
        scaled to the same total variance first.
    responses : ndarray, shape (image, voxel)
        Standardised betas, one row per image.
    count : ndarray of int, shape (image,), optional
        Repeats averaged in each row of ``responses``.

    Raises
    ------
    ValueError
        If no voxel is predicted better than by its mean.
    """
    factor = factorise(features, count=count)
    # Voxels that images do not drive choose the largest penalty, as they should: no warning.
    blocks = list(solve_blocks(factor, targets=responses, alphas=ALPHAS))
    fit = join_blocks(blocks, centre=factor.centre)
    voxels = fit.held_out_r2 > 0
    if not voxels.any():
        raise ValueError(
            f"none of {responses.shape[1]} voxels is predicted from these features better than by "
            f"its mean, so samples cannot be told apart; check that features and responses are of "
            f"the same images in the same order"
        )
    return EncodingModel(fit=fit, voxels=voxels)


@dataclass(frozen=True)
class Reranked:
    """Which sample of each image the brain prefers.

    Attributes
    ----------
    chosen : ndarray of int, shape (image,)
        Position of the preferred sample; the first of equals.
    correlation : ndarray of float64, shape (image, sample)
        Pearson r over the predictable voxels between predicted and measured response, each as the
        deviation from the training mean.
    """

    chosen: NDArray[np.intp]
    correlation: NDArray[np.float64]


def rerank(
    model: EncodingModel,
    *,
    candidates: NDArray[np.floating],
    responses: NDArray[np.floating],
) -> Reranked:
    """Return the sample of each image whose predicted response correlates best with the brain's.

    Parameters
    ----------
    model : EncodingModel
    candidates : ndarray, shape (image, sample, feature)
        Features of the reconstructions, made as those the model was fitted on.
    responses : ndarray, shape (image, voxel)
        Measured responses to the images, standardised as the training responses.

    Raises
    ------
    ValueError
        If there is not one response for each image.
    """
    images, samples, length = candidates.shape
    if len(responses) != images:
        raise ValueError(f"{images} images need {images} responses, found {len(responses)}")
    mean = model.fit.mean[model.voxels]
    predicted = model.predict(candidates.reshape(images * samples, length)) - mean
    measured = responses[:, model.voxels] - mean
    one = _unit(predicted).reshape(images, samples, -1)
    correlation = np.einsum("isv,iv->is", one, _unit(measured))
    return Reranked(chosen=correlation.argmax(axis=1), correlation=correlation)


def _unit(patterns: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return each row centred and of length 1, or of zeros where it does not vary."""
    centred = patterns - patterns.mean(axis=1, keepdims=True, dtype=np.float64)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)
