"""Each faster way to draw beside the default: what it costs and what it does to the scores.

Validation images of the demo, never the test images, drawn with the pocket generator from what
decoders say that have not seen them. Processor seconds of one thread, so other load matters little.
Some minutes on one core after the demo's decoders, which are taken from ``RAYBRAIN_WORKSPACE``
where they are there. No LoRA was trained for this generator, so ``lcm`` and ``generator.lora`` are
not among them.
"""

from __future__ import annotations

import importlib.util
import os
import time

import numpy as np
import pytest

from raybrain import cli, diffusion, evaluation, store
from raybrain.config import TARGET_OF, Experiment, letters
from raybrain.shipped import DEMO
from raybrain.stages import searching_drawn

pytestmark = [pytest.mark.ray, pytest.mark.benchmark, pytest.mark.filterwarnings("default")]

# Many steps of the UNet, as with published checkpoints: the demo runs two and looks at the picture.
# Noise levels of these steps go from .68 to .04.
PLAIN = ("reconstruct.gradient=null", "reconstruct.strength=0.6", "reconstruct.guidance=4")
INTERVAL = "reconstruct.guidance_interval"
WAYS: dict[str, tuple[str, ...]] = {
    "dpm-solver++, 20 steps": ("reconstruct.steps=20",),
    f"{INTERVAL}={{low: 0.2}}": ("reconstruct.steps=20", f"{INTERVAL}={{low: 0.2}}"),
    f"{INTERVAL}={{low: 0.4}}": ("reconstruct.steps=20", f"{INTERVAL}={{low: 0.4}}"),
    f"{INTERVAL}={{high: 0.4}}": ("reconstruct.steps=20", f"{INTERVAL}={{high: 0.4}}"),
    "guidance=1": ("reconstruct.steps=20", "reconstruct.guidance=1"),
    "dpm-solver++, 10 steps": ("reconstruct.steps=10",),
    "dpm-solver++, 5 steps": ("reconstruct.steps=5",),
    "unipc, 20 steps": ("reconstruct.steps=20", "reconstruct.scheduler=unipc"),
    "unipc, 10 steps": ("reconstruct.steps=10", "reconstruct.scheduler=unipc"),
    "unipc, 5 steps": ("reconstruct.steps=5", "reconstruct.scheduler=unipc"),
    "ddim, 10 steps": ("reconstruct.steps=10", "reconstruct.scheduler=ddim"),
    "ddim, 10 steps, leading": (
        "reconstruct.steps=10",
        "reconstruct.scheduler=ddim",
        "reconstruct.spacing=leading",
    ),
    "int8, 5 steps": ("reconstruct.steps=5", "generator.quantize=int8"),
}
FIRST = next(iter(WAYS))
ASKED = ("two_way", "pixcorr", "distance")
BATCH = 8


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    place = os.environ.get("RAYBRAIN_WORKSPACE") or tmp_path_factory.mktemp("demo")
    for stage in ("simulate", "ingest", "features", "train"):
        assert cli.main([stage, str(DEMO), f"workspace={place}"]) == 0
    return lambda *changes: Experiment.load(DEMO, f"workspace={place}", *changes)


def drawn(experiment, data):
    """Return the pictures (image, y, x, rgb) of all images and the processor seconds they took."""
    settings = experiment.reconstruct
    worker = diffusion.DrawingWorker(
        generator=experiment.generator, reconstruct=settings, seed=experiment.seed, threads=1
    )
    wanted = [TARGET_OF[letter] for letter in letters(settings.mode)]
    pictures, spent = [], 0.0
    for number, block in enumerate(store.blocks(len(data.image_ids), size=BATCH)):
        rows = slice(block.start, block.stop)
        unit = diffusion.DrawingUnit(
            image_ids=data.image_ids[rows],
            samples=(0,),
            **dict.fromkeys(TARGET_OF.values())
            | {name: data.values[name][rows] for name in wanted},
        )
        if not number:
            worker(unit)  # what happens once in a process
        started = time.process_time()
        pictures.append(worker(unit).images[:, 0])
        spent += time.process_time() - started
    return np.concatenate(pictures), spent


def test_what_each_setting_costs_and_does_to_the_scores(experiment, scale):
    data = searching_drawn.drawn_data(searching_drawn.Decoded.each(experiment()), images=scale(48))
    pictures, seconds, guided = {}, {}, {}
    for name, changes in WAYS.items():
        if "int8" in name and importlib.util.find_spec("torchao") is None:
            print(f"{name}: torchao is not installed")
            continue
        tried = experiment(*PLAIN, *changes)
        pictures[name], seconds[name] = drawn(tried, data)
        checkpoint = diffusion.find_checkpoint(tried.generator)
        guided[name] = diffusion.guided_steps(tried.reconstruct, checkpoint.settings("scheduler"))
    table = evaluation.score_rows(
        data.seen,
        {evaluation.MEAN_IMAGE: data.mean}
        | {
            evaluation.SYSTEM if name == FIRST else name: p[:, None] for name, p in pictures.items()
        },
        protocol=evaluation.protocol_named("lite0-v1"),
        image_ids=data.image_ids,
        bootstrap_resamples=2_000,
        permutations=100,
        seed=0,
    )
    print(f"{len(data.image_ids)} validation images; scores, and what is gained on the first")
    for name, spent in seconds.items():
        row = evaluation.SYSTEM if name == FIRST else name
        told = []
        for metric in ASKED:
            found = f"{metric} {table.score(row=row, metric=metric).value:.3f}"
            if name != FIRST:
                gain = table.difference(metric=metric, better=row, than=evaluation.SYSTEM)
                found += f" ({gain.value:+.3f}, {gain.low:+.3f} to {gain.high:+.3f})"
            told.append(found)
        rows = f"{len(guided[name])}+{sum(guided[name])}"
        share = f"{spent / seconds[FIRST]:.2f}"
        print(f"{name:48} {rows:>6} {spent:7.1f} s {share:>5}  {'  '.join(told)}", flush=True)
    scale.claim(
        seconds[f"{INTERVAL}={{low: 0.4}}"] < seconds[FIRST]
        and seconds["dpm-solver++, 5 steps"] < 0.5 * seconds[FIRST],
        "steps without their unguided half and fewer steps take less time",
    )
