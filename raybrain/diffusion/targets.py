"""Stimuli to targets: VAE latents of images, text embeddings of captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raybrain.config import Features, InputError
from raybrain.diffusion.compiling import switched_off
from raybrain.diffusion.generator import target_shapes

if TYPE_CHECKING:
    import torch

    from raybrain.diffusion.generator import StableDiffusion


def encode_images(
    generator: StableDiffusion,
    *,
    images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
    resolution: int | None = None,
    batch_size: int = 32,
) -> NDArray[np.float32]:
    """Return the mean of the VAE's posterior for each image, times the scaling factor.

    Parameters
    ----------
    generator : StableDiffusion
        The generator that will draw from these latents.
    images : array or sequence of arrays
        uint8, (y, x, rgb) each; resized to ``resolution`` (bicubic, antialiased).
    resolution : int, optional
        Pixels along one side; the generator's own when not given.
    batch_size : int
        Images encoded together.

    Returns
    -------
    ndarray
        float32 (image, channel, y, x).

    Raises
    ------
    InputError
        If an image is not uint8 RGB, the resolution does not suit the generator, or its VAE gives
        values that are not finite, as that of Stable Diffusion may in float16.
    """
    import torch

    shape = target_shapes(generator, features=Features(resolution=resolution)).latents
    side = shape[-1] * generator.pixels_per_latent
    latents = np.empty((len(images), *shape), np.float32)
    for start in range(0, len(images), batch_size):
        batch = torch.cat(
            [_pixels(image, side=side) for image in images[start : start + batch_size]]
        )
        latents[start : start + len(batch)] = encode_pixels(generator, pixels=batch).cpu().numpy()
    return _finite(latents, what="latents", generator=generator)


def decode_latents(
    generator: StableDiffusion, *, latents: NDArray[np.floating], batch_size: int = 8
) -> NDArray[np.uint8]:
    """Return the VAE's pictures of scaled latents, without any diffusion.

    Parameters
    ----------
    generator : StableDiffusion
    latents : ndarray
        (image, channel, y, x), as `encode_images` gives them.
    batch_size : int
        Images decoded together.

    Returns
    -------
    ndarray
        uint8 (image, y, x, rgb).
    """
    import torch

    vae, parts = generator.pipeline.vae, []
    with torch.inference_mode(), switched_off(generator.compiled):
        for start in range(0, len(latents), batch_size):
            batch = torch.tensor(latents[start : start + batch_size], dtype=torch.float32)
            scaled = batch.to(generator.device) / generator.scaling_factor
            pixels = vae.decode(scaled, return_dict=False)[0].float().clamp(-1, 1)
            parts.append(((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(parts)


def _pixels(image: NDArray[np.uint8], *, side: int) -> torch.Tensor:
    """Return an image as (1, rgb, side, side) float32 between -1 and 1."""
    import torch

    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise InputError(
            f"an image is {image.dtype} of shape {image.shape}, but should be uint8 (y, x, 3)"
        )
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float()
    return resize(pixels / 127.5 - 1, side=side)


def resize(pixels: torch.Tensor, *, side: int) -> torch.Tensor:
    """Return (image, rgb, y, x) pixels between -1 and 1 as squares of ``side`` pixels."""
    from torch.nn.functional import interpolate

    if pixels.shape[-2:] == (side, side):
        return pixels
    larger = interpolate(pixels, (side, side), mode="bicubic", antialias=True, align_corners=False)
    return larger.clamp(-1, 1)  # bicubic weights overshoot at edges


def encode_pixels(generator: StableDiffusion, *, pixels: torch.Tensor) -> torch.Tensor:
    """Return scaled latents (image, channel, y, x) of pixels between -1 and 1, on the device."""
    import torch

    with torch.inference_mode():
        posterior = generator.pipeline.vae.encode(pixels.to(generator.device)).latent_dist
        return posterior.mode() * generator.scaling_factor


def embed_images(
    generator: StableDiffusion,
    *,
    images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
    batch_size: int = 32,
) -> NDArray[np.float32]:
    """Return the image embeddings that `see_images` returns, without any inner layer."""
    return see_images(generator, images=images, features=Features(batch_size=batch_size))[0]


def see_images(
    generator: StableDiffusion,
    *,
    images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
    features: Features,
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Return what the checkpoint's image encoder makes of each image: embedding and inner layers.

    Parameters
    ----------
    generator : StableDiffusion
        The generator that will draw from these embeddings.
    images : array or sequence of arrays
        uint8, (y, x, rgb) each; prepared as the encoder's own processor does it.
    features : Features
        ``layers`` on their ``grid``, and ``batch_size``, the images encoded together.

    Returns
    -------
    embeds : ndarray
        float32 (image, width), or (image, token, width) of hidden states.
    layers : ndarray or None
        float32 (image, feature), one layer after the other; None if none is wanted.

    Raises
    ------
    InputError
        If the generator has no image encoder, or it gives values that are not finite.
    """
    if generator.image is None:
        raise InputError(
            f"'{generator.settings.checkpoint}' has no image encoder; give it "
            f"generator.image_adapter, or choose a checkpoint that has one"
        )
    size = features.batch_size
    parts = [
        generator.image.encoder(images[start : start + size], features=features)
        for start in range(0, len(images), size)
    ]
    embeds = np.concatenate([one.embeds.cpu().numpy() for one in parts])
    embeds = _finite(embeds, what="image embeddings", generator=generator)
    if not features.layers:
        return embeds, None
    layers = np.concatenate(
        [np.concatenate([layer.cpu().numpy() for layer in one.layers], axis=1) for one in parts]
    )
    return embeds, _finite(layers, what="image features", generator=generator)


def _finite(
    values: NDArray[np.float32], *, what: str, generator: StableDiffusion
) -> NDArray[np.float32]:
    bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
    if len(bad):
        raise InputError(
            f"'{generator.settings.checkpoint}' gives {what} that are not finite of {len(bad)} of "
            f"{len(values)} images; type generator.dtype=float32"
        )
    return values


def encode_captions(
    generator: StableDiffusion, *, captions: Sequence[Sequence[str]], batch_size: int = 64
) -> NDArray[np.float32]:
    """Return the text embedding of each image, averaged over its captions.

    Parameters
    ----------
    generator : StableDiffusion
        The generator that will draw from these embeddings.
    captions : sequence of sequence of str
        One or more captions for each image; longer ones are cut at the tokenizer's length.
    batch_size : int
        Captions encoded together.

    Returns
    -------
    ndarray
        float32 (image, token, width): the last hidden state of the text encoder.

    Raises
    ------
    InputError
        If an image has no caption, or the text encoder gives values that are not finite.
    """
    import torch

    from raybrain.diffusion.generator import quiet

    for index, own in enumerate(captions):
        if isinstance(own, str) or not own:
            raise InputError(f"image {index} needs a list of at least one caption; found {own!r}")
    flat = [caption for own in captions for caption in own]
    embeds = np.zeros((len(captions), *generator.unconditional.shape), np.float64)
    owner = np.repeat(np.arange(len(captions)), [len(own) for own in captions])
    pipeline = generator.pipeline
    with torch.inference_mode(), quiet():
        for start in range(0, len(flat), batch_size):
            part = slice(start, start + batch_size)
            encoded, _ = pipeline.encode_prompt(flat[part], generator.device, 1, False)
            np.add.at(embeds, owner[part], encoded.double().cpu().numpy())
    counts = np.bincount(owner, minlength=len(captions))
    means = (embeds / counts[:, None, None]).astype(np.float32)
    return _finite(means, what="text embeddings", generator=generator)


def complete_prompt(
    first: NDArray[np.floating], *, mean: NDArray[np.floating]
) -> NDArray[np.float32]:
    """Return whole prompts whose first tokens are given and whose other tokens are the mean's.

    Parameters
    ----------
    first : ndarray
        (image, k, width) decoded embeddings of the first k tokens.
    mean : ndarray
        (token, width) mean embedding over the training images.

    Returns
    -------
    ndarray
        float32 (image, token, width).

    Raises
    ------
    InputError
        If there are more tokens than in the mean, or their width differs.
    """
    if first.ndim != 3 or first.shape[1] > mean.shape[0] or first.shape[2] != mean.shape[1]:
        raise InputError(
            f"prompt embeddings of shape {first.shape} do not fit a mean of shape {mean.shape}; "
            f"they should be (image, at most {mean.shape[0]} tokens, {mean.shape[1]})"
        )
    whole = np.repeat(mean[None].astype(np.float32), len(first), axis=0)
    whole[:, : first.shape[1]] = first
    return whole
