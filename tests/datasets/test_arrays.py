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


def read(
    root: Path, *, sessions: int | None = None, ingest: Ingest | None = None, **changes: object
) -> Recording:
    settings = ingest or Ingest(sessions=sessions)
    return open_recording(arrays_entry(**changes), root=str(root), subject="P1", settings=settings)


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
    refuse("1.5. in column session, row 1", t=table.assign(session=1.5))
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


def rewrite(root: Path, name: str, **columns: object) -> None:
    """Replace columns of a table of P1."""
    path = root / "P1" / name
    pd.read_csv(path).assign(**columns).to_csv(path, index=False)


@pytest.mark.parametrize(
    "names",
    [["0001", "1500000.010000", "1e5", "NA", "True", "null", "\u00e9t\u00e9", "a/1", "b/1", "7"]],
)
def test_image_ids_keep_their_spelling(tmp_path: Path, names: list[str]) -> None:
    tree = trees.write_arrays(tmp_path)
    (tmp_path / "P1/captions.csv").unlink()
    for k, name in enumerate(names):
        target = tmp_path / f"P1/images/{name}.png"
        target.parent.mkdir(exist_ok=True)
        (tmp_path / f"P1/images/scene {k}.png").rename(target)
    rewrite(tmp_path, "trials.csv", image_id=names * 2)
    recording = read(tmp_path)
    assert sorted(recording.images["image_id"]) == sorted(names)
    for k, name in enumerate(names):
        shown = recording.read_images([name])[0]
        np.testing.assert_array_equal(shown, tree.pixels[f"scene {k}"])


def test_pictures_that_differ_in_their_ending_alone_stay_two(tmp_path: Path) -> None:
    from PIL import Image

    tree = trees.write_arrays(tmp_path)
    (tmp_path / "P1/captions.csv").unlink()
    folder = tmp_path / "P1/images"
    (folder / "scene 0.png").rename(folder / "cat.png")
    other = np.full((8, 8, 3), 7, np.uint8)
    Image.fromarray(other).save(folder / "cat.bmp")
    names = ["cat.png", "cat.bmp", *(f"scene {k}.png" for k in range(2, 10))]
    rewrite(tmp_path, "trials.csv", image_id=names * 2)
    recording = read(tmp_path)
    # Only where the ending tells pictures apart does it belong to the name.
    assert sorted(recording.images["image_id"]) == sorted(
        ["cat.png", "cat.bmp", *(f"scene {k}" for k in range(2, 10))]
    )
    np.testing.assert_array_equal(recording.read_images(["cat.png"])[0], tree.pixels["scene 0"])
    np.testing.assert_array_equal(recording.read_images(["cat.bmp"])[0], other)


def test_captions_are_text_whatever_they_spell(tmp_path: Path) -> None:
    trees.write_arrays(tmp_path)
    words = ["NA", "null", "None", "nan", "007", "1e5", "True", "a, b", 'say "a"', "x"]
    table = pd.DataFrame({"image_id": [f"scene {k}" for k in range(10)], "caption": words})
    blank = pd.DataFrame({"image_id": ["scene 3", "scene 4"], "caption": ["", "  "]})
    pd.concat([table, blank]).to_csv(tmp_path / "P1/captions.csv", index=False)
    captions = read(tmp_path).images.set_index("image_id")["captions"]
    assert captions.tolist() == [(word,) for word in words]
    table.loc[2, "caption"] = ""
    table.to_csv(tmp_path / "P1/captions.csv", index=False)
    with pytest.raises(InputError, match=r"captions\.csv has no caption of image scene 2"):
        read(tmp_path)


def test_sessions_are_counted_not_compared(tmp_path: Path) -> None:
    trees.write_arrays(tmp_path)
    rewrite(tmp_path, "trials.csv", session=[102] * 10 + [101] * 10)
    assert read(tmp_path, sessions=1).trials["session"].unique().tolist() == [101]
    assert read(tmp_path, sessions=5).trials["session"].unique().tolist() == [101, 102]


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"x": 0.5}, r"has '0\.5' in column x, row 1; it must be a whole number"),
        ({"x": -4}, r"has negative positions; they count voxels from 0 and are no millimetres"),
        ({"V1": 0.3}, r"has '0\.3' in column V1, row 1; an ROI's column holds 1"),
        ({"V1": "40%"}, r"has '40%' in column V1, row 1; an ROI's column holds 1"),
        ({"noise_ceiling": "40%"}, r"has '40%' in column noise_ceiling, row 1; write a number"),
        ({"noise_ceiling": "0,4"}, r"has '0,4' in column noise_ceiling, row 1; write a number"),
        ({"noise_ceiling": -0.1}, r"has noise ceilings outside 0\.\.1"),
    ],
)
def test_voxels_that_would_be_misread_are_refused(
    tmp_path: Path, columns: dict[str, object], sentence: str
) -> None:
    trees.write_arrays(tmp_path)
    rewrite(tmp_path, "voxels.csv", **columns)
    with pytest.raises(InputError, match=sentence):
        read(tmp_path)


def test_yes_and_missing_ceilings_are_what_they_say(tmp_path: Path) -> None:
    trees.write_arrays(tmp_path)
    expected = read(tmp_path)
    path = tmp_path / "P1/voxels.csv"
    table = pd.read_csv(path)
    table["V1"] = table["V1"].map({1: "yes", 0: "no"})
    table["ventral"] = table["ventral"].map({1: True, 0: False})
    table["noise_ceiling"] = np.where(np.arange(len(table)) % 2, table["noise_ceiling"], np.nan)
    table.to_csv(path, index=False, na_rep="n/a")
    found = read(tmp_path)
    assert set(found.rois) == set(expected.rois)
    for name, mask in expected.rois.items():
        np.testing.assert_array_equal(found.rois[name], mask)
    even = found.voxels.index % 2 == 0
    assert np.isnan(found.voxels.noise_ceiling[even]).all()
    assert (found.voxels.noise_ceiling[~even] == expected.voxels.noise_ceiling[~even]).all()


def test_rois_in_one_column_are_pointed_at(tmp_path: Path) -> None:
    trees.write_arrays(tmp_path)
    path = tmp_path / "P1/voxels.csv"
    table = pd.read_csv(path).drop(columns=["V1", "ventral"])
    table.assign(region=["V1", "ventral"] * 60).to_csv(path, index=False)
    with pytest.raises(InputError, match=r"no column 'V1'; its column region lists names"):
        read(tmp_path)


def test_chunks_that_are_missing_are_no_zeros(tmp_path: Path) -> None:
    import zarr

    tree = trees.write_arrays(tmp_path)
    (tmp_path / "P1/betas.npy").unlink()
    place = tmp_path / "P1/betas.zarr"
    array = zarr.create_array(
        str(place), shape=tree.betas.shape, chunks=(5, 40), dtype="float32", fill_value=0.0
    )
    array[:] = tree.betas
    np.testing.assert_array_equal(
        all_betas(read(tmp_path)), tree.betas[:, read(tmp_path).voxels.index]
    )
    (place / "c/1/2").unlink()
    with pytest.raises(InputError, match=r"lacks 1 of 12 chunks, and trials 5 to 9 of the ROIs"):
        all_betas(read(tmp_path))
    (place / "c/1/2").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"betas\.zarr cannot be read \(.*; write it again"):
        all_betas(read(tmp_path))


def test_a_chunk_left_out_beside_the_rois_does_not_matter(tmp_path: Path) -> None:
    import zarr

    tree = trees.write_arrays(tmp_path)
    (tmp_path / "P1/betas.npy").unlink()
    tree.betas[:, 80:] = 0.0
    array = zarr.create_array(
        str(tmp_path / "P1/betas.zarr"), shape=tree.betas.shape, chunks=(5, 40), dtype="float32"
    )
    array[:] = tree.betas
    assert array.nchunks_initialized == 8
    inside = np.arange(120) < 80
    table = pd.read_csv(tmp_path / "P1/voxels.csv")
    rewrite(tmp_path, "voxels.csv", V1=table["V1"] * inside, ventral=table["ventral"] * inside)
    recording = read(tmp_path)
    np.testing.assert_array_equal(all_betas(recording), tree.betas[:, recording.voxels.index])
