"""One file of weights in the original layout, with configs from a diffusers folder."""

from __future__ import annotations

import shutil
import sys
from types import ModuleType

import numpy as np
import pytest

from raybrain.config import Generator, InputError
from raybrain.diffusion import encode_images, generator_digest, load_generator
from tests.diffusion.generators import drawn
from tests.diffusion.original_layout import original_weights


@pytest.fixture
def configs(checkpoint, tmp_path):
    """Return a copy of the diffusers folder without its weights."""
    folder = tmp_path / "configs"
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


@pytest.fixture
def safetensors(tiny, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "weights" / "model.safetensors"
    path.parent.mkdir()
    save_file(original_weights(tiny.pipeline), path)
    return path


def test_draws_as_the_folder_does(tiny, targets, configs, safetensors):
    settings = Generator(checkpoint=str(safetensors), configs=str(configs), device="cpu")
    generator = load_generator(settings)
    np.testing.assert_array_equal(drawn(generator, **vars(targets)), drawn(tiny, **vars(targets)))
    without = load_generator(settings, draws=False)
    assert without.pipeline.unet is None
    pictures = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 3), np.uint8)
    wanted = encode_images(tiny, images=pictures)
    np.testing.assert_array_equal(encode_images(without, images=pictures), wanted)
    digest = generator_digest(settings)
    content = bytearray(safetensors.read_bytes())
    content[-1] ^= 1
    safetensors.write_bytes(content)
    assert generator_digest(settings) != digest


def test_configs_are_found_beside_the_file(configs, safetensors):
    with pytest.raises(InputError, match=r"type generator\.configs=FOLDER"):
        load_generator(Generator(checkpoint=str(safetensors), device="cpu"))
    shutil.copytree(configs, safetensors.with_suffix(""))
    load_generator(Generator(checkpoint=str(safetensors), device="cpu"))


def test_checkpoints_that_name_the_training_library_load(
    tiny, targets, configs, tmp_path, monkeypatch
):
    """The published sd-v1-4.ckpt holds a ModelCheckpoint and its position_ids."""
    import torch

    library = ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    callback = type("ModelCheckpoint", (), {"__module__": library.__name__})
    library.ModelCheckpoint = callback
    path = tmp_path / "sd.ckpt"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pytorch_lightning", ModuleType("pytorch_lightning"))
        patch.setitem(sys.modules, "pytorch_lightning.callbacks", ModuleType("callbacks"))
        patch.setitem(sys.modules, library.__name__, library)
        weights = original_weights(tiny.pipeline)
        weights["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(
            12
        )[None]
        torch.save({"state_dict": weights, "callbacks": {callback: {"best": None}}}, path)
    settings = Generator(checkpoint=str(path), configs=str(configs), device="cpu")
    generator = load_generator(settings)
    np.testing.assert_array_equal(drawn(generator, **vars(targets)), drawn(tiny, **vars(targets)))


class Forbidden:
    """A class that no checkpoint should name."""


def test_checkpoints_that_would_run_code_are_refused(tiny, configs, tmp_path):
    import torch

    path = tmp_path / "sd.ckpt"
    torch.save({"state_dict": original_weights(tiny.pipeline), "more": Forbidden()}, path)
    with pytest.raises(InputError, match=r"save the weights as \.safetensors") as caught:
        load_generator(Generator(checkpoint=str(path), configs=str(configs), device="cpu"))
    assert "\n" not in str(caught.value)


def test_configs_of_another_model_are_refused(tiny, configs, safetensors):
    import json

    path = configs / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"block_out_channels": [16, 64]}))
    settings = Generator(checkpoint=str(safetensors), configs=str(configs), device="cpu")
    with pytest.raises(InputError, match="check that both are the same model"):
        load_generator(settings)
