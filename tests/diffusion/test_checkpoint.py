"""Finding and loading generators."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from raybrain.config import Generator, InputError
from raybrain.diffusion import (
    decode_latents,
    embed_images,
    encode_captions,
    encode_images,
    generator_digest,
    load_generator,
)
from tests.diffusion.generators import drawn, far


def test_digest_is_of_the_content(checkpoint, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    digest = generator_digest(Generator(checkpoint=str(copy)))
    assert digest == generator_digest(Generator(checkpoint=str(checkpoint)))
    (copy / "README.md").write_text("nothing that draws")
    assert digest == generator_digest(Generator(checkpoint=str(copy), dtype="bfloat16"))
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert digest != generator_digest(Generator(checkpoint=str(copy)))


def test_digest_and_shapes_need_no_torch(checkpoint):
    code = (
        "import sys; from raybrain.config import *; from raybrain.diffusion import *\n"
        f"g = Generator(checkpoint={str(checkpoint)!r})\n"
        "generator_digest(g); target_shapes(g, features=Features())\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_only_half_precision_weights_on_disk_are_found(tiny, checkpoint, tmp_path):
    copy = tmp_path / "copy"
    tiny.pipeline.save_pretrained(copy, variant="fp16")
    generator = load_generator(Generator(checkpoint=str(copy), device="cpu"))
    captions = [["x"]]
    np.testing.assert_array_equal(
        encode_captions(generator, captions=captions), encode_captions(tiny, captions=captions)
    )


@pytest.mark.parametrize("name", ["nowhere.ckpt", "/no/such/folder", "pocket", "a/b/c"])
def test_missing_checkpoint_is_one_sentence(name):
    with pytest.raises(InputError, match="there is no generator at") as caught:
        load_generator(Generator(checkpoint=name))
    assert "\n" not in str(caught.value)


def test_uncached_hub_id_is_one_sentence(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="nor complete in the hub's cache") as caught:
        load_generator(Generator(checkpoint="nobody/no-such-generator"))
    assert "\n" not in str(caught.value)


def test_incomplete_folders_name_the_part(checkpoint, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    (copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no weights in .*unet"):
        load_generator(Generator(checkpoint=str(copy)))
    shutil.rmtree(copy / "vae")
    with pytest.raises(InputError, match="lacks vae/"):
        load_generator(Generator(checkpoint=str(copy)))
    index = copy / "model_index.json"
    index.write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    with pytest.raises(InputError, match="StableDiffusionXLPipeline, but"):
        load_generator(Generator(checkpoint=str(copy)))


def test_half_precision_on_cpu_names_the_alternatives(checkpoint):
    with pytest.raises(InputError, match=r"generator\.dtype=bfloat16"):
        load_generator(Generator(checkpoint=str(checkpoint), device="cpu", dtype="float16"))


@pytest.mark.parametrize("form", ["plain", "pooled", "plus", "unclip", "bfloat16"])
def test_without_the_unet_targets_are_the_same(checkpoint, adapters, unclip, pictures, form):
    plain = Generator(checkpoint=str(checkpoint), device="cpu")
    half = plain.model_copy(update={"dtype": "bfloat16"})
    settings = {"plain": plain, "unclip": unclip, "bfloat16": half, **adapters}[form]
    whole, without = load_generator(settings), load_generator(settings, draws=False)
    assert without.pipeline.unet is None
    assert without.device == whole.device
    assert without.unconditional.equal(whole.unconditional)
    captions = [["a cat", "dog"], ["x"], ["y"]]
    made = [
        (
            encode_images(one, images=pictures),
            encode_captions(one, captions=captions),
            *([] if one.image is None else [embed_images(one, images=pictures)]),
        )
        for one in (whole, without)
    ]
    assert len(made[0]) == (2 if form in ("plain", "bfloat16") else 3)
    for wanted, found in zip(*made, strict=True):
        np.testing.assert_array_equal(found, wanted)
    latents = decode_latents(without, latents=made[0][0])
    np.testing.assert_array_equal(latents, decode_latents(whole, latents=made[0][0]))


def test_slicing_changes_memory_and_not_images(tiny, checkpoint, targets):
    settings = Generator(checkpoint=str(checkpoint), device="cpu", vae_slicing=True)
    sliced = load_generator(settings)
    rows = []
    sliced.pipeline.vae.decoder.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    assert far(drawn(sliced, **vars(targets)), drawn(tiny, **vars(targets))) <= 1
    assert rows == [1, 1, 1]


@pytest.mark.slow
def test_compiled_draws_the_same(tiny, checkpoint, targets):
    settings = Generator(checkpoint=str(checkpoint), device="cpu", compile=True)
    compiled = load_generator(settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own deprecations
        images = drawn(compiled, **vars(targets))
    assert far(images, drawn(tiny, **vars(targets))) <= 1
