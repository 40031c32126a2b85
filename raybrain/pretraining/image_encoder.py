"""The image encoder of a pocket generator, and what the U-Net is told of its embeddings.

They reach the U-Net as in Stable unCLIP: noised at a level, beside that level's embedding, as a
class embedding that joins the timestep's in every residual block, those at the finest resolution
included, where this U-Net has no cross-attention.
"""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor

from raybrain.config import InputError
from raybrain.diffusion.lite1 import POOLED, Lite1WithProjection
from raybrain.pretraining.settings import ImageEncoder

NOISE_LEVELS = 1000
"""Timesteps of the noise that may be added to an embedding."""


def new_image_encoder(settings: ImageEncoder) -> Lite1WithProjection:
    """Return an encoder whose projection is still to be fitted."""
    return Lite1WithProjection(size=settings.size, components=settings.components)


@torch.no_grad()
def fit_projection(encoder: Lite1WithProjection, *, features: Tensor, weight: Tensor) -> None:
    """Fit the projection to whitened principal components, in place.

    Each feature is standardised, then divided by the root of how many its layer has, so that both
    layers count the same.

    Parameters
    ----------
    encoder
        Its projection and its variances, largest first, are overwritten.
    features
        (n, 2048) of the pictures to fit on.
    weight
        (n,) of each picture; need not add up to 1.

    Raises
    ------
    InputError
        If the features vary in fewer directions than there are components.
    """
    rows = features.double()
    share = (weight.double() / weight.double().sum())[:, None]
    mean = (share * rows).sum(0)
    deviation = (share * (rows - mean).square()).sum(0).sqrt()
    layers = torch.full_like(mean, POOLED)
    layers[POOLED:] = len(mean) - POOLED
    scale = torch.where(
        deviation > 1e-6 * deviation.max(), 1 / (deviation * layers.sqrt()).clamp(min=1e-12), 0.0
    )
    _, variance, axes = principal_components((rows - mean) * scale, share=share)
    kept = variance[: encoder.projection.out_features]
    rank = int((variance > 1e-9 * variance.max()).sum())
    if rank < len(kept):
        raise InputError(
            f"image_encoder.components is {len(kept)}, but the features of these pictures vary in "
            f"{rank} directions only; type image_encoder.components={rank} or less"
        )
    axes = axes[:, : len(kept)]
    axes = axes * axes.sum(0).sign()  # eigenvectors have no sign of their own
    weight_of = (axes / kept.sqrt()).T * scale
    encoder.projection.weight.copy_(weight_of)
    encoder.projection.bias.copy_(-(weight_of @ mean))
    encoder.projection.variance.copy_(kept)


def principal_components(rows: Tensor, *, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean (d,), variances (d,) and axes (d, d) of rows (n, d), largest variance first.

    ``share`` (n, 1) is the weight of each row and adds up to 1.
    """
    mean = (share * rows).sum(0)
    variance, axes = torch.linalg.eigh((share * (rows - mean)).T @ (rows - mean))
    return mean, variance.flip(0), axes.flip(1)


def behind_noise(embeds: Tensor, *, variance: Tensor, noise: Tensor) -> Tensor:
    """Return the posterior mean of whitened embeddings seen through white noise on the features.

    A component of variance v behind noise of variance s keeps the share r = v / (v + s) of what it
    says; the posterior mean of its whitened value e is r e + sqrt(r (1 - r)) n, of variance r.

    Parameters
    ----------
    embeds
        (n, components), unit variance each.
    variance
        (components,) before whitening.
    noise
        (n,) variance of the noise, in the unit of `variance`.
    """
    kept = variance / (variance + noise[:, None])
    return kept * embeds + (kept * (1 - kept)).sqrt() * torch.randn_like(embeds)


def new_noising_scheduler() -> DDPMScheduler:
    """Return the schedule of the noise that may be added to embeddings, as Stable unCLIP's."""
    return DDPMScheduler(num_train_timesteps=NOISE_LEVELS, beta_schedule="squaredcos_cap_v2")


def class_embeddings(embeds: Tensor, *, level: Tensor, kept: Tensor) -> Tensor:
    """Return what the U-Net is told: embeddings noised at a level, then the level's embedding.

    Parameters
    ----------
    embeds
        (n, components).
    level
        (n,) timesteps.
    kept
        (level,) share of signal power at each level.

    Returns
    -------
    Tensor
        (n, 2 * components), as diffusers' ``StableUnCLIPImg2ImgPipeline`` makes them.
    """
    share = kept[level][:, None]
    noised = share.sqrt() * embeds + (1 - share).sqrt() * torch.randn_like(embeds)
    told = get_timestep_embedding(
        level, embeds.shape[1], flip_sin_to_cos=True, downscale_freq_shift=0
    )
    return torch.cat([noised, told], dim=1)
