"""The worker in a pool: the same bytes for any number of workers."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from raybrain import cluster
from raybrain.config import Generator, Reconstruct, Workers
from raybrain.diffusion import DrawingUnit, DrawingWorker
from tests.diffusion.generators import LATENT, TOKENS, WIDTH

SETTINGS = Reconstruct(steps=4, strength=0.5, guidance=3.0)


def units():
    rng = np.random.default_rng(0)
    return [
        DrawingUnit(
            image_ids=(2 * number, 2 * number + 1),
            samples=(0, 1, 2),
            latents=rng.standard_normal((2, 4, LATENT, LATENT), np.float32),
            prompt_embeds=rng.standard_normal((2, TOKENS, WIDTH), np.float32),
        )
        for number in range(8)
    ]


class Painter:
    """Draws a unit and returns its first image_id and the digest of its pixels."""

    def __init__(self, *, checkpoint):
        self.worker = DrawingWorker(
            generator=Generator(checkpoint=checkpoint, device="cpu"),
            reconstruct=SETTINGS,
            seed=5,
            threads=1,
        )

    def __call__(self, unit):
        images = self.worker(unit).images
        return unit.image_ids[0], hashlib.sha256(images.tobytes()).hexdigest()


def drawn_by(workers, *, checkpoint):
    found = cluster.draw_units(
        Painter,
        units(),
        worker_arguments={"checkpoint": str(checkpoint)},
        workers=Workers(min=workers, max=workers, cpus=0.25),
        description=f"{workers} workers",
    )
    return dict(found)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_bytes_do_not_depend_on_the_number_of_workers(checkpoint, workers):
    with cluster.connect():
        alone = drawn_by(1, checkpoint=checkpoint)
        together = drawn_by(workers, checkpoint=checkpoint)
    assert len(set(alone.values())) == 8
    assert alone == together
