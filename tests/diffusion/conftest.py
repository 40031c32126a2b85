from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from raybrain.config import Generator
from raybrain.diffusion import load_generator
from tests.diffusion.generators import LATENT, TOKENS, WIDTH, write_tiny_generator


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
