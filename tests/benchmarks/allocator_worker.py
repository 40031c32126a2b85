"""Look at pictures as gradient guidance does, in a process of its own; print its CPU seconds."""

import json
import resource
import sys

import torch

from raybrain.cluster import keep_freed_memory
from raybrain.config import Features, Generator
from raybrain.diffusion import load_generator

ROWS, LOOKS = 8, 12
LAYERS = Features(layers=(4, 7, 11, 15, 20))


def main(how: str) -> None:
    if how == "kept":
        assert keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = load_generator(Generator(device="cpu"))
    vae, encoder = generator.pipeline.vae, generator.image.encoder
    latents = torch.randn(ROWS, 4, generator.latent_size, generator.latent_size)

    def look() -> float:
        moved = latents.clone().requires_grad_()
        pixels = vae.decode(moved, return_dict=False)[0].clamp(-1, 1)
        seen = encoder.look(pixels, features=LAYERS)
        total = seen.embeds.sum() + sum(layer.sum() for layer in seen.layers)
        (gradient,) = torch.autograd.grad(total, moved)
        return float(gradient.abs().sum())

    found = look()
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(LOOKS):
        assert look() == found
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"seconds": spent / LOOKS / ROWS, "sum": found}))


if __name__ == "__main__":
    main(sys.argv[1])
