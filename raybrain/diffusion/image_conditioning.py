"""Image embeddings: how a checkpoint makes them from pictures and how its UNet is told them.

Two published ways. An IP-Adapter (Ye et al. 2023) turns an embedding into tokens that every
cross-attention looks at beside the caption's, on a plain Stable Diffusion. Stable unCLIP was
trained with the embedding, normalised and noised, as a class embedding added to the timestep's.
"""

from __future__ import annotations

import contextlib
import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raybrain.config import Features
from raybrain.diffusion.checkpoint import (
    LITE1,
    Checkpoint,
    hidden_states_wanted,
    image_embeds_shape,
)
from raybrain.diffusion.image_layers import of_tokens, on_grid
from raybrain.diffusion.pictures import Pictures, between_ones, sendable, sent, staged

if TYPE_CHECKING:
    import torch

    from raybrain.config import Reconstruct

NO_LAYERS = Features()
"""The embedding alone."""


@dataclass(frozen=True)
class Seen:
    """What an encoder makes of pictures, float32."""

    embeds: torch.Tensor
    """(image, width), or (image, token, width) of hidden states."""
    layers: list[torch.Tensor]
    """For each of ``features.layers`` (image, feature)."""


@dataclass(frozen=True)
class Encoder:
    """An image encoder with what it wants done to pictures before."""

    network: Any
    """transformers' ``CLIPVisionModelWithProjection``, or `lite1.Lite1WithProjection`."""
    processor: Any
    """transformers' ``CLIPImageProcessor``; None for Lite1, which resizes by itself."""
    hidden_states: bool
    """Whether the last hidden states but one are wanted instead of the pooled embedding."""
    shape: tuple[int, ...]
    """Of one embedding."""

    def __call__(self, images: Pictures, *, features: Features = NO_LAYERS) -> Seen:
        """Return what pictures look like to the encoder, those of several sizes one by one."""
        import torch

        with torch.inference_mode():
            return self.see(self.prepare(images), features=features)

    def prepare(self, images: Pictures) -> list[torch.Tensor]:
        """Return pictures as `see` takes them: on the host, whatever the network's device."""
        device = next(self.network.parameters()).device
        if self.processor is None:
            return staged(images, device=device)
        pixels = self.processor(images=list(images), return_tensors="pt").pixel_values
        return [sendable(pixels, device=device)]

    def see(self, prepared: list[torch.Tensor], *, features: Features = NO_LAYERS) -> Seen:
        """Return what pictures that were prepared look like, without waiting for the device."""
        import torch

        parameter = next(self.network.parameters())
        shown = [sent(group, device=parameter.device) for group in prepared]
        if self.processor is not None:
            (pixels,) = shown
            return self._clip(pixels.to(parameter), features=features)
        # Pictures of one size go through together; of several, one by one.
        parts = [self._lite1(between_ones(group), features=features) for group in shown]
        layers = zip(*(one.layers for one in parts), strict=True)
        return Seen(torch.cat([one.embeds for one in parts]), [*map(torch.cat, layers)])

    def look(self, pixels: torch.Tensor, *, features: Features = NO_LAYERS) -> Seen:
        """Return what pixels (image, 3, y, x) in -1..1 look like, differentiable.

        They are on the encoder's device.
        """
        if self.processor is None:
            return self._lite1(pixels.float(), features=features)
        # transformers' processor differentiates what it does to tensors.
        images = (pixels.float() + 1) / 2
        shown = self.processor(images=images, do_rescale=False, return_tensors="pt")
        return self._clip(shown.pixel_values, features=features)

    def cosine(self, found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Return the cosine (image,) of embeddings (image, ...), differentiable.

        Dimensions that Lite1's projection has whitened count by their variance again: the cosine
        is that of the features.
        """
        import torch

        if self.processor is None:
            weight = self.network.projection.variance.sqrt()
            found, wanted = found * weight, wanted * weight
        return torch.nn.functional.cosine_similarity(found.flatten(1), wanted.flatten(1))

    def _clip(self, pixels: torch.Tensor, *, features: Features = NO_LAYERS) -> Seen:
        """Return what the network makes of what the processor made of pictures."""
        inner = self.hidden_states or bool(features.layers)
        made = self.network(pixels, output_hidden_states=inner)
        states = made.hidden_states
        embeds = states[-2] if self.hidden_states else made.image_embeds
        layers = [of_tokens(states[k].float(), grid=features.grid) for k in features.layers]
        return Seen(embeds.float(), layers)

    def _lite1(self, pixels: torch.Tensor, *, features: Features) -> Seen:
        seen, maps = self.network.look(pixels, blocks=features.layers)
        layers = [on_grid(one, grid=features.grid) for one in maps]
        return Seen(self.network.projection(seen), layers)

    def of_nothing(self) -> torch.Tensor:
        """Return the embedding that stands for no picture, of the same shape less the first axis.

        Zeros, or the hidden states of an empty picture, as diffusers' pipelines do it.
        """
        import torch

        parameter = next(self.network.parameters())
        if not self.hidden_states:
            return torch.zeros(self.shape, device=parameter.device)
        side = self.network.config.image_size
        with torch.inference_mode():
            return self._clip(torch.zeros((1, 3, side, side)).to(parameter)).embeds[0]


@dataclass(frozen=True)
class ImageConditioning(ABC):
    """What a checkpoint does with image embeddings."""

    pipeline: Any
    """diffusers' pipeline, whose UNet is told."""
    encoder: Encoder

    @abstractmethod
    def arguments(
        self,
        embeds: torch.Tensor | None,
        *,
        settings: Reconstruct,
        guided: bool,
        noise: Sequence[torch.Generator],
    ) -> dict[str, Any]:
        """Return what the UNet has to be called with besides, to draw from embeddings.

        Parameters
        ----------
        embeds
            (row, ...), on the UNet's device; None draws as if the checkpoint knew no images.
        settings
            Scale and noise level.
        guided
            Whether rows are drawn twice, the first time without embeddings.
        noise
            Generators, one per row, for noise on the embeddings.
        """


class IPAdapter(ImageConditioning):
    """Tokens of the embedding beside those of the caption; the UNet carries the adapter."""

    @functools.cached_property
    def nothing(self) -> torch.Tensor:
        """What an unguided row is told; the embedding's shape."""
        return self.encoder.of_nothing()

    def arguments(
        self,
        embeds: torch.Tensor | None,
        *,
        settings: Reconstruct,
        guided: bool,
        noise: Sequence[torch.Generator],
    ) -> dict[str, Any]:
        """See `ImageConditioning`; without embeddings the adapter is switched off.

        Not by the pipeline's own argument: for a batch of n it repeats all embeddings n times and
        its attention then shows every row those of all rows.
        """
        nothing = self.nothing.expand(len(noise), *self.nothing.shape)
        shown = nothing if embeds is None else embeds
        # It holds until the next drawing, which sets its own.
        self.pipeline.set_ip_adapter_scale(0.0 if embeds is None else settings.image_scale)
        told = _after(nothing, shown) if guided else shown
        return {"added_cond_kwargs": {"image_embeds": [told[:, None]]}}


class UnCLIP(ImageConditioning):
    """The embedding as a class embedding, after diffusers' ``StableUnCLIPImg2ImgPipeline``.

    ``pipeline`` is that one; it shares its networks with the img2img pipeline that draws.
    """

    def arguments(
        self,
        embeds: torch.Tensor | None,
        *,
        settings: Reconstruct,
        guided: bool,
        noise: Sequence[torch.Generator],
    ) -> dict[str, Any]:
        """See `ImageConditioning`; no embedding is a class embedding of zeros."""
        import torch

        unet = self.pipeline.unet
        if embeds is None:
            width = unet.config.projection_class_embeddings_input_dim
            classes = torch.zeros((len(noise), width), device=unet.device)
        else:
            drawn = [torch.randn(self.encoder.shape, generator=source) for source in noise]
            classes = settings.image_scale * self.pipeline.noise_image_embeddings(
                embeds,
                noise_level=settings.noise_level,
                noise=torch.stack(drawn).to(unet.device),
            )
        told = _after(torch.zeros_like(classes), classes) if guided else classes
        return {"class_labels": told}


@contextlib.contextmanager
def given(unet: Any, arguments: dict[str, Any]) -> Iterator[None]:
    """Call the UNet with further arguments while the context is open.

    A batch of fewer rows than they have is the half that is told, which is the last.
    """

    def add(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args, kwargs | {name: _last(told, len(args[0])) for name, told in arguments.items()}

    # First of all hooks: those that lower the precision see what is added.
    hook = unet.register_forward_pre_hook(add, with_kwargs=True, prepend=True)
    try:
        yield
    finally:
        hook.remove()


def _last(told: Any, rows: int) -> Any:
    """Return the last rows of a tensor, or of each in a mapping or a list of some."""
    if isinstance(told, dict):
        return {name: _last(one, rows) for name, one in told.items()}
    if isinstance(told, list):
        return [_last(one, rows) for one in told]
    return told[-rows:]


def _after(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.cat([first, second])


def load_encoder(checkpoint: Checkpoint, *, device: torch.device) -> Encoder:
    """Return the image encoder of a checkpoint that has one, in float32."""
    import torch

    folder, shape = checkpoint.image_encoder, image_embeds_shape(checkpoint)
    assert folder is not None
    assert shape is not None
    network: Any
    if checkpoint.image_encoder_settings().get("architectures") == [LITE1]:
        from raybrain.diffusion.lite1 import load_projection

        network, processor = load_projection(folder), None
    else:
        from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

        network = CLIPVisionModelWithProjection.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
        described = checkpoint.image_processor
        if described is None:
            # What diffusers' load_ip_adapter does where no processor is described.
            side = network.config.image_size
            processor = CLIPImageProcessor(size=side, crop_size=side)
        else:
            processor = CLIPImageProcessor.from_pretrained(described, local_files_only=True)
    network.requires_grad_(False).eval().to(device)
    wanted = hidden_states_wanted(checkpoint)
    return Encoder(network, processor, hidden_states=wanted, shape=shape)
