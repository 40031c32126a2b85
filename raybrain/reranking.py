"""Choosing among samples by the brain alone; the true image is never looked at.

By encoding: a linear encoding model, fitted on training images, predicts every voxel's response
from an image's features, and of the S reconstructions of a test image the one is chosen whose
predicted response pattern correlates best with the measured one. By embedding: the one is chosen
whose image embedding is nearest the embedding decoded from the brain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raybrain.decoders import factorise, fit_factor
from raybrain.decoders.ridge import RidgeFit
from raybrain.evaluation import whitening

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
    device: str | None = None,
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
    device : str, optional
        Where torch computes, such as ``cuda``; NumPy does on the CPU when not given.

    Raises
    ------
    ValueError
        If no voxel is predicted better than by its mean.
    """
    factor = factorise(features, count=count, device=device)
    # Voxels that images do not drive choose the largest penalty, as they should: no warning.
    fit = fit_factor(factor, targets=responses)
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


def side_by_side(
    seen: Mapping[str, NDArray[np.floating]], candidates: Mapping[str, NDArray[np.floating]]
) -> tuple[Floats, Floats]:
    """Return features of several kinds next to each other, each kind with total variance 1.

    Parameters
    ----------
    seen : mapping of str to ndarray, shape (image, ...)
        By kind, of the training images; the means and variances are theirs.
    candidates : mapping of str to ndarray, shape (image, sample, ...)
        The same kinds, of the reconstructions.

    Returns
    -------
    tuple of ndarray
        (image, feature) and (image, sample, feature).
    """
    fitted, chosen = [], []
    for kind, values in seen.items():
        flat = values.reshape(len(values), -1).astype(np.float32)
        mean = flat.mean(axis=0)
        scale = np.sqrt(flat.var(axis=0, dtype=np.float64).sum())
        drawn = candidates[kind]
        drawn = drawn.reshape(*drawn.shape[:2], -1).astype(np.float32)
        fitted.append((flat - mean) / (scale or 1.0))
        chosen.append((drawn - mean) / (scale or 1.0))
    return (
        np.concatenate(fitted, axis=1).astype(np.float32),
        np.concatenate(chosen, axis=2).astype(np.float32),
    )


def nearest_sample(
    candidates: NDArray[np.floating],
    *,
    decoded: NDArray[np.floating],
    training: NDArray[np.floating],
) -> NDArray[np.intp]:
    """Return the sample of each image whose embedding is nearest the decoded one; first of equals.

    Nearest by cosine, from the training mean and each dimension in training standard deviations.

    Parameters
    ----------
    candidates : ndarray, shape (image, sample, ...)
        Embeddings of the reconstructions.
    decoded : ndarray, shape (image, ...)
    training : ndarray, shape (training image, ...)
        True embeddings of the training images.
    """
    images, samples = candidates.shape[:2]
    library = training.reshape(len(training), -1).astype(np.float64)
    mean, scale = whitening(library)
    drawn = (candidates.reshape(images, samples, -1) - mean) * scale
    wanted = (decoded.reshape(images, -1) - mean) * scale
    along = np.einsum("isd,id->is", drawn, wanted)
    length = np.linalg.norm(drawn, axis=2)
    cosine = np.divide(along, length, out=np.full_like(along, -np.inf), where=length > 0)
    return cosine.argmax(axis=1)


def _unit(patterns: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return each row centred and of length 1, or of zeros where it does not vary."""
    centred = patterns - patterns.mean(axis=1, keepdims=True, dtype=np.float64)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)
