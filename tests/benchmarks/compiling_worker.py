"""Draw one unit with compiled networks in a process of its own; print what it waited for."""

import json
import sys
import time

import numpy as np

from raybrain.config import Features, Generator, Reconstruct
from raybrain.diffusion import DrawingUnit, DrawingWorker, target_shapes
from raybrain.diffusion.compiling import switched_off


def main(compiled: bool) -> None:
    generator = Generator(compile=compiled)
    shapes = target_shapes(generator, features=Features())
    rng = np.random.default_rng(0)
    unit = DrawingUnit(
        image_ids=(0, 1),
        samples=(0,),
        latents=rng.standard_normal((2, *shapes.latents), np.float32),
        prompt_embeds=rng.standard_normal((2, *shapes.prompt_embeds), np.float32),
    )
    worker = DrawingWorker(
        generator=generator, reconstruct=Reconstruct(steps=2, strength=0.5), seed=0, threads=2
    )
    with switched_off(worker.generator.compiled):
        worker(unit)  # what any first batch costs
    started = time.perf_counter()
    drawing = worker(unit)
    print(json.dumps({"seconds": time.perf_counter() - started, "sum": int(drawing.images.sum())}))


if __name__ == "__main__":
    main(sys.argv[1] == "compiled")
