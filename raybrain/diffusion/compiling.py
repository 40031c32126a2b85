"""A generator's networks compiled: when that pays, for one shape, once on a node.

``torch.compile`` makes another program for every shape that it meets, which takes most of a minute
for Stable Diffusion. So batches that are not whole are filled up (`raybrain.diffusion.drawing`),
and the workers of a node share what the first of them compiled. Only a guidance interval that some
steps lie in and others do not has two shapes of the UNet, whole batches and halves.
"""

from __future__ import annotations

import contextlib
import getpass
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybrain.config import Generator, Reconstruct
from raybrain.diffusion.checkpoint import find_checkpoint, tensor_shapes
from raybrain.diffusion.guidance_interval import guided_steps

if TYPE_CHECKING:
    from raybrain.diffusion.generator import Pipeline

CACHE = "TORCHINDUCTOR_CACHE_DIR"
FLOPS_PER_WEIGHT_AND_LATENT = 0.228
"""Of a UNet: 803 GFLOP for the 860 million weights and 64 x 64 latents of Stable Diffusion v1.4."""
EAGER, COMPILED = 260e12, 362e12
"""FLOP/s of that UNet with 40 rows in float16 on one H100, as it is and compiled."""
COMPILING = 90.0
"""Seconds until the first batch is drawn on a machine of 16 CPUs, nothing being kept of before."""


class Compiled:
    """A network's ``forward`` that is compiled at its first call with so many rows.

    What is differentiated is not compiled: it would be another program. Nor is anything while it is
    switched off.

    Attributes
    ----------
    on : bool
        Whether calls go to what is compiled.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        import torch

        self._eager = forward
        self._compiled = torch.compile(forward, dynamic=False)
        self._ready: set[int] = set()
        self.on = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the network."""
        import torch

        if not self.on or torch.is_grad_enabled():
            return self._eager(*args, **kwargs)
        rows = len(args[0])
        if rows in self._ready:
            return self._compiled(*args, **kwargs)
        with _one_at_a_time():
            result = self._compiled(*args, **kwargs)
        self._ready.add(rows)
        return result


def compile_networks(pipeline: Pipeline) -> tuple[Compiled, ...]:
    """Let the pipeline's UNet and VAE decoder be compiled when they are first called."""
    found = []
    for network in (pipeline.unet, pipeline.vae.decoder):
        network.forward = Compiled(network.forward)
        found.append(network.forward)
    return tuple(found)


@contextlib.contextmanager
def switched_off(networks: Sequence[Compiled]) -> Iterator[None]:
    """Call networks as they are, while the context is open."""
    before = [network.on for network in networks]
    try:
        for network in networks:
            network.on = False
        yield
    finally:
        for network, was in zip(networks, before, strict=True):
            network.on = was


def pays(
    settings: Generator, *, reconstruct: Reconstruct, images: int, workers: int, on_gpu: bool
) -> bool:
    """Return whether workers should compile the networks that they draw with.

    The answer is ``settings.compile``, or, for ``auto``, whether each saves more time than
    compiling takes. That follows from the plan alone, because a compiled network rounds otherwise:
    what is drawn must not depend on how often a run was interrupted.

    Parameters
    ----------
    settings : Generator
    reconstruct : Reconstruct
        Steps, strength, guidance and its interval.
    images : int
        Pictures to draw in all, every sample counted.
    workers : int
        That share them.
    on_gpu : bool
        Whether the workers have one; on CPUs ``auto`` never compiles.
    """
    if settings.compile != "auto":
        return settings.compile
    if not on_gpu:
        return False
    guided = guided_steps(reconstruct, find_checkpoint(settings).settings("scheduler"))
    rows = images / workers * (len(guided) + sum(guided))
    saved = rows * unet_flops(settings) * (1 / EAGER - 1 / COMPILED)
    programs = len(set(guided))  # of the UNet, which takes most of the time
    return saved > programs * COMPILING


def unet_flops(settings: Generator) -> float:
    """Return about how many operations the UNet needs for one row of a batch.

    Estimated from the number of its weights, which is read without loading them.
    """
    checkpoint = find_checkpoint(settings)
    side = checkpoint.settings("unet")["sample_size"]
    height, width = (side, side) if isinstance(side, int) else side
    files = [checkpoint.weights] if checkpoint.weights else checkpoint.weight_files("unet")
    weights = sum(_weights(path) for path in files)
    return FLOPS_PER_WEIGHT_AND_LATENT * weights * height * width


def _weights(path: Path) -> float:
    if path.suffix != ".safetensors":
        return path.stat().st_size / 4
    return sum(math.prod(shape) for shape in tensor_shapes(path).values())


def cache_folder() -> Path:
    """Return where compiled programs are kept for the other workers of a node and later runs.

    The variable ``TORCHINDUCTOR_CACHE_DIR``, or torch's own place among the temporary files.
    """
    own = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
    return Path(os.environ.setdefault(CACHE, str(own)))


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Let other processes of the node wait, which then find what this one compiled."""
    from filelock import FileLock

    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "raybrain.lock"):
        yield
