"""The worker of the pool."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from raybrain.config import Generator, InputError, Reconstruct
from raybrain.diffusion import (
    DrawingUnit,
    DrawingWorker,
)
from tests.diffusion.generators import PIXELS, drawn, far


@pytest.fixture
def unit(targets):
    return DrawingUnit(
        image_ids=(100, 101, 102),
        samples=(0, 1),
        latents=targets.latents,
        prompt_embeds=targets.prompt_embeds,
    )


@pytest.fixture
def worker(checkpoint):
    return DrawingWorker(
        generator=Generator(checkpoint=str(checkpoint), device="cpu"),
        reconstruct=Reconstruct(steps=4, strength=0.5, guidance=3.0),
        seed=5,
        threads=1,
    )


def test_worker_draws_every_sample_of_every_image(tiny, targets, unit, worker):
    drawing = worker(unit)
    assert drawing.images.shape == (3, 2, PIXELS, PIXELS, 3)
    assert (drawing.image_ids, drawing.samples, drawing.batch) == ((100, 101, 102), (0, 1), 6)
    for sample in (0, 1):
        alone = drawn(tiny, **vars(targets), samples=[sample] * 3)
        assert far(alone, drawing.images[:, sample]) <= 1


def test_drawing_again_gives_the_same_bytes(unit, worker):
    np.testing.assert_array_equal(worker(unit).images, worker(unit).images)


def test_memory_exhausted_halves_the_batch(unit, worker, monkeypatch):
    import torch

    whole = worker(unit)
    forward = worker.generator.pipeline.unet.forward
    tried = []

    def scarce(sample, *args, **kwargs):
        tried.append(len(sample) // 2)
        if len(sample) > 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(worker.generator.pipeline.unet, "forward", scarce)
    drawing = worker(unit)
    assert tried == [6, 3, 2, 2, 2, 2, 2, 2]
    assert drawing.batch == 2
    assert far(drawing.images, whole.images) <= 1
    worker(unit)
    assert tried[8] == 2  # it does not try again what did not fit

    def exhausted(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(worker.generator.pipeline.unet, "forward", exhausted)
    with pytest.raises(InputError, match="not even one image"):
        worker(unit)


def test_threads_that_share_a_worker_draw_what_one_does(unit, worker):
    alone = worker(unit)
    with ThreadPoolExecutor(3) as threads:
        for drawing in threads.map(worker, [unit] * 3):
            np.testing.assert_array_equal(drawing.images, alone.images)


def test_another_thread_may_have_the_networks_while_results_are_fetched(unit, worker, monkeypatch):
    import torch

    held = {"unet": [], "fetched": []}
    lock, fetch = worker.generator.alone, torch.Tensor.cpu
    unet = worker.generator.pipeline.unet
    unet.register_forward_pre_hook(lambda *_: held["unet"].append(lock.locked()))

    def fetched(tensor):
        if tensor.dtype == torch.uint8:
            held["fetched"].append(lock.locked())
        return fetch(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", fetched)
    worker(unit)
    assert held["fetched"] == [False]
    assert all(held["unet"])
    assert len(held["unet"]) == 2
