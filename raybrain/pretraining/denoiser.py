"""The denoiser: a U-Net conditioned on captions, and the noise schedule made for small latents."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from raybrain.pretraining.optimise import Progress, optimise
from raybrain.pretraining.settings import Denoiser


def new_denoiser(
    *, settings: Denoiser, sample_size: int, latent_channels: int, text_width: int
) -> UNet2DConditionModel:
    """Return an untrained U-Net that looks at the caption at all but the finest resolution."""
    depth = len(settings.channels)
    return UNet2DConditionModel(
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
    )


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

    def forward(self, latents: Tensor, captions: Tensor) -> dict[str, Tensor]:
        """Return the loss for latents (n, c, h, w) and hidden states (n, tokens, width)."""
        n = len(latents)
        # Stratified over the batch: lower variance than independent draws.
        spread = (torch.rand(1) + torch.arange(n) / n) % 1
        step = (spread[torch.randperm(n)] * len(self.kept)).long().to(latents.device)
        kept = self.kept[step][:, None, None, None]
        noise = torch.randn_like(latents)
        noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
        velocity = kept.sqrt() * noise - (1 - kept).sqrt() * latents
        found = self.unet(noisy, step, encoder_hidden_states=captions).sample
        error = (found.float() - velocity).square().mean((1, 2, 3))
        ratio = (kept / (1 - kept).clamp(min=1e-8)).flatten()
        weight = ratio.clamp(max=self.settings.min_snr) / (ratio + 1)
        # Towards zero signal this weight vanishes, but drawing from a caption alone starts there.
        weight = weight.clamp(min=self.settings.least_weight)
        low = step >= 0.8 * len(self.kept)
        return {
            "loss": (weight * error).mean(),
            "error": error.mean(),
            "error_low_signal": error[low].mean() if low.any() else error.mean(),
        }


def fit_denoiser(
    loss: VelocityLoss,
    *,
    latents: Tensor,
    captions: Tensor,
    owner: Tensor,
    empty: Tensor,
    weight: Tensor,
    seed: int,
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
    """
    copies = len(latents)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        chosen = torch.multinomial(weight, count, replacement=True)
        first, last = owner[chosen].unbind(1)
        which = first + (torch.rand(count) * (last - first)).long()
        said = captions[which]
        dropped = torch.rand(count) < loss.settings.drop_caption
        said = said + loss.settings.caption_noise * torch.randn_like(said)
        said = torch.where(dropped[:, None, None], empty, said)
        return latents[torch.randint(copies, (count,)), chosen], said

    return optimise(loss, draw=draw, settings=loss.settings.optimisation, seed=seed, **how)
