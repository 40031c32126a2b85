"""LAION-fMRI: its documented layout, on miniature trees."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pandas as pd
import pytest

from raybrain.config import Ingest, InputError
from raybrain.datasets import Recording, open_recording
from raybrain.datasets.laion import group_of, single_trial
from raybrain.datasets.nsd_space import single_trial_ceiling
from tests.datasets import masks_tree as trees
from tests.datasets.entries import laion_entry
from tests.datasets.other_trees import write_nifti

FOLDER = "derivatives/glmsingle-tedana/sub-01"
FUNC = FOLDER + "/ses-{0:02d}/func/sub-01_ses-{0:02d}_task-images"
BETAS = FUNC + "_space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz"
TRIALS = FUNC + "_desc-SingletrialBetas_trials.tsv"
CEILING = FOLDER + "/sub-01_task-images_space-T1w_desc-Noiseceiling12rep_statmap.nii.gz"


def read(root: Path, test: str = "tau", group: str = "image", **changes: object) -> Recording:
    split = {"test": test, "validation": 0.3, "group": group}
    return open_recording(
        laion_entry(split=split, **changes), root=str(root), subject="sub-01", settings=Ingest()
    )


@pytest.fixture
def tree(tmp_path: Path) -> trees.Tree:
    return trees.write_laion(tmp_path / "laion")


def test_equals_an_independent_reading(tree: trees.Tree) -> None:
    recording = read(tree.root, test="ood")
    union = np.logical_or.reduce(list(tree.masks.values())) & ~np.isnan(tree.brain)
    np.testing.assert_array_equal(recording.voxels.xyz, np.argwhere(union))
    for session in (1, 2, 3):
        series = nibabel.load(tree.root / BETAS.format(session)).get_fdata(dtype=np.float32)
        np.testing.assert_array_equal(recording.read_session(session), series[union].T)
        shown = recording.trials["image_id"][recording.trials["session"] == session]
        assert shown.tolist() == tree.shown[session]
    for roi, labels in (("V1", ("V1v", "V1d")), ("FFA", ("FFA1", "FFA2"))):
        mask = tree.masks[labels[0]] | tree.masks[labels[1]]
        np.testing.assert_array_equal(recording.rois[roi], mask[union])


def test_volumes_are_those_that_beta_index_tells(tree: trees.Tree) -> None:
    path = tree.root / TRIALS.format(1)
    table = pd.read_csv(path, sep="\t")
    assert table["beta_index"].tolist()[0] > 0  # the table is not in their order
    before = read(tree.root).read_session(1)
    table.sample(frac=1, random_state=0).to_csv(path, sep="\t", index=False)
    np.testing.assert_array_equal(read(tree.root).read_session(1), before)


@pytest.mark.parametrize("test", ["tau", "ood", "cluster_k5_0"])
def test_splits_are_those_of_the_dataset(tree: trees.Tree, test: str) -> None:
    sides = json.loads((tree.root / f"splits/sub-01/{test}.json").read_text())["variants"][0]
    trials = read(tree.root, test=test).trials
    assert set(trials["image_id"][trials["split"] == "test"]) == set(sides["test_ids"])
    assert set(trials["image_id"][trials["split"] != "test"]) == set(sides["train_ids"])
    left_out = {"tau": 3 * 2, "ood": 0, "cluster_k5_0": 3 * 2}[test]
    assert len(trials) == 3 * 11 - left_out


def test_a_cluster_is_held_out_as_a_whole(tree: trees.Tree) -> None:
    recording = read(tree.root, test="cluster_k5_0", group="cluster")
    assert "0 of 3 test categories also occur in training, with other images" in recording.findings
    assert group_of("shared_12rep_LAION_cluster_1003_i0.jpg") == "cluster_1003"
    assert group_of("shared_4rep_OOD_illusion-natural_3.png") == "OOD illusion-natural"


def test_percent_of_a_mean_becomes_a_fraction_of_a_trial(tree: trees.Tree) -> None:
    ncsnr = np.array([0.0, 0.2, 0.6, 1.5])
    percent = 100 * ncsnr**2 / (ncsnr**2 + 1 / 12)
    np.testing.assert_allclose(
        single_trial(percent, repeats=12), single_trial_ceiling(ncsnr), rtol=1e-6
    )
    assert single_trial(np.array([100.0]), repeats=4) == 1.0
    recording = read(tree.root)
    ceiling = tree.brain[tuple(recording.voxels.xyz.T)]
    np.testing.assert_allclose(
        recording.voxels.noise_ceiling, single_trial(ceiling, repeats=12), rtol=1e-6
    )
    assert any("1 voxels of the ROIs have no noise ceiling" in one for one in recording.findings)


def test_pictures_lie_in_the_order_of_the_table(tree: trees.Tree) -> None:
    recording = read(tree.root, test="ood")
    listed = pd.read_csv(tree.root / "stimuli/task-images_metadata.csv")["image_name"].tolist()
    with h5py.File(tree.root / "stimuli/task-images_stimuli.h5") as file:
        content = bytes(file["images"][listed.index(trees.OOD[0])])
    (tree.root / "one.png").write_bytes(content)
    from PIL import Image

    truth = np.asarray(Image.open(tree.root / "one.png").convert("RGB"))
    np.testing.assert_array_equal(recording.read_images([trees.OOD[0]])[0], truth)
    assert recording.read_sides([trees.OOD[0]]) == [8]


def test_captions_of_people_go_before_those_of_a_machine(tree: trees.Tree) -> None:
    images = read(tree.root, test="ood").images.set_index("image_id")
    assert images.loc[trees.LAION[0], "captions"] == ("human 1", "human 2")
    path = tree.root / "stimuli/task-images_desc-captions.csv"
    table = pd.read_csv(path)
    table[table["source"] == "ai"].to_csv(path, index=False)
    images = read(tree.root, test="ood").images.set_index("image_id")
    assert images.loc[trees.LAION[0], "captions"] == ("ai 0",)
    assert images.loc[trees.OOD[0], "captions"] == ("a photograph",)


def _edit(root: Path, path: str, change: object) -> None:
    table = pd.read_csv(root / path, sep="\t")
    change(table).to_csv(root / path, sep="\t", index=False)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda root: _edit(root, TRIALS.format(1), lambda t: t.assign(beta_index=0)),
            "does not count its volumes",
        ),
        (
            lambda root: _edit(root, TRIALS.format(2), lambda t: t[1:]),
            "has 11 volumes, but its table lists 10 trials",
        ),
        (
            lambda root: _edit(root, TRIALS.format(2), lambda t: t.drop(columns="label")),
            "no column 'label'",
        ),
        (
            lambda root: (root / "splits/sub-01/tau.json").write_text('{"variants": []}'),
            "is no split with variants",
        ),
        (
            lambda root: write_nifti(root / CEILING, np.full((6, 5, 4), 120, np.float32)),
            "noise ceilings outside 0..100 %",
        ),
        (
            lambda root: write_nifti(root / CEILING, np.ones((6, 5, 3), np.float32)),
            "from the same subject and space",
        ),
        (
            lambda root: next((root / "derivatives/rois").rglob("*label-PPA_mask*")).unlink(),
            "label-PPA_mask.nii.gz is missing",
        ),
        (
            lambda root: (root / "stimuli/task-images_metadata.csv").write_text("image_name\nx\n"),
            "does not list .* which was shown",
        ),
    ],
)
def test_bad_trees(tree: trees.Tree, change: object, sentence: str) -> None:
    change(tree.root)
    with pytest.raises(InputError, match=sentence):
        read(tree.root)


def test_unknown_splits_are_refused(tree: trees.Tree) -> None:
    with pytest.raises(InputError, match="choose from random_"):
        read(tree.root, test="shared1000")


def test_a_voxel_that_is_not_finite(tree: trees.Tree) -> None:
    recording = read(tree.root)
    series = tree.series[1].copy()
    series[tuple(recording.voxels.xyz[0])] = np.nan
    write_nifti(tree.root / BETAS.format(1), series)
    with pytest.raises(InputError, match="not finite in 1 of"):
        recording.read_session(1)
