"""Predictions to images: img2img from decoded latents with decoded text embeddings."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raybrain.config import Generator, InputError, Reconstruct, letters
from raybrain.diffusion.checkpoint import find_checkpoint
from raybrain.diffusion.compiling import switched_off
from raybrain.diffusion.generator import load_generator
from raybrain.diffusion.gradient_guidance import Guide, guided
from raybrain.diffusion.guidance_interval import Halves, guided_steps
from raybrain.diffusion.image_conditioning import given
from raybrain.diffusion.image_layers import LayerTargets, Likeness, layer_sizes
from raybrain.diffusion.pictures import resize, sendable, sent
from raybrain.diffusion.schedulers import check_steps, scheduler_of
from raybrain.diffusion.silence import quiet
from raybrain.diffusion.targets import encode_pixels

if TYPE_CHECKING:
    import torch

    from raybrain.diffusion.generator import StableDiffusion


def noise_seed(*, seed: int, image_id: int | str, sample: int) -> int:
    """Return the seed of a reconstruction's noise: a function of these three and nothing else.

    Parameters
    ----------
    seed : int
        The experiment's seed.
    image_id : int or str
        Of the image.
    sample : int
        Number of the sample, from 0.
    """
    digest = hashlib.sha256(f"{seed}/{image_id}/{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def draw(
    generator: StableDiffusion,
    *,
    latents: NDArray[np.floating] | None,
    prompt_embeds: NDArray[np.floating] | None,
    image_embeds: NDArray[np.floating] | None = None,
    image_features: LayerTargets | None = None,
    image_ids: Sequence[int | str] | NDArray[Any],
    samples: Sequence[int] | NDArray[np.integer],
    seed: int,
    settings: Reconstruct,
    compiled: bool = True,
) -> NDArray[np.uint8]:
    """Return one image per row, drawn by diffusers' img2img pipeline.

    ``settings.mode`` says what a row is drawn from: ``z`` its latents, ``c`` its text embedding,
    ``e`` its image embedding, or several. Without z it is drawn from pure noise, without c with the
    empty caption, and from z alone without guidance. ``takagi``: z and c, the latents being decoded
    to pixels, enlarged to the generator's resolution and encoded again, as Takagi and Nishimoto did
    (CVPR 2023).

    Parameters
    ----------
    generator : StableDiffusion
        The generator the targets were made with.
    latents : ndarray or None
        (row, channel, y, x) scaled latents; not used by modes without z.
    prompt_embeds : ndarray or None
        (row, token, width), all tokens; not used by modes without c.
    image_embeds : ndarray or None
        (row, width) or (row, token, width); not used by modes without e.
    image_features : LayerTargets or None
        Of the rows; only ``settings.gradient`` looks at them, in modes with e.
    image_ids, samples : sequence, shape (row,)
        For each row the image and the number of the sample. With ``seed`` they determine its noise,
        whatever else is in the batch.
    seed : int
        The experiment's seed.
    settings : Reconstruct
        Mode, strength, guidances, scheduler and steps.
    compiled : bool
        Whether networks that the generator may compile are called so. Any number of threads may
        draw with one generator.

    Returns
    -------
    ndarray
        uint8 (row, y, x, rgb).

    Raises
    ------
    InputError
        If a target is missing, not finite or of the wrong shape, if no step is left at this
        strength, or if the generator itself drew something that is not finite.
    """
    import torch

    rows = len(image_ids)
    if len(samples) != rows:
        raise InputError(f"{rows} image ids need {rows} sample numbers; found {len(samples)}")
    check_steps(settings, name=generator.settings.checkpoint, scheduler=generator.scheduler_config)
    drawn_from = letters(settings.mode)
    if "z" in drawn_from:
        start = _latents(generator, latents=latents, rows=rows)
    else:
        side = generator.latent_size
        start = torch.zeros((rows, generator.pipeline.vae.config.latent_channels, side, side))
    prompt = shown = None
    if "c" in drawn_from:
        prompt = _embeds(generator, prompt_embeds=prompt_embeds, rows=rows)
    if "e" in drawn_from:
        shown = _image_embeds(generator, image_embeds=image_embeds, rows=rows)
    told = _Told(
        start=sendable(start, device=generator.device),
        prompt=None if prompt is None else sendable(prompt, device=generator.device),
        shown=None if shown is None else sendable(shown, device=generator.device),
        image_features=image_features,
        noise=[
            torch.Generator().manual_seed(
                noise_seed(seed=seed, image_id=image_id, sample=int(sample))
            )
            for image_id, sample in zip(image_ids, samples, strict=True)
        ],
    )
    # A GPU is given all that it has to do before it is waited for, so that another thread's batch
    # is there when this one is done.
    with generator.alone:
        off = contextlib.nullcontext() if compiled else switched_off(generator.compiled)
        with off:
            pixels = _drawn(generator, told, settings=settings)
            sound = torch.isfinite(pixels).all()
            images = (pixels * 255).round().byte().permute(0, 2, 3, 1)
    if not sound:
        raise InputError(
            f"'{generator.settings.checkpoint}' drew values that are not finite; "
            f"type generator.dtype=float32, or another reconstruct.scheduler"
        )
    return images.cpu().numpy()


@dataclass(frozen=True)
class _Told:
    """What rows are drawn from, checked and on the host, ready to be sent."""

    start: torch.Tensor
    prompt: torch.Tensor | None
    shown: torch.Tensor | None
    image_features: LayerTargets | None
    noise: list[torch.Generator]


def _drawn(generator: StableDiffusion, told: _Told, *, settings: Reconstruct) -> torch.Tensor:
    """Return pixels (row, rgb, y, x) between 0 and 1, on the device."""
    import torch

    device, pipeline = generator.device, generator.pipeline
    rows = len(told.noise)
    guidance = settings.own_guidance
    empty = generator.unconditional.expand(rows, -1, -1)
    embeds = empty
    if told.prompt is not None:
        decoded = sent(told.prompt, device=device)
        embeds = (
            decoded if settings.prompt_scale == 1 else empty.lerp(decoded, settings.prompt_scale)
        )
    shown = None if told.shown is None else sent(told.shown, device=device)
    start = sent(told.start, device=device)
    halves = None
    if guidance > 1 and settings.guidance_interval is not None:
        steps = guided_steps(settings, generator.scheduler_config)
        halves = Halves(steps, scale=guidance, empty=empty, told=embeds)
    # Not inference_mode, under which nothing can be differentiated.
    with torch.no_grad(), quiet():
        arguments = {}
        if generator.image is not None:
            arguments = generator.image.arguments(
                shown, settings=settings, guided=guidance > 1, noise=told.noise
            )
        if settings.mode == "takagi":
            start = _through_pixels(generator, latents=start)
        pipeline.scheduler = scheduler_of(settings, generator.scheduler_config)
        if settings.gradient is not None and shown is not None:
            guide = Guide(
                generator,
                embeds=shown,
                settings=settings.gradient,
                noise=told.noise,
                layers=_likeness(generator, image_features=told.image_features, rows=rows),
            )
            pipeline.scheduler = guided(pipeline.scheduler, guide)
        with given(pipeline.unet, arguments):
            return pipeline(
                image=start,
                prompt_embeds=embeds,
                negative_prompt_embeds=empty,
                strength=settings.own_strength,
                guidance_scale=guidance if halves is None else halves.scale_of(0),
                num_inference_steps=settings.steps,
                generator=told.noise,
                output_type="pt",
                callback_on_step_end=halves,
            ).images


def _latents(
    generator: StableDiffusion, *, latents: NDArray[np.floating] | None, rows: int
) -> torch.Tensor:
    config = generator.pipeline.unet.config
    halvings = 2 ** (len(config.block_out_channels) - 1)
    side = generator.latent_size
    wanted = f"({rows}, {config.in_channels}, {side}, {side})"
    array = _finite(latents, name="latents", wanted=wanted)
    if (
        array.ndim != 4
        or array.shape[:2] != (rows, config.in_channels)
        or any(length == 0 or length % halvings for length in array.shape[2:])
    ):
        raise InputError(
            f"the latents have shape {array.shape}, but '{generator.settings.checkpoint}' draws "
            f"from {wanted}, or another height and width in multiples of {halvings}; "
            f"predict them again with its own features"
        )
    return array


def _embeds(
    generator: StableDiffusion, *, prompt_embeds: NDArray[np.floating] | None, rows: int
) -> torch.Tensor:
    tokens, width = generator.unconditional.shape
    array = _finite(prompt_embeds, name="prompt_embeds", wanted=f"({rows}, {tokens}, {width})")
    if tuple(array.shape) != (rows, tokens, width):
        raise InputError(
            f"the prompt_embeds have shape {tuple(array.shape)}, but "
            f"'{generator.settings.checkpoint}' reads ({rows}, {tokens}, {width}): "
            f"rows, tokens and width; predict them again with its own features"
        )
    return array


def _image_embeds(
    generator: StableDiffusion, *, image_embeds: NDArray[np.floating] | None, rows: int
) -> torch.Tensor:
    if generator.image is None:
        raise InputError(
            f"'{generator.settings.checkpoint}' has no image encoder, so it cannot draw from image "
            f"embeddings; give it generator.image_adapter, or choose a reconstruct.mode without e"
        )
    shape = generator.image.encoder.shape
    wanted = f"({', '.join(map(str, (rows, *shape)))})"
    array = _finite(image_embeds, name="image_embeds", wanted=wanted)
    if tuple(array.shape) != (rows, *shape):
        raise InputError(
            f"the image_embeds have shape {tuple(array.shape)}, but "
            f"'{generator.settings.checkpoint}' reads {wanted}; they come from another image "
            f"encoder: predict them again with its own features"
        )
    return array


def _likeness(
    generator: StableDiffusion, *, image_features: LayerTargets | None, rows: int
) -> Likeness | None:
    if image_features is None:
        return None
    checkpoint = find_checkpoint(generator.settings)
    sizes = layer_sizes(checkpoint, features=image_features.features)
    array = _finite(image_features.values, name="image_features", wanted=f"({rows}, {sum(sizes)})")
    if tuple(array.shape) != (rows, sum(sizes)):
        raise InputError(
            f"the image_features have shape {tuple(array.shape)}, but the layers of "
            f"'{generator.settings.checkpoint}' that features.layers names have ({rows}, "
            f"{sum(sizes)}); predict them again with its own features"
        )
    return image_features.on(generator.device, sizes=sizes)


def _finite(array: NDArray[np.floating] | None, *, name: str, wanted: str) -> torch.Tensor:
    import torch

    if array is None:
        raise InputError(f"this mode draws from {name} of shape {wanted}, but there are none")
    found = torch.tensor(np.asarray(array, np.float32))
    bad = (~torch.isfinite(found)).reshape(len(found), -1).any(1).nonzero().flatten().tolist()
    if bad:
        raise InputError(
            f"the {name} of {len(bad)} of {len(found)} rows are not finite (the first is row "
            f"{bad[0]}); look at the decoder's training and predict them again"
        )
    return found


def _through_pixels(generator: StableDiffusion, *, latents: torch.Tensor) -> torch.Tensor:
    vae = generator.pipeline.vae
    scaled = latents / generator.scaling_factor
    with switched_off(generator.compiled):  # latents of another size
        pixels = vae.decode(scaled, return_dict=False)[0].clamp(-1, 1)
    return encode_pixels(generator, pixels=resize(pixels, side=generator.resolution))


@dataclass(frozen=True)
class DrawingUnit:
    """The images and samples that share a batch; fixed by the plan, so that bytes never change."""

    image_ids: tuple[int | str, ...]
    samples: tuple[int, ...]
    """Numbers of the samples, each from 0."""
    latents: NDArray[np.floating] | None
    """(image, channel, y, x), or None when the mode does not need them."""
    prompt_embeds: NDArray[np.floating] | None
    """(image, token, width), or None when the mode does not need them."""
    image_embeds: NDArray[np.floating] | None = None
    """(image, ...), or None when the mode does not need them."""
    image_features: LayerTargets | None = None
    """Of the images, or None where gradient guidance does not look at them."""
    settings: Reconstruct | None = None
    """How to draw, where not as the worker was told."""


@dataclass(frozen=True)
class Drawing:
    """What a unit became."""

    image_ids: tuple[int | str, ...]
    samples: tuple[int, ...]
    """Numbers of the samples, each from 0."""
    images: NDArray[np.uint8]
    """(image, sample, y, x, rgb)."""
    seconds: float
    """Wall time of drawing, loading not included; with threads, what it waited for others is."""
    batch: int
    """Rows drawn together: fewer than images x samples after the GPU ran out of memory."""


class DrawingWorker:
    """Loads the generator once and draws unit after unit.

    Threads may share a worker: what one needs before and after drawing goes on while another draws.

    Where the networks are compiled, the first unit is drawn once without: what does not fit into
    memory is found before anything is compiled for a batch of that size.

    Parameters
    ----------
    generator : Generator
        What to load.
    reconstruct : Reconstruct
        How to draw.
    seed : int
        The experiment's seed.
    threads : int
        CPU threads of torch; fixed, because sums over another number of threads round otherwise.
    rows : int, optional
        Images times samples of a whole unit. Compiled networks take batches of that many, the last
        one filled up; those of the first unit if not given.
    """

    def __init__(
        self,
        *,
        generator: Generator,
        reconstruct: Reconstruct,
        seed: int,
        threads: int = 1,
        rows: int | None = None,
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        torch.backends.cudnn.deterministic = True
        self.generator = load_generator(generator)
        self.reconstruct = reconstruct
        self.seed = seed
        self._rows = rows
        self._largest: int | None = None
        self._tried = False
        self._trying = threading.Lock()

    def __call__(self, unit: DrawingUnit) -> Drawing:
        """Return every sample of every image of ``unit``; image by image, sample by sample."""
        images, samples = len(unit.image_ids), len(unit.samples)
        owner = np.repeat(np.arange(images), samples)
        sample = np.tile(np.asarray(unit.samples), images)
        rows = _RowsOfUnit(unit, owner=owner, sample=sample)
        started = time.perf_counter()
        whole = None
        if self._compiles(unit):
            with self._trying:
                self._rows = whole = self._rows or len(owner)
                if not self._tried:
                    self._draw_all(rows, whole=whole, compiled=False)
                    self._tried = True
        pixels, batch = self._draw_all(rows, whole=whole, compiled=whole is not None)
        return Drawing(
            image_ids=unit.image_ids,
            samples=unit.samples,
            images=pixels.reshape(images, samples, *pixels.shape[1:]),
            seconds=time.perf_counter() - started,
            batch=batch,
        )

    def _compiles(self, unit: DrawingUnit) -> bool:
        """Return whether a unit is drawn with compiled networks.

        Another mode may come with batches of another shape, for which all would be compiled again.
        """
        settings = unit.settings or self.reconstruct
        return bool(self.generator.compiled) and settings.mode == self.reconstruct.mode

    def _draw_all(
        self, rows: _RowsOfUnit, *, whole: int | None, compiled: bool
    ) -> tuple[NDArray[np.uint8], int]:
        """Return the images of all rows and how many were drawn together.

        With ``whole`` every batch has that many rows, or as many as fit into memory: the last row
        is drawn again until they are complete.
        """
        import torch

        total = len(rows.owner)
        batch = min(whole or total, self._largest or whole or total)
        drawn: list[NDArray[np.uint8]] = []
        done = 0
        while done < total:
            size = batch if whole else min(batch, total - done)
            chosen = np.minimum(np.arange(done, done + size), total - 1)
            try:
                images = self._draw(rows, chosen, compiled=compiled)
                drawn.append(images[: total - done])
                done += size
            except torch.cuda.OutOfMemoryError as error:
                if batch == 1:
                    raise InputError(
                        f"not even one image of '{self.generator.settings.checkpoint}' fits into "
                        f"the GPU's memory; give each worker more of a GPU "
                        f"(resources.generate.gpus), or type generator.vae_slicing=true"
                    ) from error
                batch = self._largest = -(-batch // 2)
                torch.cuda.empty_cache()
        return np.concatenate(drawn), batch

    def _draw(
        self, rows: _RowsOfUnit, chosen: NDArray[np.integer], *, compiled: bool
    ) -> NDArray[np.uint8]:
        unit, owner = rows.unit, rows.owner[chosen]

        def of_rows(targets: NDArray[np.floating] | None) -> NDArray[np.floating] | None:
            return None if targets is None else targets[owner]

        return draw(
            self.generator,
            latents=of_rows(unit.latents),
            prompt_embeds=of_rows(unit.prompt_embeds),
            image_embeds=of_rows(unit.image_embeds),
            image_features=None if unit.image_features is None else unit.image_features.rows(owner),
            image_ids=[unit.image_ids[index] for index in owner],
            samples=rows.sample[chosen],
            seed=self.seed,
            settings=unit.settings or self.reconstruct,
            compiled=compiled,
        )


@dataclass(frozen=True)
class _RowsOfUnit:
    unit: DrawingUnit
    owner: NDArray[np.integer]
    """(row,) number of the image."""
    sample: NDArray[np.integer]
    """(row,) number of the sample."""
