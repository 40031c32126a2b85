"""A pipeline of Stable Diffusion v1.4's own sizes, with random weights: does it load and draw?"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.diffusion.generators import V1_4, write_generator

DRAW = """
import resource, sys, time
import numpy as np
from raybrain.config import Features, Generator, Reconstruct
from raybrain.diffusion import draw, encode_images, load_generator, target_shapes

settings = Generator(checkpoint=sys.argv[1], device="cpu")
started = time.perf_counter()
generator = load_generator(settings)
loaded = time.perf_counter()
pipeline = generator.pipeline
shapes = target_shapes(settings, features=Features(resolution=320))
picture = np.random.default_rng(0).integers(0, 256, (1, 320, 320, 3), np.uint8)
latents = encode_images(generator, images=picture, resolution=320)
assert latents.shape[1:] == shapes.latents
images = draw(
    generator, latents=latents, prompt_embeds=generator.unconditional.numpy()[None] + 0.1,
    image_ids=[1], samples=[0], seed=0,
    settings=Reconstruct(mode="z+c", strength=1.0, steps=2, guidance=5.0),
)
import json
print(json.dumps({
    "sizes": [sum(p.numel() for p in m.parameters())
              for m in (pipeline.unet, pipeline.vae, pipeline.text_encoder)],
    "latents": shapes.latents, "prompt_embeds": shapes.prompt_embeds, "image": images.shape,
    "spread": float(images.std()), "loading": loaded - started,
    "drawing": time.perf_counter() - loaded,
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
}))
"""


@pytest.mark.slow
def test_stable_diffusion_v1_4_draws_on_cpu(tmp_path):
    """Uses 4.3 GB of disk, and CPU minutes."""
    folder = tmp_path / "sd-v1-4"
    write_generator(folder, **V1_4)
    output = subprocess.run(
        [sys.executable, "-c", DRAW, str(folder)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    found = json.loads(output.stdout.splitlines()[-1])
    print(found)
    # Parameters of the published networks.
    assert found["sizes"] == [859_520_964, 83_653_863, 123_060_480]
    assert (found["latents"], found["prompt_embeds"]) == ([4, 40, 40], [77, 768])
    assert found["image"] == [1, 320, 320, 3]
    assert found["spread"] > 1
    assert found["peak"] < 24e9
