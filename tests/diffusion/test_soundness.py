"""A copy of a generator that broke off is told before anything runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from raybrain.config import Generator, InputError, Reconstruct
from raybrain.diffusion import check_sound, check_steps

SD = {"num_train_timesteps": 1000, "steps_offset": 1}


@pytest.fixture
def copy(checkpoint, tmp_path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def sentence_of(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        check_sound(Generator(checkpoint=str(folder)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_whole_generator_is_sound(copy):
    check_sound(Generator(checkpoint=str(copy)))
    check_sound(Generator())


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer_config.json",
    ],
)
@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "noise"])
def test_a_file_that_is_missing_or_broken_off_is_named(copy, name, damage):
    file = copy / name
    content = file.read_bytes()
    file.unlink()
    if damage != "gone":
        broken = {"empty": b"", "cut": content[: len(content) // 2], "noise": b"\xff\x00" * 40}
        file.write_bytes(broken[damage])
    said = sentence_of(copy)
    assert file.parent.name in said
    assert "copy" in said or "save_pretrained" in said


@pytest.mark.parametrize("promised", [b"1e999", b"-1e999", b"NaN", b'"x"', b"[]"])
def test_a_header_that_promises_no_number_of_bytes_is_named(copy, promised):
    file = copy / "unet/diffusion_pytorch_model.safetensors"
    header = b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, ' + promised + b"]}}"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    assert "its header is no safetensors header" in sentence_of(copy)


def test_a_tokenizer_without_its_words_is_named(copy):
    (copy / "tokenizer/tokenizer.json").unlink(missing_ok=True)
    for name in ("vocab.json", "merges.txt"):
        (copy / "tokenizer" / name).unlink(missing_ok=True)
    assert "vocab.json is missing" in sentence_of(copy)


def test_a_missing_shard_is_named(copy):
    weights = {"a": "one.safetensors", "b": "two.safetensors"}
    index = copy / "unet/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weights}))
    shutil.copy(copy / "unet/diffusion_pytorch_model.safetensors", copy / "unet/one.safetensors")
    assert "lacks two.safetensors" in sentence_of(copy)
    shutil.copy(copy / "unet/one.safetensors", copy / "unet/two.safetensors")
    check_sound(Generator(checkpoint=str(copy)))


@pytest.mark.parametrize("value", [None, "four", []])
def test_a_config_without_what_plans_need_is_named(copy, value):
    file = copy / "text_encoder/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hidden_size": value}))
    assert "'hidden_size'" in sentence_of(copy)


def test_no_torch_is_needed(copy):
    code = (
        "import sys; from raybrain.config import Generator; from raybrain.diffusion import *\n"
        f"check_sound(Generator(checkpoint={str(copy)!r}))\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize(
    ("settings", "scheduler"),
    [
        ({"steps": 2, "strength": 0.5}, SD),
        ({"steps": 1, "strength": 0.1, "mode": "c"}, SD),
        ({"steps": 999, "scheduler": "ddim"}, SD),
        ({"steps": 1000, "scheduler": "ddim"}, {**SD, "steps_offset": 0}),
        ({"steps": 1000, "scheduler": "ddim"}, {**SD, "timestep_spacing": "trailing"}),
        ({"steps": 1000, "scheduler": "dpm-solver++"}, SD),
    ],
)
def test_as_many_steps_as_there_are_are_drawn(settings, scheduler):
    check_steps(Reconstruct(**settings), name="it", scheduler=scheduler)


@pytest.mark.parametrize(
    ("settings", "scheduler", "remedy"),
    [
        ({"steps": 1, "strength": 0.5}, SD, "steps=2 or more"),
        ({"steps": 3, "strength": 0.3, "mode": "takagi"}, SD, "steps=4 or more"),
        ({"steps": 1000, "scheduler": "ddim"}, SD, "steps=999 or less"),
        ({"steps": 500, "scheduler": "ddim"}, {**SD, "steps_offset": 2}, "steps=499 or less"),
        ({"steps": 1001, "scheduler": "dpm-solver++"}, SD, "steps=1000 or less"),
    ],
)
def test_too_few_or_too_many_steps_are_refused_with_a_number_that_works(
    settings, scheduler, remedy
):
    with pytest.raises(InputError, match=remedy):
        check_steps(Reconstruct(**settings), name="it", scheduler=scheduler)
    found = int(remedy.split("=")[1].split()[0])
    check_steps(Reconstruct(**settings | {"steps": found}), name="it", scheduler=scheduler)
