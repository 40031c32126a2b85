"""BOLD5000 2.0: the known traps, on miniature trees in its layout."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from raybrain.catalog import load_entry
from raybrain.config import Ingest, InputError
from raybrain.datasets import Recording, open_recording
from raybrain.datasets.bold5000 import concept_of, plain_name
from tests.datasets import masks_tree as trees
from tests.datasets.entries import bold5000_entry
from tests.datasets.other_trees import write_nifti

BETAS = "CSI2_GLMbetas-TYPED-FITHRF-GLMDENOISE-RR_ses-{:02d}.nii.gz"


def read(root: Path, **changes: object) -> Recording:
    return open_recording(
        bold5000_entry(**changes), root=str(root), subject="CSI2", settings=Ingest()
    )


@pytest.fixture
def tree(tmp_path: Path) -> trees.Tree:
    return trees.write_bold5000(tmp_path / "bold")


def test_equals_an_independent_reading(tree: trees.Tree) -> None:
    recording = read(tree.root)
    brain = nibabel.load(tree.root / "CSI2_brainmask.nii.gz").get_fdata() > 0
    union = np.logical_or.reduce(list(tree.masks.values())) & brain
    np.testing.assert_array_equal(recording.voxels.xyz, np.argwhere(union))
    for session in (1, 2, 3):
        series = nibabel.load(tree.root / BETAS.format(session)).get_fdata(dtype=np.float32)
        np.testing.assert_array_equal(recording.read_session(session), series[union].T)
        shown = recording.trials["image_id"][recording.trials["session"] == session]
        assert shown.tolist() == tree.shown[session]
    early = tree.masks["LHEarlyVis"] | tree.masks["RHEarlyVis"]
    np.testing.assert_array_equal(recording.rois["early"], early[union])
    assert recording.trials["run"].tolist() == [1] * 4 + [2] * 4 + [1] * 4 + [1] * 4 + [2] * 4


def test_the_first_showing_of_a_repeated_picture_has_no_prefix(tree: trees.Tree) -> None:
    lines = (tree.root / "CSI2_imgnames.txt").read_text().splitlines()
    assert lines[0] == "COCO_train2014_000000000009.jpg"
    assert "rep_COCO_train2014_000000000009.jpg" in lines
    trials = read(tree.root).trials
    tested = trials[trials["split"] == "test"]
    assert set(tested["image_id"]) == {"000000000009", "n01440764_10026", "kitchen3"}
    assert tested.groupby("image_id").size().tolist() == [4, 4, 4]
    # A picture outside the list trains, although it was shown twice.
    assert (trials[trials["image_id"] == "n01440768_3"]["split"] != "test").all()


def test_coco_pictures_with_and_without_their_prefix(tree: trees.Tree) -> None:
    before = read(tree.root).read_images(["000000000009"])[0]
    folder = tree.root / "BOLD5000_Stimuli/Scene_Stimuli/Presented_Stimuli/COCO"
    (folder / "000000000009.jpg").rename(folder / "COCO_train2014_000000000009.jpg")
    listed = tree.root / "BOLD5000_Stimuli/Scene_Stimuli/repeated_stimuli_113_list.txt"
    listed.write_text(listed.read_text().replace("COCO_train2014_", ""))
    recording = read(tree.root)
    np.testing.assert_array_equal(recording.read_images(["000000000009"])[0], before)
    assert "000000000009" in set(recording.trials["image_id"][recording.trials["split"] == "test"])
    assert plain_name("rep_COCO_train2014_000000000009.jpg") == "000000000009"
    assert [concept_of(n) for n in ("n01440764_10026", "kitchen3", "000000000009")] == [
        "n01440764",
        "kitchen",
        "",
    ]


def test_masks_under_their_wrong_names(tmp_path: Path) -> None:
    wrong = trees.write_bold5000(tmp_path / "wrong")
    right = trees.write_bold5000(tmp_path / "right", misnamed=False)
    assert (wrong.root / "derivatives/spm/sub-CSI2/sub-CSI2_mask-RHRRSC.nii.gz").exists()
    ours, theirs = read(wrong.root), read(right.root)
    for roi in ("LOC", "RSC"):
        np.testing.assert_array_equal(ours.rois[roi], theirs.rois[roi])


def test_voxels_outside_the_brain_mask_are_left_out(tree: trees.Tree) -> None:
    recording = read(tree.root)
    assert (recording.voxels.xyz[:, 0] > 0).all()
    assert any("lie outside the brain mask" in one for one in recording.findings)


def test_a_missing_session_moves_no_trial(tree: trees.Tree) -> None:
    whole = read(tree.root)
    (tree.root / BETAS.format(2)).unlink()
    few = read(tree.root)
    assert few.trials["session"].unique().tolist() == [1, 3]
    last = whole.trials[whole.trials["session"] == 3]["image_id"].tolist()
    assert few.trials[few.trials["session"] == 3]["image_id"].tolist() == last
    assert any("sessions 2 have no betas" in one for one in few.findings)
    with pytest.raises(InputError, match=r"session 2 of CSI2 is missing .*expect\.runs"):
        read(tree.root, expect={"trials_per_run": 4})


def test_captions(tree: trees.Tree) -> None:
    images = read(tree.root).images.set_index("image_id")
    assert images.loc["n01440764_10026", "captions"] == ("tench, Tinca tinca",)
    assert images.loc["airplanecabin1", "captions"] == ("airplanecabin",)
    assert images.loc["000000000009", "captions"] == ("a photograph",)
    layout = {"captions": "captions_train2014.json"}
    images = read(tree.root, layout=layout).images.set_index("image_id")
    assert images.loc["000000000009", "captions"] == ("A cup.", "two cups")


def test_published_counts_add_up() -> None:
    expect = load_entry("bold5000").expect
    trials = {who: sum(runs) * expect["trials_per_run"] for who, runs in expect["runs"].items()}
    assert trials == {"CSI1": 5254, "CSI2": 5254, "CSI3": 5254, "CSI4": 3108}


def test_scaled_series_are_read_scaled(tree: trees.Tree) -> None:
    before = read(tree.root).read_session(2)
    series = tree.series[2]
    image = nibabel.Nifti1Image((series * 1000).round().astype(np.int16), np.eye(4))
    image.header.set_slope_inter(0.001, 0)
    image.header.set_data_dtype(np.int16)
    path = tree.root / BETAS.format(2)
    nibabel.save(image, path)
    stored = nibabel.load(path)
    np.testing.assert_allclose(read(tree.root).read_session(2), before, atol=0.002)
    assert stored.get_data_dtype() == np.int16


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda root: (root / "CSI2_imgnames.txt").write_text("kitchen1.jpg\n"),
            "lists 1 trials, but CSI2 had 20",
        ),
        (
            lambda root: write_nifti(root / BETAS.format(2), np.zeros((6, 5, 4, 3), np.float32)),
            "has 3 volumes, but session 2 of CSI2 had 4 trials",
        ),
        (
            lambda root: write_nifti(root / "CSI2_brainmask.nii.gz", np.ones((6, 5, 3), np.uint8)),
            "from the same subject and space",
        ),
        (
            lambda root: (root / "derivatives/spm/sub-CSI2/sub-CSI2_mask-LHPPA.nii.gz").unlink(),
            "LHPPA.nii.gz is missing",
        ),
        (
            lambda root: write_nifti(
                root / "derivatives/spm/sub-CSI2/sub-CSI2_mask-LHPPA.nii.gz",
                np.full((6, 5, 4), 0.5, np.float32),
            ),
            "no whole number",
        ),
        (
            lambda root: next((root / "BOLD5000_Stimuli").rglob("kitchen1.jpg")).unlink(),
            "1 of 10 pictures are missing",
        ),
    ],
)
def test_bad_trees(tree: trees.Tree, change: object, sentence: str) -> None:
    change(tree.root)
    with pytest.raises(InputError, match=sentence):
        read(tree.root)


def test_values_that_are_not_finite(tree: trees.Tree) -> None:
    series = tree.series[2].copy()
    series[..., 1] = np.nan
    write_nifti(tree.root / BETAS.format(2), series)
    with pytest.raises(InputError, match="not finite in"):
        read(tree.root).read_session(2)
