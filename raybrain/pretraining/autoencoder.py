"""The variational autoencoder: pictures to latents and back."""

from collections.abc import Iterator
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional

from raybrain.pretraining.optimise import Progress, optimise
from raybrain.pretraining.perception import Eye
from raybrain.pretraining.pictures import Pictures, to_unit, vary
from raybrain.pretraining.settings import Autoencoder

SCALING_FACTOR = 0.18215
"""Latents times this have unit variance, as in Stable Diffusion (Rombach et al. 2022, app. G)."""


def new_autoencoder(*, settings: Autoencoder, size: int) -> AutoencoderKL:
    """Return an untrained autoencoder without attention, one residual block per resolution."""
    depth = len(settings.channels)
    return AutoencoderKL(
        sample_size=size,
        block_out_channels=settings.channels,
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        layers_per_block=1,
        latent_channels=settings.latent_channels,
        norm_num_groups=16,
        mid_block_add_attention=False,
        scaling_factor=SCALING_FACTOR,
    )


class ReconstructionLoss(nn.Module):
    """Absolute error + error of hue + perceptual distance + divergence from normal."""

    def __init__(self, vae: AutoencoderKL, *, settings: Autoencoder) -> None:
        super().__init__()
        self.vae = vae
        self.eye = Eye() if settings.perceptual else None
        self.settings = settings

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return loss terms for pixels (n, 3, h, w) in -1..1."""
        posterior = self.vae.encode(pixels).latent_dist
        found = self.vae.decode(posterior.sample()).sample
        error = functional.l1_loss(found.float(), pixels)
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        block = pixels.shape[-1] // posterior.mean.shape[-1]
        red, green, blue = functional.avg_pool2d(found.float() - pixels, block).unbind(1)
        red_green, blue_yellow = red - green, blue - (red + green) / 2
        hue = (red_green.abs() + blue_yellow.abs()).mean()
        terms = {"absolute_error": error, "block_colour": hue, "divergence": divergence}
        loss = error + self.settings.colour * hue + self.settings.kl * divergence
        if self.eye is not None:
            terms["perceptual"] = self.eye.distance(found, pixels)
            loss = loss + self.settings.perceptual * terms["perceptual"]
        terms["psnr_db"] = -10 * (found.float() - pixels).square().mean().div(4).log10()
        return {"loss": loss, **terms}


def fit_autoencoder(
    loss: ReconstructionLoss, pictures: Pictures, *, seed: int, **how: Any
) -> Iterator[Progress]:
    """Train the autoencoder on varied pictures and yield progress; `how` as for `optimise`."""

    def draw(count: int) -> tuple[Tensor]:
        pixels = to_unit(pictures.pixels[pictures.draw(count)])
        return (vary(pixels, flip=0.5, shift=0.04, zoom=0.08, hue=loss.settings.recolour),)

    return optimise(loss, draw=draw, settings=loss.settings.optimisation, seed=seed, **how)


@torch.no_grad()
def standardise_latents(vae: AutoencoderKL, pictures: Pictures, *, batch_size: int = 64) -> None:
    """Give every latent channel mean 0 and standard deviation 1 / scaling factor, in place.

    The affine map is absorbed by the 1x1 convolutions on both sides of the latents, so pictures
    decode as before. Stable Diffusion's single scaling factor then fits every channel.
    """
    values = torch.cat(
        [vae.encode(to_unit(chunk)).latent_dist.mean for chunk in pictures.pixels.split(batch_size)]
    )
    mean = values.mean((0, 2, 3))
    ratio = 1 / (values.std((0, 2, 3)) * vae.config["scaling_factor"])
    inward, outward = vae.quant_conv, vae.post_quant_conv
    channels = len(mean)
    inward.weight[:channels] *= ratio[:, None, None, None]
    inward.bias[:channels] = (inward.bias[:channels] - mean) * ratio
    inward.bias[channels:] += 2 * ratio.log()
    outward.bias += torch.einsum("oixy,i->o", outward.weight, mean)
    outward.weight /= ratio[None, :, None, None]


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: Tensor, *, batch_size: int = 64) -> Tensor:
    """Return scaled latents (n, channels, h, w), the posterior means, of pixels in -1..1."""
    chunks = [vae.encode(chunk).latent_dist.mean for chunk in pixels.split(batch_size)]
    return torch.cat(chunks) * vae.config["scaling_factor"]


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor, *, batch_size: int = 64) -> Tensor:
    """Return pixels (n, 3, h, w) in -1..1 of scaled latents."""
    chunks = [
        vae.decode(chunk / vae.config["scaling_factor"]).sample
        for chunk in latents.split(batch_size)
    ]
    return torch.cat(chunks).clamp(-1, 1)
