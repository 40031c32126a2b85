"""The denoiser: a U-Net conditioned on captions and pictures, and a schedule for small latents."""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from raybrain.pretraining.degradation import LatentPrior, draw_noise
from raybrain.pretraining.image_encoder import (
    behind_noise,
    class_embeddings,
    new_noising_scheduler,
)
from raybrain.pretraining.optimise import Progress, optimise
from raybrain.pretraining.perception import Eye, enlarged
from raybrain.pretraining.pictures import to_unit
from raybrain.pretraining.settings import Denoiser, ImageEncoder

STARTED_BETWEEN = (0.4, 0.95)
"""Share of the noise steps between which drawing starts from degraded latents."""
LOOKED_AT = 96
"""Pixels along one side that Lite1 is given in training."""


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
    """Squared error of the predicted velocity, and how far off the picture looks that it leads to.

    v = sqrt(a) noise - sqrt(1 - a) latents (Salimans & Ho 2022); weight min(SNR, c) / (SNR + 1),
    the min-SNR weight for v (Hang et al. 2023). Beside it the perceptual distance of the decoded
    prediction (after Lin & Yang 2024): squared error alone is content with an average of pictures,
    and few drawing steps do not get away from it.

    Parameters
    ----------
    unet
        Trained.
    settings
        Of the denoiser.
    prior
        For degraded latents; none are shown without it.
    vae
        Decodes predictions; stays as it is. No perceptual distance without it.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        *,
        settings: Denoiser,
        prior: LatentPrior | None = None,
        vae: AutoencoderKL | None = None,
    ) -> None:
        super().__init__()
        self.unet = unet
        kept = new_scheduler(settings).alphas_cumprod.clamp(0, 1).float()
        self.register_buffer("kept", kept, persistent=False)
        self.settings = settings
        self.prior = prior
        self.eye = None
        if vae is not None and settings.perceptual:
            self.vae = vae.requires_grad_(False)
            self.eye = Eye()

    def forward(
        self,
        latents: Tensor,
        captions: Tensor,
        pixels: Tensor,
        classes: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the loss.

        Parameters
        ----------
        latents
            (n, c, h, w).
        captions
            (n, tokens, width) hidden states.
        pixels
            (m, 3, y, x) in -1..1, the pictures of the first m latents, which are looked at.
        classes
            (n, 2 * components) class embeddings, for a U-Net that takes them.
        """
        n = len(latents)
        steps = len(self.kept)
        # Stratified over the batch: lower variance than independent draws.
        spread = ((torch.rand(1) + torch.arange(n) / n) % 1)[torch.randperm(n)]
        noise = torch.randn_like(latents)
        if self.prior is not None:
            spread, noise = self._degraded(latents, spread=spread, noise=noise)
        step = (spread * steps).long().to(latents.device)
        kept = self.kept[step][:, None, None, None]
        noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
        velocity = kept.sqrt() * noise - (1 - kept).sqrt() * latents
        found = self.unet(noisy, step, encoder_hidden_states=captions, class_labels=classes).sample
        error = (found.float() - velocity).square().mean((1, 2, 3))
        ratio = (kept / (1 - kept).clamp(min=1e-8)).flatten()
        weight = ratio.clamp(max=self.settings.min_snr) / (ratio + 1)
        # Towards zero signal this weight vanishes, but drawing from a caption alone starts there.
        weight = weight.clamp(min=self.settings.least_weight)
        # What degraded latents lack is more noise than the step has.
        weight = weight / noise.square().mean((1, 2, 3)).clamp(min=1)
        faint = step >= 0.8 * steps
        terms = {
            "error": error.mean(),
            "error_low_signal": error[faint].mean() if faint.any() else error.mean(),
        }
        loss = (weight * error).mean()
        if self.eye is not None and len(pixels):
            looked = slice(len(pixels))
            clean = (kept.sqrt() * noisy - (1 - kept).sqrt() * found)[looked]
            drawn = self.vae.decode(clean / self.vae.config.scaling_factor).sample
            terms["perceptual"] = self.eye.distance(
                enlarged(drawn, size=LOOKED_AT), enlarged(pixels, size=LOOKED_AT)
            )
            loss = loss + self.settings.perceptual * terms["perceptual"]
        return {"loss": loss, **terms}

    def _degraded(self, latents: Tensor, *, spread: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return noise steps and noise with what degraded latents lack counted as noise.

        Drawing that starts at step s from degraded latents d instead of x has, there and at every
        later step of a solver that heads for x, the noise n + sqrt(a_s / (1 - a_s)) (d - x).
        """
        assert self.prior is not None
        n, device = len(latents), latents.device
        low, high = STARTED_BETWEEN
        started = low + (high - low) * torch.rand(n)
        chosen = torch.rand(n) < self.settings.degraded
        kept = self.kept[(started * len(self.kept)).long().to(device)]
        doubt = draw_noise(n, between=self.settings.degraded_noise)
        rescaled = torch.rand(n) < self.settings.degraded_rescaled
        found = self.prior.degrade(latents, noise=doubt.to(device), rescaled=rescaled.to(device))
        share = (kept / (1 - kept)).sqrt() * chosen.to(device)
        off = share[:, None, None, None] * (found - latents)
        return torch.where(chosen, spread * started, spread), noise + off


@dataclass(frozen=True)
class Pictured:
    """The image embeddings that the denoiser learns with."""

    embeds: Tensor
    """(copy, picture, components), whitened."""
    variance: Tensor
    """(components,) before whitening."""
    settings: ImageEncoder

    @functools.cached_property
    def kept(self) -> Tensor:
        """(level,) share of signal power that noise on an embedding leaves."""
        return new_noising_scheduler().alphas_cumprod

    def draw(self, copy: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Return class embeddings (n, 2 * components) and which of them (n,) tell nothing."""
        count = len(chosen)
        noise = draw_noise(count, between=self.settings.noise) * self.variance.mean()
        noise = torch.where(torch.rand(count) < self.settings.clean, torch.zeros(()), noise)
        shown = behind_noise(self.embeds[copy, chosen], variance=self.variance, noise=noise)
        noised = torch.rand(count) < self.settings.noised
        level = torch.randint(len(self.kept), (count,)) * noised
        classes = class_embeddings(shown, level=level, kept=self.kept)
        dropped = torch.rand(count) < self.settings.drop
        return torch.where(dropped[:, None], 0.0, classes), dropped


def fit_denoiser(
    loss: VelocityLoss,
    *,
    latents: Tensor,
    pixels: Tensor,
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
    pixels
        uint8 (copy, picture, 3, y, x), what they were encoded from.
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
        looked = round(loss.settings.looked_at * count) if loss.settings.perceptual else 0
        seen = to_unit(pixels[copy[:looked], chosen[:looked]])
        if pictured is None:
            return latents[copy, chosen], said, seen
        return latents[copy, chosen], said, seen, classes

    return optimise(loss, draw=draw, settings=loss.settings.optimisation, seed=seed, **how)
