"""Gradient guidance: what is being drawn is moved until it looks like what was decoded.

Classifier-free guidance asks the network for more of an embedding and takes what it gives. Here the
result is looked at. At a denoising step the network's guess of the clean latents is decoded to
pixels and seen by the checkpoint's own image encoder, and the guess is moved up the gradient of how
alike that is to what was decoded: the image embedding, which says what the picture is of, and the
features of inner layers, which say what is where. The gradient passes the encoder and the VAE's
decoder, never the U-Net, as in manifold preserving guided diffusion (He et al., ICLR 2024).

Every look is at a picture shifted by a few pixels of its own, so that no step can answer to the
encoder's grid alone: other networks have to see the gain too.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raybrain.config import GradientGuidance
from raybrain.diffusion.image_conditioning import NO_LAYERS

if TYPE_CHECKING:
    import torch

    from raybrain.diffusion.generator import StableDiffusion
    from raybrain.diffusion.image_layers import Likeness

SHIFT = 1 / 16
"""Of the picture's side, at most, in each direction."""
AT_ONCE = 8
"""Rows per backward pass: its activations are the most memory that drawing needs."""
LOSS_SCALE = 256.0
"""Lifts the gradient of a cosine, spread over all pixels, well above float16's smallest numbers."""


@dataclass(frozen=True)
class Guide:
    """Moves guesses of the clean latents towards what was decoded of pictures."""

    generator: StableDiffusion
    """With an image encoder."""
    embeds: torch.Tensor
    """(row, ...) decoded image embeddings, on the generator's device."""
    settings: GradientGuidance
    """Size and number of the steps."""
    noise: Sequence[torch.Generator]
    """One per row, for the shifts: a row's do not depend on what else is in the batch."""
    layers: Likeness | None = None
    """To decoded features of inner layers, on the generator's device."""

    def move(self, clean: torch.Tensor) -> torch.Tensor:
        """Return what has to be added to clean latents (row, channel, y, x).

        The sum of ``repeats`` steps, whose root mean squares over a row's latents fall linearly to
        zero and are ``size`` on average: large ones find the way, small ones arrive.
        """
        import torch

        moved = clean
        repeats = self.settings.repeats
        for done in range(repeats):
            starts = range(0, len(clean), AT_ONCE)
            gradient = torch.cat(
                [self._gradient(moved, rows=slice(start, start + AT_ONCE)) for start in starts]
            )
            length = gradient.square().mean((1, 2, 3), keepdim=True).sqrt()
            size = self.settings.size * (2 * (repeats - done) - 1) / repeats
            # A gradient of nothing moves nothing.
            moved = moved + size * gradient / length.clamp_min(1e-12)
        return moved - clean

    def _gradient(self, clean: torch.Tensor, *, rows: slice) -> torch.Tensor:
        import torch

        with torch.enable_grad():
            latents = clean[rows].detach().requires_grad_()
            scaled = latents / self.generator.scaling_factor
            pixels = self.generator.pipeline.vae.decode(scaled, return_dict=False)[0].clamp(-1, 1)
            alike = self._alike(_shifted(pixels, noise=self.noise[rows]), rows=rows)
            (gradient,) = torch.autograd.grad(LOSS_SCALE * alike.sum(), latents)
        return gradient

    def _alike(self, pixels: torch.Tensor, *, rows: slice) -> torch.Tensor:
        """Return (row,) weighted cosines between what pixels look like and what was decoded."""
        image = self.generator.image
        assert image is not None
        layers = self.layers if self.settings.layers > 0 else None
        seen = image.encoder.look(pixels, features=layers.features if layers else NO_LAYERS)
        cosine = image.encoder.cosine(seen.embeds, self.embeds[rows])
        if layers is None:
            return cosine
        return self.settings.embedding * cosine + self.settings.layers * layers.cosine(
            seen.layers, rows=rows
        )


def _shifted(pixels: torch.Tensor, *, noise: Sequence[torch.Generator]) -> torch.Tensor:
    """Return each picture moved by up to `SHIFT` along x and y, its border repeated."""
    import torch

    height, width = pixels.shape[2:]
    most = round(SHIFT * min(height, width))
    padded = torch.nn.functional.pad(pixels, [most] * 4, mode="replicate")
    shown = []
    for row, source in zip(padded, noise, strict=True):
        top, left = torch.randint(0, 2 * most + 1, (2,), generator=source).tolist()
        shown.append(row[:, top : top + height, left : left + width])
    return torch.stack(shown)


def guided(scheduler: Any, guide: Guide) -> Any:
    """Return the scheduler with its last ``guide.settings.last`` steps guided, whichever it is.

    A change of the clean latents is handed to the scheduler as the change of the network's output
    that means the same.
    """
    plain = scheduler.step

    @functools.wraps(plain)
    def step(model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        if (scheduler.timesteps[-guide.settings.last :] == timestep).any():
            kept = scheduler.alphas_cumprod[int(timestep)].to(sample)
            signal, noise = kept.sqrt(), (1 - kept).sqrt()
            kind = scheduler.config.prediction_type
            if kind == "epsilon":
                clean, per_clean = (sample - noise * model_output) / signal, -signal / noise
            elif kind == "v_prediction":
                clean, per_clean = signal * sample - noise * model_output, -1 / noise
            else:
                clean, per_clean = model_output, 1
            model_output = model_output + per_clean * guide.move(clean)
        return plain(model_output, timestep, sample, *args, **kwargs)

    scheduler.step = step
    return scheduler
