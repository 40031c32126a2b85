"""A dataset of one's own, in every form that is accepted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from raybrain.config import Ingest, InputError
from raybrain.datasets import Recording, open_recording
from tests.datasets import other_trees as trees
from tests.datasets.test_conformance import arrays_entry


def read(root: Path, *, sessions: int | None = None, **changes: object) -> Recording:
    return open_recording(
        arrays_entry(**changes), root=str(root), subject="P1", settings=Ingest(sessions=sessions)
    )


def all_betas(recording: Recording) -> np.ndarray:
    return np.concatenate([recording.read_session(1), recording.read_session(2)])


@pytest.mark.parametrize("kind", ["npy", "npy-volume", "npy-fortran", "h5", "zarr"])
def test_every_form_gives_the_same_recording(tmp_path: Path, kind: str) -> None:
    tree = trees.write_arrays(tmp_path, kind=kind)
    recording = read(tmp_path)
    flat = np.ravel_multi_index(tuple(recording.voxels.xyz.T), trees.GRID)
    np.testing.assert_array_equal(all_betas(recording), tree.betas[:, flat])
    assert (flat % 3 == 2).sum() == 0  # in neither ROI
    np.testing.assert_array_equal(recording.rois["V1"], flat % 3 == 0)
    table = pd.read_csv(tmp_path / "P1/voxels.csv")
    np.testing.assert_allclose(
        recording.voxels.noise_ceiling, table["noise_ceiling"].to_numpy()[flat], rtol=1e-6
    )


def test_pictures_and_captions_follow_their_names(tmp_path: Path) -> None:
    tree = trees.write_arrays(tmp_path)
    recording = read(tmp_path)
    np.testing.assert_array_equal(recording.read_images(["scene 4"])[0], tree.pixels["scene 4"])
    captions = recording.images.set_index("image_id").loc["scene 4", "captions"]
    assert captions == ("scene 4, view 1", "scene 4, view 2")
    (tmp_path / "P1/captions.csv").unlink()
    without = read(tmp_path)
    assert without.images.set_index("image_id").loc["scene 4", "captions"] == ("indoor",)
    assert any("captions are the groups" in note for note in without.findings)


def test_the_smallest_dataset_has_three_parts(tmp_path: Path) -> None:
    tree = trees.write_arrays(tmp_path)
    (tmp_path / "P1/voxels.csv").unlink()
    (tmp_path / "P1/captions.csv").unlink()
    table = pd.read_csv(tmp_path / "P1/trials.csv")
    table[["image_id", "split"]].to_csv(tmp_path / "P1/trials.csv", index=False)
    recording = read(tmp_path, rois={"all": {"columns": ["*"]}})
    assert recording.trials["session"].unique().tolist() == [1]
    np.testing.assert_array_equal(recording.read_session(1), tree.betas)
    assert np.isnan(recording.voxels.noise_ceiling).all()
    with pytest.raises(InputError, match=r"voxels\.csv is missing"):
        read(tmp_path)


def test_sessions_out_of_order_are_sorted_with_their_betas(tmp_path: Path) -> None:
    tree = trees.write_arrays(tmp_path)
    table = pd.read_csv(tmp_path / "P1/trials.csv")
    table["session"] = [2, 1] * 10
    table.to_csv(tmp_path / "P1/trials.csv", index=False)
    recording = read(tmp_path)
    assert recording.trials["session"].tolist() == [1] * 10 + [2] * 10
    flat = recording.voxels.index
    np.testing.assert_array_equal(recording.read_session(1), tree.betas[1::2][:, flat])
    np.testing.assert_array_equal(recording.read_session(2), tree.betas[::2][:, flat])
    first = read(tmp_path, sessions=1)
    assert len(first.trials) == 10


def test_small_integers_are_kept_with_their_scale(tmp_path: Path) -> None:
    tree = trees.write_arrays(tmp_path)
    whole = (tree.betas * 300).round().astype(np.int16)
    np.save(tmp_path / "P1/betas.npy", whole)
    recording = read(tmp_path, layout={"scale": 1 / 300})
    assert (recording.dtype, recording.scale) == ("int16", 1 / 300)
    np.testing.assert_array_equal(all_betas(recording), whole[:, recording.voxels.index])


def test_hashed_split_needs_no_column(tmp_path: Path) -> None:
    trees.write_arrays(tmp_path)
    table = pd.read_csv(tmp_path / "P1/trials.csv").drop(columns="split")
    table.to_csv(tmp_path / "P1/trials.csv", index=False)
    with pytest.raises(InputError, match=r"no column split; .* hashed"):
        read(tmp_path)
    split = {"test": "hashed", "validation": 0.2, "group": "image"}
    trials = read(tmp_path, split=split).trials
    assert (trials.groupby("image_id")["split"].nunique() == 1).all()
    fewer = read(tmp_path, sessions=1, split=split).trials
    pd.testing.assert_frame_equal(fewer, trials[trials["session"] == 1])


def test_validation_that_is_given_is_kept(tmp_path: Path) -> None:
    trees.write_arrays(tmp_path)
    table = pd.read_csv(tmp_path / "P1/trials.csv")
    chosen = table["image_id"].isin(["scene 1", "scene 2"])
    table.loc[chosen, "split"] = "validation"
    table.to_csv(tmp_path / "P1/trials.csv", index=False)
    trials = read(tmp_path).trials
    np.testing.assert_array_equal(trials["split"] == "validation", chosen)


def test_bad_tables_are_one_sentence_each(tmp_path: Path) -> None:
    trees.write_arrays(tmp_path)
    path, voxels = tmp_path / "P1/trials.csv", tmp_path / "P1/voxels.csv"
    table, places = pd.read_csv(path), pd.read_csv(voxels)

    def refuse(sentence: str, *, t: pd.DataFrame = table, v: pd.DataFrame = places) -> None:
        t.to_csv(path, index=False)
        v.to_csv(voxels, index=False)
        with pytest.raises(InputError, match=sentence):
            read(tmp_path)

    refuse("19 trials; one axis must be the trials", t=table[1:])
    refuse("without image_id", t=table.assign(image_id=[None, *table["image_id"][1:]]))
    refuse("no column 'image_id'", t=table.drop(columns="image_id"))
    refuse("whole number in column session", t=table.assign(session=1.5))
    refuse("split 'hold'; write train, validation, test", t=table.assign(split="hold"))
    mixed = table.assign(split=["test", *table["split"][1:]])
    refuse("image scene 0 both in the test and outside", t=mixed)
    refuse("1 of 10 pictures are missing", t=table.replace("scene 3", "scene x"))
    refuse("noise ceilings outside 0..1", v=places.assign(noise_ceiling=40.0))
    refuse("119 rows, but the betas have 120 voxels", v=places[1:])
    refuse("no column 'V1'; did you mean 'V11'", v=places.rename(columns={"V1": "V11"}))


def test_betas_that_cannot_be_used(tmp_path: Path) -> None:
    tree = trees.write_arrays(tmp_path)
    path = tmp_path / "P1/betas.npy"
    broken = tree.betas.copy()
    broken[3, 3] = np.nan
    np.save(path, broken)
    with pytest.raises(InputError, match=r"session 1 of .*betas\.npy .* not finite in 1 of"):
        all_betas(read(tmp_path))
    np.save(path, np.array({"betasmd": tree.betas}, dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"saved by GLMsingle becomes one by numpy\.save"):
        read(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"has none of betas\.npy, betas\.h5"):
        read(tmp_path)
