"""Faster ways to draw: named in seals and lineage where they are given, and nowhere else."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from raybrain import cli, cluster, config, outputs
from raybrain.config import Experiment, changes_drawing
from raybrain.diffusion import lora_digest
from raybrain.stages import drawing, planning

NEW = (
    "generator.lora",
    "generator.quantize",
    "reconstruct.guidance_interval",
    "reconstruct.spacing",
)


@pytest.fixture
def load(tmp_path, monkeypatch):
    made_before = SimpleNamespace(
        seal=SimpleNamespace(digest="made", inputs={"the generator": "files"})
    )
    monkeypatch.setattr(outputs, "subject_store", lambda _: made_before)
    monkeypatch.setattr(outputs, "features", lambda _: made_before)

    def made(*changes):
        place = f"workspace={tmp_path}/workspace"
        return config.load(cli.DEMO, (place, *changes), schema=Experiment)

    return made


@pytest.fixture
def few(tmp_path):
    """Return a LoRA of one layer of the pocket generator."""
    path = tmp_path / "few.safetensors"
    layer = "lora_unet_time_embedding_linear_1"
    from raybrain.diffusion import checkpoint

    shapes = checkpoint.tensor_shapes(
        next((checkpoint.POCKET_DIFFUSION / "unet").glob("*.safetensors"))
    )
    rows, columns = shapes["time_embedding.linear_1.weight"]
    save_file(
        {
            f"{layer}.lora_down.weight": torch.ones(2, columns),
            f"{layer}.lora_up.weight": torch.ones(rows, 2),
        },
        path,
    )
    return path


def drawn(experiment):
    return outputs.reconstructions(experiment).seal, outputs.ceiling(experiment).seal


def test_runs_without_them_have_the_seals_and_the_lineage_of_before_there_were_any(load):
    experiment = load()
    for seal in drawn(experiment):
        assert not [name for name in seal.settings if name.startswith(NEW)]
    lineage = drawing._lineage(experiment)
    assert {"lora", "quantize", "guidance_interval", "spacing"}.isdisjoint(lineage)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            ["reconstruct.guidance_interval={high: 2.0}"],
            {"reconstruct.guidance_interval.low": 0.0, "reconstruct.guidance_interval.high": 2.0},
        ),
        (["reconstruct.spacing=trailing"], {"reconstruct.spacing": "trailing"}),
        (["generator.quantize=int8"], {"generator.quantize": "int8"}),
    ],
)
def test_given_they_are_part_of_what_is_drawn_and_of_nothing_before(load, changes, named):
    before, after = load(), load(*changes)
    for old, new in zip(drawn(before), drawn(after), strict=True):
        assert {k: v for k, v in new.settings.items() if k not in old.settings} == named
    assert outputs.predictions(before).seal == outputs.predictions(after).seal
    lineage = drawing._lineage(after)
    for address in named:
        assert address.split(".")[1] in lineage


def test_a_lora_is_named_by_its_content(load, few):
    seals = {drawn(load())[0].digest, drawn(load(f"generator.lora={few}"))[0].digest}
    experiment = load(f"generator.lora={few}")
    assert drawn(experiment)[0].settings["generator.lora"] == lora_digest(experiment.generator)
    assert drawing._lineage(experiment)["lora"] == lora_digest(experiment.generator)
    elsewhere = few.with_name("same.safetensors")
    elsewhere.write_bytes(few.read_bytes())
    seals.add(drawn(load(f"generator.lora={elsewhere}"))[0].digest)
    assert len(seals) == 2
    assert outputs.predictions(load()).seal == outputs.predictions(experiment).seal
    assert f"{few}, " in "\n".join(planning._generator(experiment))
    few.unlink()
    assert f"{few} is missing" in "\n".join(planning._generator(experiment))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("generator.lora=nowhere.safetensors", "'generator.lora' names nowhere.safetensors"),
        ("generator.quantize=int4", "generator.quantize"),
        ("reconstruct.scheduler=euler", "reconstruct.scheduler"),
        ("reconstruct.guidance_interval={low: 3, high: 2}", "high=2.0 is not above low=3.0"),
        ("reconstruct.guidance_interval.middle=3", "reconstruct.guidance_interval.middle"),
        ("reconstruct={scheduler: lcm, spacing: trailing}", "says nothing to lcm"),
        ("reconstruct={scheduler: lcm, steps: 60}", "type reconstruct.steps=50 or less"),
        ("reconstruct={scheduler: unipc, steps: 1001}", "type reconstruct.steps=1000 or less"),
    ],
)
def test_what_cannot_be_is_one_sentence_before_anything_is_made(
    tmp_path, capsys, monkeypatch, change, sentence
):
    monkeypatch.setattr(cluster, "connect", lambda *_, **__: pytest.fail("it was not refused"))
    assert cli.main(["run", str(cli.DEMO), f"workspace={tmp_path}/workspace", change]) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert told.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_all_of_them_can_be_searched_by_what_they_draw():
    for address in (*NEW, "reconstruct.scheduler", "reconstruct.guidance_interval.high"):
        assert changes_drawing(address)
    assert not changes_drawing("generator.checkpoint")
