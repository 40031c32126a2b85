"""Stimuli to targets: VAE latents of images, text embeddings of captions."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raybrain.config import Features, InputError
from raybrain.diffusion.compiling import switched_off
from raybrain.diffusion.generator import target_shapes
from raybrain.diffusion.pictures import Pictures, sendable, sent, squares, staged

if TYPE_CHECKING:
    import torch

    from raybrain.diffusion.generator import StableDiffusion

BATCHES_AHEAD = 8
"""Batches that a device is given before the first result is waited for."""
_tokenizing = threading.Lock()
"""Fast tokenizers may be used by one thread at a time."""


def encode_images(
    generator: StableDiffusion,
    *,
    images: Pictures,
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
    side, device = shape[-1] * generator.pixels_per_latent, generator.device

    def encode(groups: list[torch.Tensor]) -> tuple[torch.Tensor]:
        pixels = [squares(sent(group, device=device), side=side) for group in groups]
        return (encode_pixels(generator, pixels=torch.cat(pixels)),)

    batches = (staged(batch, device=device) for batch in _batches(images, size=batch_size))
    latents = np.empty((len(images), *shape), np.float32)
    start = 0
    for (encoded,) in _computed(generator, encode, batches):
        latents[start : start + len(encoded)] = encoded
        start += len(encoded)
    return _finite(latents, what="latents", generator=generator)


def _batches(rows: Any, *, size: int) -> Iterator[Any]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _computed(
    generator: StableDiffusion,
    compute: Callable[[Any], Sequence[torch.Tensor]],
    batches: Iterable[Any],
) -> Iterator[list[NDArray[Any]]]:
    """Yield on the host what ``compute`` makes of batch after batch with the networks.

    Batches are prepared, and results fetched, while other threads may have the networks.
    """
    import torch

    left = iter(batches)
    while ahead := list(itertools.islice(left, BATCHES_AHEAD)):
        with generator.alone, torch.inference_mode():
            made = [compute(batch) for batch in ahead]
        for tensors in made:
            yield [tensor.cpu().numpy() for tensor in tensors]


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


def encode_pixels(generator: StableDiffusion, *, pixels: torch.Tensor) -> torch.Tensor:
    """Return scaled latents (image, channel, y, x) of pixels between -1 and 1, on the device."""
    import torch

    with torch.inference_mode():
        posterior = generator.pipeline.vae.encode(pixels.to(generator.device)).latent_dist
        return posterior.mode() * generator.scaling_factor


def embed_images(
    generator: StableDiffusion,
    *,
    images: Pictures,
    batch_size: int = 32,
) -> NDArray[np.float32]:
    """Return the image embeddings that `see_images` returns, without any inner layer.

    Parameters
    ----------
    generator : StableDiffusion
        With an image encoder.
    images : array or sequence of arrays
        uint8, (y, x, rgb) each.
    batch_size : int
        Images embedded together.

    Returns
    -------
    ndarray of float32, shape (image, ...)

    Raises
    ------
    InputError
        If the generator has no image encoder, or it gives values that are not finite.
    """
    return see_images(generator, images=images, features=Features(batch_size=batch_size))[0]


def see_images(
    generator: StableDiffusion,
    *,
    images: Pictures,
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
    encoder = generator.image.encoder

    def see(prepared: list[torch.Tensor]) -> list[torch.Tensor]:
        seen = encoder.see(prepared, features=features)
        return [seen.embeds, *seen.layers]

    batches = map(encoder.prepare, _batches(images, size=features.batch_size))
    parts = list(_computed(generator, see, batches))
    embeds = np.concatenate([one[0] for one in parts])
    embeds = _finite(embeds, what="image embeddings", generator=generator)
    if not features.layers:
        return embeds, None
    layers = np.concatenate([np.concatenate(one[1:], axis=1) for one in parts])
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
    for index, own in enumerate(captions):
        if isinstance(own, str) or not own:
            raise InputError(f"image {index} needs a list of at least one caption; found {own!r}")
    flat = [caption for own in captions for caption in own]
    counts = np.array([len(own) for own in captions], np.int64)
    owner = np.repeat(np.arange(len(captions)), counts)
    device = generator.device

    def embed(tokens: dict[str, torch.Tensor]) -> tuple[torch.Tensor]:
        given = {name: sent(values, device=device) for name, values in tokens.items()}
        return (generator.pipeline.text_encoder(**given)[0],)

    batches = (_tokens(generator, batch) for batch in _batches(flat, size=batch_size))
    sums = np.zeros((len(captions), *generator.unconditional.shape), np.float64)
    encoded = _computed(generator, embed, batches)
    for owners, (embeds,) in zip(_batches(owner, size=batch_size), encoded, strict=True):
        _add_rows(sums, embeds, owner=owners)
    means = (sums / counts[:, None, None]).astype(np.float32)
    return _finite(means, what="text embeddings", generator=generator)


def _tokens(generator: StableDiffusion, captions: list[str]) -> dict[str, torch.Tensor]:
    """Return what the text encoder is given of captions, (caption, token) each, on the host.

    The same as by the pipeline's ``encode_prompt``, which would wait for the device.
    """
    tokenizer, network = generator.pipeline.tokenizer, generator.pipeline.text_encoder
    with _tokenizing:
        tokens = tokenizer(
            captions,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
    names = ["input_ids"]
    if getattr(network.config, "use_attention_mask", False):
        names.append("attention_mask")
    return {name: sendable(tokens[name], device=generator.device) for name in names}


def _add_rows(
    sums: NDArray[np.float64], rows: NDArray[np.float32], *, owner: NDArray[np.integer]
) -> None:
    """Add each row to the sum of its owner, in order; owners ascend."""
    rank = np.arange(len(owner)) - np.searchsorted(owner, owner)
    for turn in range(rank.max() + 1):
        here = rank == turn
        sums[owner[here]] += rows[here]


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
