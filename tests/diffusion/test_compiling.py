"""Compiled networks: one program each whatever the batches, made once on a node, where it pays."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from filelock import FileLock

from raybrain.config import Generator, GuidanceInterval, Reconstruct
from raybrain.diffusion import DrawingUnit, DrawingWorker, compiling, pays
from tests.diffusion.generators import LATENT, far, write_tiny_generator

SETTINGS = Reconstruct(steps=4, strength=0.5, guidance=3.0)


@pytest.fixture
def programs(monkeypatch, tmp_path):
    """Trace what would be compiled and run it as it is; return the network and batch of each."""
    found = []
    real = torch.compile

    def tracing(forward, **settings):
        def backend(graph, inputs):
            batch = next(len(one) for one in inputs if one.shape[2:] == (LATENT, LATENT))
            found.append((type(forward.__self__).__name__, batch))
            return graph.forward

        return real(forward, backend=backend, **settings)

    monkeypatch.setattr(torch, "compile", tracing)
    monkeypatch.setenv(compiling.CACHE, str(tmp_path / "compiled"))
    torch._dynamo.reset()
    yield found
    torch._dynamo.reset()


def worker_of(checkpoint, *, compiled=True, **how):
    return DrawingWorker(
        generator=Generator(checkpoint=str(checkpoint), device="cpu", compile=compiled),
        reconstruct=SETTINGS.model_copy(update=how),
        seed=5,
        rows=6,
    )


def unit_of(targets, images, **others):
    return DrawingUnit(
        image_ids=tuple(range(100, 100 + images)),
        samples=(0, 1),
        latents=targets.latents[:images],
        prompt_embeds=targets.prompt_embeds[:images],
        **others,
    )


def test_units_that_are_not_whole_draw_the_same_and_compile_nothing(checkpoint, targets, programs):
    plain, compiled = worker_of(checkpoint, compiled=False), worker_of(checkpoint)
    for images in (1, 3, 2):  # the ragged one may come first, when a run is resumed
        drawing, expected = (one(unit_of(targets, images)) for one in (compiled, plain))
        assert drawing.images.shape == expected.images.shape
        assert far(drawing.images, expected.images) <= 1
        assert drawing.batch == 6
    assert programs == [("UNet2DConditionModel", 12), ("Decoder", 6)]


def test_a_guidance_interval_has_one_more_program_for_its_unguided_steps(
    checkpoint, targets, programs
):
    how = {"guidance_interval": GuidanceInterval(high=1.0)}
    plain, compiled = worker_of(checkpoint, compiled=False, **how), worker_of(checkpoint, **how)
    for images in (1, 3):
        drawing, expected = (one(unit_of(targets, images)) for one in (compiled, plain))
        assert far(drawing.images, expected.images) <= 1
    assert programs == [("UNet2DConditionModel", n) for n in (6, 12)] + [("Decoder", 6)]


def test_what_does_not_fit_is_found_before_anything_is_compiled(
    checkpoint, targets, programs, monkeypatch
):
    plain, compiled = worker_of(checkpoint, compiled=False), worker_of(checkpoint)
    forward = compiled.generator.pipeline.unet.conv_in.forward

    def scarce(sample, *args, **kwargs):
        if len(sample) > 8:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(compiled.generator.pipeline.unet.conv_in, "forward", scarce)
    for images in (3, 2):
        drawing = compiled(unit_of(targets, images))
        assert drawing.batch == 3
        assert far(drawing.images, plain(unit_of(targets, images)).images) <= 1
    assert programs == [("UNet2DConditionModel", 6), ("Decoder", 3)]


def test_another_mode_is_drawn_without_what_was_compiled(checkpoint, targets, programs):
    alone = SETTINGS.model_copy(update={"mode": "z"})
    unit = unit_of(targets, 3, settings=alone)
    drawing, plain = (worker_of(checkpoint, compiled=one)(unit) for one in (True, False))
    np.testing.assert_array_equal(drawing.images, plain.images)
    assert programs == []


def test_what_is_differentiated_is_not_compiled(checkpoint, programs):
    generator = worker_of(checkpoint).generator
    latents = torch.ones(1, 4, 8, 8, requires_grad=True)
    pixels = generator.pipeline.vae.decode(latents, return_dict=False)[0]
    (gradient,) = torch.autograd.grad(pixels.sum(), latents)
    assert gradient.abs().max() > 0
    assert programs == []


def test_a_process_waits_while_another_of_the_node_compiles(checkpoint, targets, programs):
    worker = worker_of(checkpoint)
    compiling.cache_folder().mkdir(parents=True, exist_ok=True)
    drawing = threading.Thread(target=worker, args=[unit_of(targets, 3)])
    with FileLock(compiling.cache_folder() / "raybrain.lock"):
        drawing.start()
        drawing.join(timeout=3)
        assert drawing.is_alive()
        assert programs == []
    drawing.join()
    assert len(programs) == 2


def test_a_row_of_a_unet_needs_operations_by_its_weights_and_latents(tmp_path):
    write_tiny_generator(tmp_path / "tiny")
    settings = Generator(checkpoint=str(tmp_path / "tiny"))
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(tmp_path / "tiny" / "unet")
    weights = sum(one.numel() for one in unet.parameters())
    expected = compiling.FLOPS_PER_WEIGHT_AND_LATENT * weights * 8 * 8
    assert compiling.unet_flops(settings) == pytest.approx(expected, rel=1e-6)
    of_v1_4 = compiling.FLOPS_PER_WEIGHT_AND_LATENT * 859.5e6 * 64**2
    assert of_v1_4 == pytest.approx(803e9, rel=0.01)


@pytest.mark.parametrize(
    ("images", "workers", "on_gpu", "expected"),
    [(10_000, 1, True, True), (10_000, 1, False, False), (10_000, 100, True, False)],
)
def test_compiling_pays_where_a_worker_saves_more_time_than_it_takes(
    monkeypatch, images, workers, on_gpu, expected
):
    monkeypatch.setattr(compiling, "unet_flops", lambda _: 803e9)
    plan = {"reconstruct": Reconstruct(), "images": images, "workers": workers, "on_gpu": on_gpu}
    assert pays(Generator(), **plan) is expected
    for chosen in (True, False):
        assert pays(Generator(compile=chosen), **plan) is chosen


@pytest.mark.parametrize(
    ("guided", "enough"), [([True] * 3, 15), ([False] * 3, 30), ([True, False, False], 45)]
)
def test_a_guidance_interval_saves_less_and_costs_a_second_program(monkeypatch, guided, enough):
    """A row of the UNet saves a second here, and a program costs 90."""
    monkeypatch.setattr(
        compiling, "unet_flops", lambda _: 1 / (1 / compiling.EAGER - 1 / compiling.COMPILED)
    )
    monkeypatch.setattr(compiling, "guided_steps", lambda *_: guided)
    for images, expected in ((enough - 1, False), (enough + 1, True)):
        assert expected is pays(
            Generator(), reconstruct=Reconstruct(), images=images, workers=1, on_gpu=True
        )
