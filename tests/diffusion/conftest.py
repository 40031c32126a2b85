from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from raybrain.config import Generator
from raybrain.diffusion import load_generator
from tests.diffusion.generators import (
    LATENT,
    TOKENS,
    WIDTH,
    write_adapter,
    write_image_encoder,
    write_tiny_generator,
    write_unclip,
)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generator") / "tiny"
    write_tiny_generator(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(checkpoint):
    import torch

    torch.set_num_threads(1)
    return load_generator(Generator(checkpoint=str(checkpoint), device="cpu"))


@pytest.fixture
def targets():
    """Return latents and prompt embeddings of 3 rows."""
    rng = np.random.default_rng(0)
    return SimpleNamespace(
        latents=rng.standard_normal((3, 4, LATENT, LATENT), np.float32),
        prompt_embeds=rng.standard_normal((3, TOKENS, WIDTH), np.float32),
    )


@pytest.fixture(scope="session")
def adapters(checkpoint, tmp_path_factory):
    """Return the settings of the tiny generator with a pooled adapter and with a plus one."""
    from diffusers import UNet2DConditionModel

    folder = tmp_path_factory.mktemp("adapters")
    unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet")
    write_image_encoder(folder / "image_encoder")
    found = {}
    for name, plus in (("pooled", False), ("plus", True)):
        path = folder / f"ip-adapter-{name}.safetensors"
        write_adapter(path, unet=unet, plus=plus)
        found[name] = Generator(checkpoint=str(checkpoint), device="cpu", image_adapter=str(path))
    return found


@pytest.fixture(scope="session")
def unclip(tmp_path_factory):
    """Return the settings of a tiny Stable unCLIP."""
    folder = tmp_path_factory.mktemp("unclip") / "unclip"
    write_unclip(folder)
    return Generator(checkpoint=str(folder), device="cpu")


@pytest.fixture(scope="session")
def pictures():
    """Return 3 pictures of 20 pixels, red, blue and dark."""
    plain = np.array([[255, 0, 0], [0, 200, 255], [20, 20, 20]], np.uint8)
    grain = np.random.default_rng(0).integers(0, 120, (3, 20, 20, 3), dtype=np.uint8)
    return np.maximum(grain, plain[:, None, None])


@pytest.fixture
def rows(tiny, monkeypatch):
    """Return the rows of every call of the UNet."""
    found = []
    forward = tiny.pipeline.unet.forward

    def counted(sample, *args, **kwargs):
        found.append(len(sample))
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(tiny.pipeline.unet, "forward", counted)
    return found
