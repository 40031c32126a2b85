"""What ``ingest`` makes of a recording, and what it refuses before anything is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raybrain import config, store
from raybrain.config import Decode, Ingest, InputError
from raybrain.stages import ingesting
from raybrain.store import Block
from tests.datasets.other_trees import write_arrays
from tests.datasets.test_arrays import read


def in_turn(work, items, *, description):
    return [work(item) for item in items]


def only(row: int) -> np.ndarray:
    """Return (trial, 1): where ten trials are this one."""
    return (np.arange(10) == row)[:, None]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda b: 0 * b, r"session 1 of P1 is zero in every voxel in every trial"),
        (lambda b: np.where(only(4), 0, b), r"is zero in .* in 1 of its trials .* trial 5"),
        (lambda b: 0 * b + b[0], r"session 1 of P1 has the same betas in all trials"),
        (lambda b: np.where(only(2), np.inf, b), r"session 1 of P1 has betas .* not finite"),
        (lambda b: b[1:], r"session 1 of P1 holds 9 trials x 80 voxels, but its tables say"),
    ],
    ids=["zero", "a zero trial", "constant", "infinite", "short"],
)
def test_betas_that_are_no_measurement_are_refused_by_their_session(tmp_path, change, sentence):
    write_arrays(tmp_path)
    recording = read(tmp_path)
    broken = replace(recording, read_session=lambda s: change(recording.read_session(s)))
    path = str(tmp_path / "s.zarr")
    store.create_store(path, broken, side=8)
    with pytest.raises(InputError, match=sentence):
        ingesting._write_betas(Block(0, 10), recording=broken, path=path)
    assert len(store.missing_blocks(path, "betas")) == 2
    ingesting._write_betas(Block(0, 10), recording=recording, path=path)
    assert len(store.missing_blocks(path, "betas")) == 1


def test_an_roi_without_voxels_is_refused_at_once(tmp_path):
    write_arrays(tmp_path)
    recording = read(tmp_path)
    none = {**recording.rois, "V1": np.zeros_like(recording.rois["V1"])}
    experiment = config.Experiment(
        name="e",
        dataset="d",
        subject="P1",
        decode={"latents": Decode(rois=tuple(recording.rois))},
        reconstruct={"mode": "z"},
    )
    ingesting._check_rois(experiment, recording)
    with pytest.raises(InputError, match=r"latents\.rois' has V1, which holds no voxel of P1"):
        ingesting._check_rois(experiment, replace(recording, rois=none))


@pytest.mark.parametrize(
    ("sizes", "most", "side"),
    [
        ([(30, 20), (90, 50), (40, 40)], 64, 50),
        ([(30, 20), (90, 50), (40, 40)], 32, 32),
        ([(90, 50), (30, 20), (40, 40)], 256, 50),
        ([(20, 20)] * 3, 256, 20),
    ],
)
def test_the_side_is_that_of_the_largest_picture_whichever_comes_first(tmp_path, sizes, most, side):
    write_arrays(tmp_path)
    for k in range(10):
        height, width = sizes[k % len(sizes)]
        pixels = np.full((height, width, 3), 10 * k, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"P1/images/scene {k}.png")
    found = ingesting._side(read(tmp_path), most=most, tasks=in_turn)
    assert found == side


def test_settings_of_pictures_reach_the_store(tmp_path: Path):
    write_arrays(tmp_path)
    for k in range(10):
        layer = Image.new("RGBA", (30, 10), (255, 0, 0, 0))
        layer.paste((0, 0, 255, 255), (10, 0, 20, 10))
        layer.save(tmp_path / f"P1/images/scene {k}.png")
    recording = read(tmp_path, ingest=Ingest(background="black"))
    image = recording.read_images(["scene 0"])[0]
    assert image[0, 0].tolist() == [0, 0, 0]
    assert image[0, 15].tolist() == [0, 0, 255]
