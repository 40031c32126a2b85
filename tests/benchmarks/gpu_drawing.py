"""Drawing at the size of Stable Diffusion v1.4: ours, plain diffusers, and the networks alone."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from raybrain.config import Features, Generator, GuidanceInterval, InputError, Reconstruct
from raybrain.diffusion import DrawingUnit, DrawingWorker, target_shapes
from raybrain.diffusion.compiling import switched_off
from tests.benchmarks.gpu_machine import Size, fastest, most_memory, seconds
from tests.diffusion.generators import TINY, V1_4, write_generator

HOW = Reconstruct(steps=20, strength=0.8, guidance=5.0)
IMAGES, SAMPLES = 4, 5
INTERVAL = {"guidance_interval": GuidanceInterval(low=0.28, high=2.9)}
WAYS: dict[str, dict[str, Any]] = {
    "dpm-solver++, 20 steps": {},
    "guidance interval .28 to 2.9": INTERVAL,
    "no guidance": {"guidance": 1.0},
    "dpm-solver++, 10 steps": {"steps": 10},
    "unipc, 20 steps": {"scheduler": "unipc"},
    "unipc, 10 steps": {"scheduler": "unipc", "steps": 10},
    "ddim, trailing, 8 steps, no guidance": {
        "scheduler": "ddim",
        "spacing": "trailing",
        "steps": 8,
        "guidance": 1.0,
    },
    "lcm, 4 steps, no guidance": {"scheduler": "lcm", "steps": 4, "guidance": 1.0},
}
COMPILED_WAYS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("dpm-solver++, 20 steps", {}, "none"),
    ("guidance interval .28 to 2.9", INTERVAL, "none"),
    ("int8", {}, "int8"),
    ("float8", {}, "float8"),
)
ATTENTION = {
    "chosen by torch": None,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def write_checkpoint(folder: Path, *, size: Size) -> Path:
    """Write a generator with random weights of the size that is measured, and return its folder."""
    if not (folder / "model_index.json").is_file():
        with torch.device(size.device):
            write_generator(folder, **size.of(V1_4, TINY))
    return folder


def measure(size: Size, folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield one figure after another."""
    checkpoint = str(write_checkpoint(folder, size=size))
    unit = unit_of(checkpoint)
    yield from eager(checkpoint, unit, size=size)
    yield from of_diffusers(checkpoint, unit, size=size)
    torch._dynamo.reset()
    compiled = worker_of(checkpoint, size=size, compiled=True)
    yield (
        "ours, compiled: seconds of the first batch",
        seconds(lambda: compiled(unit), device=size.device),
    )
    yield "ours, compiled", of_batch(lambda: compiled(unit), size=size)
    rows = IMAGES * SAMPLES
    flops = operations(compiled, rows=rows)
    for name, network in networks_alone(compiled, rows=rows).items():
        if name != "encoder":
            spent = fastest(network, device=size.device)
            yield f"{name}, compiled", rated(spent, flops[name])


def eager(checkpoint: str, unit: DrawingUnit, *, size: Size) -> Iterator[tuple[str, Any]]:
    """Yield the networks in every memory format and with every attention, and a batch as it is."""
    started = time.perf_counter()
    worker = worker_of(checkpoint, size=size, compiled=False)
    yield "seconds to load", time.perf_counter() - started
    networks = networks_alone(worker, rows=IMAGES * SAMPLES)
    flops = operations(worker, rows=IMAGES * SAMPLES)
    yield "operations of an image", {name: each / IMAGES / SAMPLES for name, each in flops.items()}
    pipeline = worker.generator.pipeline
    for layout in (torch.channels_last, torch.contiguous_format):
        pipeline.unet.to(memory_format=layout)
        for name, kernel in ATTENTION.items():
            if kernel and size.device.type == "cpu":
                continue
            with sdpa_kernel(kernel) if kernel else contextlib.nullcontext():
                try:
                    spent = fastest(networks["unet"], device=size.device)
                except RuntimeError as error:  # the kernel does not take these shapes
                    yield f"unet, {layout}, attention {name}", str(error).splitlines()[0]
                    continue
            yield f"unet, {layout}, attention {name}", rated(spent, flops["unet"])
    for layout in (torch.contiguous_format, torch.channels_last):
        pipeline.vae.to(memory_format=layout)
        for name in ("decoder", "encoder"):
            spent = fastest(networks[name], device=size.device)
            yield f"{name}, {layout}", rated(spent, flops[name])
    most_memory(size.device)
    yield "ours", of_batch(lambda: worker(unit), size=size)
    one = unit_of(checkpoint, images=1, samples=1)
    spent = fastest(lambda: worker(one), device=size.device, rounds=2)
    yield "ours, images one by one", {"images a second": 1 / spent}


def settings(size: Size, folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield a batch with each of the faster ways to draw, beside one without.

    A LoRA is part of the weights once it is loaded, so ``lcm`` takes the same time without one.
    """
    checkpoint = str(write_checkpoint(folder, size=size))
    unit = unit_of(checkpoint)
    worker = worker_of(checkpoint, size=size, compiled=False)
    for name, how in WAYS.items():
        told = dataclasses.replace(unit, settings=HOW.model_copy(update=how))
        yield name, of_batch(functools.partial(worker, told), size=size)
    for name, how, quantize in COMPILED_WAYS:
        torch._dynamo.reset()
        try:
            worker = worker_of(checkpoint, size=size, compiled=True, quantize=quantize, how=how)
        except InputError as error:  # no such card, or the package is not installed
            yield f"{name}, compiled", str(error)
            continue
        work = functools.partial(worker, unit)
        yield f"{name}, compiled: seconds of the first batch", seconds(work, device=size.device)
        yield f"{name}, compiled", of_batch(work, size=size)


def worker_of(
    checkpoint: str,
    *,
    size: Size,
    compiled: bool,
    quantize: str = "none",
    how: dict[str, Any] | None = None,
) -> DrawingWorker:
    generator = Generator.model_validate(
        {
            "checkpoint": checkpoint,
            "compile": compiled,
            "quantize": quantize,
            "device": size.device.type,
        }
    )
    return DrawingWorker(
        generator=generator,
        reconstruct=HOW.model_copy(update=how or {}),
        seed=0,
        threads=torch.get_num_threads(),
    )


def unit_of(checkpoint: str, *, images: int = IMAGES, samples: int = SAMPLES) -> DrawingUnit:
    shapes = target_shapes(Generator(checkpoint=checkpoint), features=Features())
    rng = np.random.default_rng(0)
    return DrawingUnit(
        image_ids=tuple(range(images)),
        samples=tuple(range(samples)),
        latents=rng.standard_normal((images, *shapes.latents), np.float32),
        prompt_embeds=rng.standard_normal((images, *shapes.prompt_embeds), np.float32),
    )


def networks_alone(worker: DrawingWorker, *, rows: int) -> dict[str, Callable[[], object]]:
    """Return calls of the UNet with both halves of guidance, and of the VAE, for so many images."""
    generator = worker.generator
    pipeline, side = generator.pipeline, generator.latent_size
    tokens, width = generator.unconditional.shape
    device = generator.device
    latents = torch.randn(2 * rows, 4, side, side, device=device)
    embeds = torch.randn(2 * rows, tokens, width, device=device)
    pixels = torch.randn(rows, 3, generator.resolution, generator.resolution, device=device)
    when = torch.tensor(500, device=device)
    calls: dict[str, Callable[[], object]] = {
        "unet": lambda: pipeline.unet(
            latents, when, encoder_hidden_states=embeds, return_dict=False
        ),
        "decoder": lambda: pipeline.vae.decode(latents[:rows], return_dict=False),
        "encoder": lambda: pipeline.vae.encode(pixels, return_dict=False),
    }
    return {name: torch.no_grad()(call) for name, call in calls.items()}


def operations(worker: DrawingWorker, *, rows: int) -> dict[str, float]:
    """Return the floating-point operations of each call of `networks_alone`."""
    found = {}
    for name, call in networks_alone(worker, rows=1).items():
        with switched_off(worker.generator.compiled), FlopCounterMode(display=False) as counter:
            call()
        found[name] = float(counter.get_total_flops()) * rows
    return found


def of_batch(work: Callable[[], object], *, size: Size) -> dict[str, float | None]:
    """Return the seconds of a batch, images a second and the memory that it takes."""
    spent = fastest(work, device=size.device)
    return {
        "seconds": spent,
        "images a second": IMAGES * SAMPLES / spent,
        "gigabytes": most_memory(size.device),
    }


def rated(spent: float, operations: float) -> dict[str, float]:
    return {"seconds": spent, "tflops": operations / spent / 1e12}


def of_diffusers(checkpoint: str, unit: DrawingUnit, *, size: Size) -> Iterator[tuple[str, Any]]:
    """Yield what anyone's loop over the library's pipeline gives, as it is and compiled."""
    pipeline, draw = diffusers_loop(checkpoint, unit, size=size)
    yield "diffusers", of_batch(draw, size=size)
    pipeline.unet = torch.compile(pipeline.unet)
    pipeline.vae.decode = torch.compile(pipeline.vae.decode)
    yield "diffusers, compiled: seconds of the first batch", seconds(draw, device=size.device)
    yield "diffusers, compiled", of_batch(draw, size=size)


def diffusers_loop(
    checkpoint: str, unit: DrawingUnit, *, size: Size
) -> tuple[Any, Callable[[], object]]:
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionImg2ImgPipeline

    dtype = torch.float16 if size.device.type == "cuda" else torch.float32
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(
        checkpoint, dtype=dtype, safety_checker=None, requires_safety_checker=False
    ).to(size.device)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    assert unit.latents is not None
    assert unit.prompt_embeds is not None
    each = functools.partial(np.repeat, repeats=SAMPLES, axis=0)
    latents = torch.tensor(each(unit.latents), device=size.device, dtype=dtype)
    embeds = torch.tensor(each(unit.prompt_embeds), device=size.device, dtype=dtype)

    def draw() -> object:
        return pipeline(
            image=latents,
            prompt_embeds=embeds,
            negative_prompt_embeds=torch.zeros_like(embeds),
            strength=HOW.strength,
            guidance_scale=HOW.guidance,
            num_inference_steps=HOW.steps,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).images

    return pipeline, draw
