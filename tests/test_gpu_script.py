"""The script that measures a card, tried on a CPU with small sizes."""

from __future__ import annotations

import json

import pytest

from tests.benchmarks import gpu, gpu_drawing

pytestmark = pytest.mark.filterwarnings("default")


def measured(tmp_path, *parts):
    file = tmp_path / "found.json"
    failed = gpu.main([str(file), "--small", "--folder", str(tmp_path / "work"), "--parts", *parts])
    return failed, json.loads(file.read_text())


def test_ridge_is_measured_beside_another_hand(tmp_path):
    failed, found = measured(tmp_path, "machine", "ridge")
    assert failed == 0
    assert found["machine"]["peak"]["matmul_tflops"] > 0
    ours, theirs = (
        found["ridge"][who] for who in ("ours, data on the card", "himalaya KernelRidgeCV")
    )
    assert ours["r2"] > theirs["r2"] - 0.01
    assert ours["distance from the CPU's"] < 1e-4


def test_a_part_that_fails_says_why_and_takes_nothing_along(tmp_path, monkeypatch):
    def broken(_size, _folder):
        yield "first", 1.0
        raise RuntimeError("no such card")

    monkeypatch.setitem(gpu.PARTS, "ridge", broken)
    failed, found = measured(tmp_path, "ridge", "machine")
    assert failed == 1
    assert found["ridge"]["first"] == 1.0
    assert "no such card" in found["ridge"]["failed"]
    assert "peak" in found["machine"]


def test_without_a_card_small_sizes_have_to_be_asked_for(tmp_path, capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a card")
    with pytest.raises(SystemExit) as ended:
        gpu.main([str(tmp_path / "found.json")])
    assert ended.value.code == 2
    assert "give --small" in capsys.readouterr().err


@pytest.mark.slow
def test_drawing_and_training_are_measured_every_way(tmp_path):
    failed, found = measured(tmp_path, "drawing", "training")
    assert failed == 0
    for way in ("ours", "ours, compiled", "diffusers", "diffusers, compiled"):
        assert found["drawing"][way]["images a second"] > 0
    losses = [one["losses"] for name, one in found["training"].items() if name.startswith("gcn")]
    assert len(losses) == 7
    assert all(one == pytest.approx(losses[0], rel=0.02) for one in losses)


@pytest.mark.slow
def test_every_faster_way_is_measured_beside_the_default(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_drawing, "IMAGES", 1)
    failed, found = measured(tmp_path, "settings")
    assert failed == 0
    for way in gpu_drawing.WAYS:
        assert found["settings"][way]["images a second"] > 0
    for way, _, quantize in gpu_drawing.COMPILED_WAYS:
        told = found["settings"][f"{way}, compiled"]
        assert "quantize" in told if quantize == "float8" else told


@pytest.mark.slow
@pytest.mark.ray
def test_the_commands_end_well_though_a_worker_is_killed(tmp_path):
    failed, found = measured(tmp_path, "product")
    assert failed == 0
    product = found["product"]
    assert product["exit status"] == 0
    assert product["worker killed after"] >= 1
    assert product["compiled"] is True
    assert product["drawn through the pool"]["units"] == 3
