"""The denoiser: a U-Net conditioned on captions and pictures, and a schedule for small latents."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional

from raybrain.pretraining.image_encoder import (
    behind_noise,
    class_embeddings,
    new_noising_scheduler,
)
from raybrain.pretraining.optimise import Progress, optimise
from raybrain.pretraining.settings import Denoiser, ImageEncoder

DEGRADED_BETWEEN = (0.4, 0.95)
"""Share of the noise steps between which degraded latents are shown: before, blur is no noise."""


def new_denoiser(
    *,
    settings: Denoiser,
    sample_size: int,
    latent_channels: int,
    text_width: int,
    components: int | None = None,
) -> UNet2DConditionModel:
    """Return an untrained U-Net that looks at the caption at all but the finest resolution.

    With `components`, an image embedding of so many joins the timestep's in every block.
    """
    depth = len(settings.channels)
    told = (
        {}
        if components is None
        else {
            "class_embed_type": "projection",
            "projection_class_embeddings_input_dim": 2 * components,
        }
    )
    unet = UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=settings.channels,
        layers_per_block=settings.layers,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (depth - 1),
        up_block_types=("CrossAttnUpBlock2D",) * (depth - 1) + ("UpBlock2D",),
        mid_block_type="UNetMidBlock2DCrossAttn",
        cross_attention_dim=text_width,
        attention_head_dim=tuple(max(1, c // settings.heads_of) for c in settings.channels),
        norm_num_groups=16,
        **told,
    )
    if components is not None:
        # At first the embedding changes nothing, so training can go on from a U-Net without one.
        torch.nn.init.zeros_(unet.class_embedding.linear_2.weight)
        torch.nn.init.zeros_(unet.class_embedding.linear_2.bias)
    return unet


def new_scheduler(settings: Denoiser) -> DDIMScheduler:
    """Return a sampler with a cosine schedule whose signal-to-noise ratio is shifted.

    Noise that hides a picture of 64 x 64 latents destroys one of 16 x 16, because fewer values
    carry each detail; the shift of the log signal-to-noise ratio makes up for it (Hoogeboom et al.
    2023, simple diffusion, eq. 6). The last step is pure noise (Lin et al. 2024), so drawing from
    a caption alone starts where training did.
    """
    kept = alphas_cumprod(steps=settings.noise_steps, shift=settings.log_snr_shift)
    before = torch.cat([torch.ones(1, dtype=kept.dtype), kept[:-1]])
    return DDIMScheduler(
        num_train_timesteps=settings.noise_steps,
        trained_betas=(1 - kept / before).tolist(),
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,  # unused with trailing steps; diffusers warns of any other value
    )


def alphas_cumprod(*, steps: int, shift: float) -> Tensor:
    """Return the share of signal power (steps,) left at each step, 0 at the last.

    log SNR(t) = -2 log tan(pi t / 2) + shift, t = 1/steps .. 1.
    """
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    log_snr = -2 * torch.log(torch.tan(math.pi * t / 2).clamp(min=1e-12)) + shift
    kept = torch.sigmoid(log_snr)
    kept[-1] = 0
    return kept


class VelocityLoss(nn.Module):
    """Squared error of the predicted velocity, weighted by the clipped signal-to-noise ratio.

    v = sqrt(a) noise - sqrt(1 - a) latents (Salimans & Ho 2022); weight min(SNR, c) / (SNR + 1),
    the min-SNR weight for v (Hang et al. 2023).
    """

    def __init__(self, unet: UNet2DConditionModel, *, settings: Denoiser) -> None:
        super().__init__()
        self.unet = unet
        kept = new_scheduler(settings).alphas_cumprod.clamp(0, 1).float()
        self.register_buffer("kept", kept, persistent=False)
        self.settings = settings

    def forward(
        self, latents: Tensor, captions: Tensor, classes: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the loss.

        Parameters
        ----------
        latents
            (n, c, h, w).
        captions
            (n, tokens, width) hidden states.
        classes
            (n, 2 * components) class embeddings, for a U-Net that takes them.
        """
        n = len(latents)
        steps = len(self.kept)
        # Stratified over the batch: lower variance than independent draws.
        spread = ((torch.rand(1) + torch.arange(n) / n) % 1)[torch.randperm(n)]
        degraded = torch.rand(n) < self.settings.degraded
        low, high = DEGRADED_BETWEEN
        spread = torch.where(degraded, low + (high - low) * spread, spread)
        step = (spread * steps).long().to(latents.device)
        degraded = degraded.to(latents.device)[:, None, None, None]
        kept = self.kept[step][:, None, None, None]
        noise = torch.randn_like(latents)
        start = torch.where(degraded, degrade(latents), latents)
        noisy = kept.sqrt() * start + (1 - kept).sqrt() * noise
        velocity = kept.sqrt() * noise - (1 - kept).sqrt() * latents
        # From degraded latents, the velocity that leads to the sharp ones: the blur is noise too.
        towards_sharp = (kept.sqrt() * noisy - latents) / (1 - kept).sqrt().clamp(min=1e-4)
        velocity = torch.where(degraded, towards_sharp, velocity)
        found = self.unet(noisy, step, encoder_hidden_states=captions, class_labels=classes).sample
        error = (found.float() - velocity).square().mean((1, 2, 3))
        ratio = (kept / (1 - kept).clamp(min=1e-8)).flatten()
        weight = ratio.clamp(max=self.settings.min_snr) / (ratio + 1)
        # Towards zero signal this weight vanishes, but drawing from a caption alone starts there.
        weight = weight.clamp(min=self.settings.least_weight)
        faint = step >= 0.8 * steps
        return {
            "loss": (weight * error).mean(),
            "error": error.mean(),
            "error_low_signal": error[faint].mean() if faint.any() else error.mean(),
        }


def degrade(latents: Tensor) -> Tensor:
    """Return latents (n, c, h, w) as blurred and blotched as those decoded from a brain."""
    n, channels = latents.shape[:2]
    sigma = 0.3 + 1.2 * torch.rand(n, 1)
    reach = torch.arange(-4, 5)
    kernel = torch.exp(-0.5 * (reach / sigma).square())
    kernel = (kernel / kernel.sum(1, keepdim=True)).to(latents)
    blotch = 0.7 * torch.rand(n, 1, 1, 1).to(latents) * torch.randn_like(latents)

    def blur(maps: Tensor, kernels: Tensor) -> Tensor:
        flat = functional.pad(maps, (4, 4, 4, 4), mode="replicate")
        flat = flat.reshape(1, n * channels, *flat.shape[-2:])
        along = kernels.repeat_interleave(channels, 0)[:, None]
        flat = functional.conv2d(flat, along[:, :, None, :], groups=n * channels)
        flat = functional.conv2d(flat, along[:, :, :, None], groups=n * channels)
        return flat.reshape(latents.shape)

    return blur(latents, kernel) + blur(blotch, torch.full_like(kernel, 1 / kernel.shape[1]))


@dataclass(frozen=True)
class Pictured:
    """The image embeddings that the denoiser learns with."""

    embeds: Tensor
    """(copy, picture, components), whitened."""
    variance: Tensor
    """(components,) before whitening."""
    settings: ImageEncoder

    def draw(self, copy: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Return class embeddings (n, 2 * components) and which of them (n,) tell nothing."""
        count = len(chosen)
        low, high = (math.log(bound) for bound in self.settings.noise)
        noise = torch.exp(low + (high - low) * torch.rand(count)) * self.variance.mean()
        noise = torch.where(torch.rand(count) < self.settings.clean, torch.zeros(()), noise)
        shown = behind_noise(self.embeds[copy, chosen], variance=self.variance, noise=noise)
        kept = new_noising_scheduler().alphas_cumprod
        level = torch.randint(len(kept), (count,)) * (torch.rand(count) < self.settings.noised)
        classes = class_embeddings(shown, level=level, kept=kept)
        dropped = torch.rand(count) < self.settings.drop
        return torch.where(dropped[:, None], 0.0, classes), dropped


def fit_denoiser(
    loss: VelocityLoss,
    *,
    latents: Tensor,
    captions: Tensor,
    owner: Tensor,
    empty: Tensor,
    weight: Tensor,
    seed: int,
    pictured: Pictured | None = None,
    **how: Any,
) -> Iterator[Progress]:
    """Train the U-Net and yield progress; `how` as for `optimise`.

    Parameters
    ----------
    loss
        Holds the U-Net.
    latents
        (copy, picture, c, h, w), scaled; one copy is drawn at a time.
    captions
        (caption, tokens, width) hidden states of all captions.
    owner
        (picture, 2): the first caption of each picture and one past its last.
    empty
        (tokens, width) hidden states of the empty caption.
    weight
        (picture,) how often each is drawn, relative to the others.
    pictured
        The image embeddings of all copies, for a U-Net that takes them.
    """
    copies = len(latents)

    def draw(count: int) -> tuple[Tensor, ...]:
        chosen = torch.multinomial(weight, count, replacement=True)
        first, last = owner[chosen].unbind(1)
        which = first + (torch.rand(count) * (last - first)).long()
        said = captions[which]
        copy = torch.randint(copies, (count,))
        said = said + loss.settings.caption_noise * torch.randn_like(said)
        with_caption = torch.full((count,), 1 - loss.settings.drop_caption)
        if pictured is not None:
            classes, alone = pictured.draw(copy, chosen)
            beside = torch.tensor(loss.settings.caption_beside_image)
            with_caption = torch.where(alone, with_caption, beside)
        said = torch.where((torch.rand(count) < with_caption)[:, None, None], said, empty)
        if pictured is None:
            return latents[copy, chosen], said
        return latents[copy, chosen], said, classes

    return optimise(loss, draw=draw, settings=loss.settings.optimisation, seed=seed, **how)
