"""Image embeddings: how a checkpoint makes them from pictures and how its UNet is told them.

Two published ways. An IP-Adapter (Ye et al. 2023) turns an embedding into tokens that every
cross-attention looks at beside the caption's, on a plain Stable Diffusion. Stable unCLIP was
trained with the embedding, normalised and noised, as a class embedding added to the timestep's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from raybrain.diffusion.checkpoint import LITE1, Checkpoint, hidden_states_wanted

if TYPE_CHECKING:
    import torch

Pictures: TypeAlias = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]
"""Images of one size as an array (image, y, x, rgb), or one by one."""


class ImageConditioning(Protocol):
    """What a checkpoint does with image embeddings."""

    def encode(self, images: Pictures) -> torch.Tensor:
        """Return the embeddings (image, ...) float32 of uint8 (y, x, rgb) images."""

    def telling(
        self,
        embeds: torch.Tensor | None,
        *,
        scale: float,
        noise_level: int,
        guided: bool,
        noise: Sequence[torch.Generator],
    ) -> contextlib.AbstractContextManager[None]:
        """Tell the UNet embeddings (row, ...), or none, while the context is open.

        Parameters
        ----------
        embeds
            One per row; None draws as if the checkpoint knew no images.
        scale
            How much they count; 1 is what the checkpoint was trained with.
        noise_level
            Timesteps of noise to add to them; unCLIP alone.
        guided
            Whether rows are drawn twice, the first time without embeddings.
        noise
            Generators, one per row, for that noise.
        """


@dataclass(frozen=True)
class Encoder:
    """An image encoder with what it wants done to pictures before."""

    network: Any
    """transformers' ``CLIPVisionModelWithProjection``, or `lite1.Lite1WithProjection`."""
    processor: Any
    """transformers' ``CLIPImageProcessor``; None for Lite1, which resizes by itself."""
    hidden_states: bool
    """Whether the last hidden states but one are wanted instead of the pooled embedding."""

    def __call__(self, images: Pictures) -> torch.Tensor:
        """Return embeddings (image, width), or (image, token, width) of hidden states, float32."""
        import torch

        parameter = next(self.network.parameters())
        if self.processor is None:
            # Pictures of one size go through together; of several, one by one.
            shapes = {image.shape for image in images}
            groups = [images] if len(shapes) == 1 else [[image] for image in images]
            with torch.inference_mode():
                return torch.cat([self._lite1(group, device=parameter.device) for group in groups])
        pixels = self.processor(images=list(images), return_tensors="pt").pixel_values
        pixels = pixels.to(parameter)
        with torch.inference_mode():
            if self.hidden_states:
                return self.network(pixels, output_hidden_states=True).hidden_states[-2].float()
            return self.network(pixels).image_embeds.float()

    def _lite1(self, images: Pictures, *, device: Any) -> torch.Tensor:
        import torch

        pixels = torch.from_numpy(np.stack(list(images))).permute(0, 3, 1, 2).float().to(device)
        return self.network(pixels / 127.5 - 1)

    def of_nothing(self) -> torch.Tensor:
        """Return the embedding that stands for no picture, of the same shape less the first axis.

        Zeros, or the hidden states of an empty picture, as diffusers' pipelines do it.
        """
        import torch

        parameter = next(self.network.parameters())
        if not self.hidden_states:
            return torch.zeros(self.network.config.projection_dim, device=parameter.device)
        side = self.network.config.image_size
        empty = torch.zeros((1, 3, side, side)).to(parameter)
        with torch.inference_mode():
            return self.network(empty, output_hidden_states=True).hidden_states[-2][0].float()


@dataclass(frozen=True)
class IPAdapter:
    """Tokens of the embedding beside those of the caption; the UNet carries the adapter."""

    pipeline: Any
    encoder: Encoder
    nothing: torch.Tensor
    """What an unguided row is told; the embedding's shape."""

    def encode(self, images: Pictures) -> torch.Tensor:
        """Return the embeddings of images."""
        return self.encoder(images)

    @contextlib.contextmanager
    def telling(
        self,
        embeds: torch.Tensor | None,
        *,
        scale: float,
        noise_level: int,
        guided: bool,
        noise: Sequence[torch.Generator],
    ) -> Iterator[None]:
        """See `ImageConditioning`; without embeddings the adapter is switched off.

        Not by the pipeline's own argument: for a batch of n it repeats all embeddings n times and
        its attention then shows every row those of all rows.
        """
        shown = self.nothing.expand(len(noise), *self.nothing.shape) if embeds is None else embeds
        shown = shown.to(self.nothing)[:, None]
        if guided:
            shown = _both(self.nothing.expand(len(noise), 1, *self.nothing.shape), shown)
        self.pipeline.set_ip_adapter_scale(0.0 if embeds is None else scale)
        try:
            with _given(self.pipeline.unet, added_cond_kwargs={"image_embeds": [shown]}):
                yield
        finally:
            self.pipeline.set_ip_adapter_scale(1.0)


@dataclass(frozen=True)
class UnCLIP:
    """The embedding as a class embedding, after diffusers' ``StableUnCLIPImg2ImgPipeline``."""

    pipeline: Any
    """diffusers' unCLIP pipeline; it shares its networks with the img2img pipeline that draws."""
    encoder: Encoder

    def encode(self, images: Pictures) -> torch.Tensor:
        """Return the embeddings of images, before normalisation and noise."""
        return self.encoder(images)

    @contextlib.contextmanager
    def telling(
        self,
        embeds: torch.Tensor | None,
        *,
        scale: float,
        noise_level: int,
        guided: bool,
        noise: Sequence[torch.Generator],
    ) -> Iterator[None]:
        """See `ImageConditioning`; no embedding is a class embedding of zeros."""
        import torch

        unet = self.pipeline.unet
        if embeds is None:
            width = unet.config.projection_class_embeddings_input_dim
            classes = torch.zeros((len(noise), width), device=unet.device)
        else:
            drawn = [
                torch.randn(row.shape, generator=g) for row, g in zip(embeds, noise, strict=True)
            ]
            classes = scale * self.pipeline.noise_image_embeddings(
                embeds.to(unet.device),
                noise_level=noise_level,
                noise=torch.stack(drawn).to(unet.device),
            )
        if guided:
            classes = _both(torch.zeros_like(classes), classes)

        with _given(unet, class_labels=classes):
            yield


@contextlib.contextmanager
def _given(unet: Any, **told: Any) -> Iterator[None]:
    """Call the UNet with further arguments while the context is open."""

    def add(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args, kwargs | told

    # First of all hooks: those that lower the precision see what is added.
    hook = unet.register_forward_pre_hook(add, with_kwargs=True, prepend=True)
    try:
        yield
    finally:
        hook.remove()


def _both(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.cat([first, second])


def load_encoder(checkpoint: Checkpoint) -> Encoder:
    """Return the image encoder of a checkpoint that has one, on the CPU, in float32."""
    import torch

    folder = checkpoint.image_encoder
    assert folder is not None
    config = checkpoint.image_encoder_settings()
    if config.get("architectures") == [LITE1]:
        from raybrain.diffusion.lite1 import load_projection

        return Encoder(load_projection(folder), processor=None, hidden_states=False)
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
    network.requires_grad_(False).eval()
    return Encoder(network, processor, hidden_states=hidden_states_wanted(checkpoint))
