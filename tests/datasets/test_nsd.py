"""One test per known trap of NSD, on a miniature tree in its exact layout."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pandas as pd
import pytest

from raybrain.catalog import CatalogEntry, load_entry
from raybrain.config import Ingest, InputError
from raybrain.datasets import Recording, nsd, open_recording
from tests.datasets.nsd_tree import (
    GRID,
    PER_SUBJECT,
    SESSIONS,
    SUBJECT,
    TRIALS,
    Tree,
    write_hdf5,
    write_nifti,
    write_surface,
    write_tree,
)

RESPONSES = f"nsddata/ppdata/{SUBJECT}/behav/responses.tsv"
DESIGN = "nsddata/experiments/nsd/nsd_expdesign.mat"
STIM_INFO = "nsddata/experiments/nsd/nsd_stim_info_merged.csv"
STIMULI = "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
CAPTIONS = "nsddata_stimuli/stimuli/nsd/annotations/captions_train2017.json"
ROI = f"nsddata/ppdata/{SUBJECT}/func1pt8mm/roi"
BETAS = f"nsddata_betas/ppdata/{SUBJECT}/func1pt8mm/betas_fithrf_GLMdenoise_RR"
LAYOUT = {"betas": "betas_fithrf_GLMdenoise_RR", "space": "func1pt8mm"}


def entry(*, layout: dict | None = None, **changes: object) -> CatalogEntry:
    """The shipped entry with the ROIs of the miniature tree and none of NSD's sizes."""
    shipped = load_entry("nsd")
    rois = {
        name: roi
        for name, roi in shipped.rois.items()
        if roi.union or roi.atlas in ("prf-visualrois", "streams", "nsdgeneral")
    }
    changed = {"rois": rois, "expect": {"sessions": {SUBJECT: SESSIONS}}, **changes}
    content = shipped.model_dump() | {
        key: {name: value.model_dump() for name, value in rois.items()} if value is rois else value
        for key, value in changed.items()
    }
    return CatalogEntry.model_validate(content | {"layout": LAYOUT | (layout or {})})


def read(root: Path, which: CatalogEntry | None = None, **settings: object) -> Recording:
    return open_recording(
        which or entry(), root=str(root), subject=SUBJECT, settings=Ingest(**settings)
    )


def all_betas(recording: Recording) -> np.ndarray:
    sessions = sorted(recording.trials["session"].unique())
    return np.concatenate([recording.read_session(int(session)) for session in sessions])


@pytest.fixture(scope="module")
def shared_tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return write_tree(tmp_path_factory.mktemp("nsd"))


@pytest.fixture
def tree(shared_tree: Tree, tmp_path: Path) -> Tree:
    """A copy to damage."""
    from dataclasses import replace

    root = tmp_path / "nsd"
    shutil.copytree(shared_tree.root, root)
    return replace(shared_tree, root=root)


def test_numbers_from_1_become_names_from_0(shared_tree: Tree) -> None:
    recording = read(shared_tree.root)
    assert recording.trials["image_id"].tolist() == [f"{k:05d}" for k in shared_tree.nsd_id]
    for name in recording.images["image_id"].iloc[[0, 7, -1]]:
        pixels = recording.read_images([name])[0]
        np.testing.assert_array_equal(pixels, shared_tree.pixels[int(name)])
        captions = recording.images.set_index("image_id").loc[name, "captions"]
        assert captions == (f"image {int(name)} text 0", f"image {int(name)} text 1")


def test_published_order_of_subj01_agrees_with_the_formula() -> None:
    # nsdId0 = subjectim[s-1, masterordering[t]-1] - 1, trial 0 of subj01 shows 46002 (published).
    from raybrain.datasets.nsd_tables import Design

    images = np.zeros((8, 3), np.int64)
    images[0] = [48618, 46003, 5]
    ordering = np.array([2, 1, 2])
    design = Design(nsd_id=images[0, ordering - 1] - 1, rank=ordering, shared=frozenset())
    assert design.nsd_id.tolist() == [46002, 48617, 46002]


@pytest.mark.parametrize("version", ["betas_assumehrf", "betas_fithrf"])
@pytest.mark.parametrize("space", ["func1pt8mm", "func1mm"])
def test_every_version_and_space_is_read_from_its_own_folder(
    tmp_path: Path, version: str, space: str
) -> None:
    tree = write_tree(tmp_path, betas_version=version, space=space, endings=("nii.gz",))
    recording = read(tmp_path, entry(layout={"betas": version, "space": space}))
    x, y, z = recording.voxels.xyz.T
    np.testing.assert_array_equal(all_betas(recording), tree.betas[:, x, y, z])


def test_hdf5_axes_are_reversed_and_voxels_come_in_one_order(shared_tree: Tree) -> None:
    nifti = read(shared_tree.root, entry(layout={"format": "nii.gz"}))
    hdf5 = read(shared_tree.root, entry(layout={"format": "hdf5"}))
    x, y, z = nifti.voxels.xyz.T
    truth = shared_tree.betas[:, x, y, z]
    assert (np.diff(nifti.voxels.index) > 0).all()
    np.testing.assert_array_equal(nifti.voxels.index, np.ravel_multi_index((x, y, z), GRID))
    np.testing.assert_array_equal(hdf5.voxels.index, nifti.voxels.index)
    np.testing.assert_array_equal(all_betas(nifti), truth)
    np.testing.assert_array_equal(all_betas(hdf5), truth)


@pytest.mark.parametrize(
    "storage", [{"chunks": (4, 2, 3, 2)}, {"chunks": (TRIALS, 1, 1, 1), "compression": "gzip"}, {}]
)
def test_hdf5_of_any_chunking_gives_the_same_betas(tree: Tree, storage: dict) -> None:
    block = tree.betas[:TRIALS].transpose(0, 3, 2, 1)
    with h5py.File(tree.root / BETAS / "betas_session01.hdf5", "w") as file:
        file.create_dataset("betas", data=block, **storage)
    recording = read(tree.root, entry(layout={"format": "hdf5"}), sessions=1)
    x, y, z = recording.voxels.xyz.T
    np.testing.assert_array_equal(recording.read_session(1), tree.betas[:TRIALS, x, y, z])


def test_hdf5_chunks_that_were_never_written_are_the_fill_value(tree: Tree) -> None:
    with h5py.File(tree.root / BETAS / "betas_session01.hdf5", "w") as file:
        betas = file.create_dataset(
            "betas", shape=(TRIALS, *GRID[::-1]), dtype="i2", chunks=(TRIALS, 1, 1, 1)
        )
        betas[:, :2] = tree.betas[:TRIALS].transpose(0, 3, 2, 1)[:, :2]
    recording = read(tree.root, entry(layout={"format": "hdf5"}), sessions=1)
    x, y, z = recording.voxels.xyz.T
    written = np.where(z < 2, tree.betas[:TRIALS, x, y, z], 0)
    np.testing.assert_array_equal(recording.read_session(1), written)


def test_int16_is_kept_and_scaled_by_300(shared_tree: Tree) -> None:
    recording = read(shared_tree.root)
    assert recording.dtype == "int16"
    assert recording.read_session(1).dtype == np.int16
    assert recording.scale == pytest.approx(1 / 300)


def test_surface_betas_are_percent_already(tmp_path: Path) -> None:
    tree = write_tree(tmp_path, endings=())
    surface = write_surface(tmp_path)
    recording = read(tmp_path, entry(layout={"space": "fsaverage"}))
    assert (recording.scale, recording.dtype) == (1.0, "float32")
    side, vertex, _ = recording.voxels.xyz.T
    np.testing.assert_array_equal(all_betas(recording), surface.betas[:, side, vertex])
    inside = (surface.streams > 0) | (surface.visual > 0)
    lost = inside & np.isnan(surface.ncsnr)
    assert lost.sum() > 0
    assert len(recording.voxels.index) == (inside & ~lost).sum()
    assert f"{lost.sum()} vertices of the ROIs have no data and are left out" in recording.findings
    assert recording.trials["image_id"].tolist() == [f"{k:05d}" for k in tree.nsd_id]


def test_minus_1_and_0_are_no_region(shared_tree: Tree) -> None:
    recording = read(shared_tree.root)
    general = recording.rois["nsdgeneral"]
    assert general.sum() == (shared_tree.streams > 0).sum()
    x, y, z = recording.voxels.xyz.T
    np.testing.assert_array_equal(general, shared_tree.streams[x, y, z] > 0)


def test_labels_come_from_the_tables_by_name(tree: Tree) -> None:
    recording = read(tree.root)
    x, y, z = recording.voxels.xyz.T
    visual, streams = tree.visual[x, y, z], tree.streams[x, y, z]
    np.testing.assert_array_equal(recording.rois["V2"], np.isin(visual, [3, 4]))
    np.testing.assert_array_equal(recording.rois["early"], visual >= 1)
    np.testing.assert_array_equal(recording.rois["ventral"], streams == 5)
    # The subject's own table wins over fsaverage's, and both over the built-in one.
    own = tree.root / f"nsddata/freesurfer/{SUBJECT}/label/streams.mgz.ctab"
    own.write_text(
        "0 Unknown\n2 ventral\n5 midventral\n1 early\n3 midlateral\n"
        "4 midparietal\n6 lateral\n7 parietal\n"
    )
    changed = read(tree.root)
    np.testing.assert_array_equal(changed.rois["ventral"], streams == 2)
    shutil.rmtree(tree.root / "nsddata/freesurfer")
    built_in = read(tree.root)
    np.testing.assert_array_equal(built_in.rois["ventral"], streams == 5)
    np.testing.assert_array_equal(built_in.rois["V2"], np.isin(visual, [3, 4]))


def test_one_hemisphere_of_an_atlas(shared_tree: Tree) -> None:
    rois = {
        "left": {"atlas": "lh.streams", "labels": ["ventral"]},
        "both": {"atlas": "streams", "labels": ["ventral"]},
    }
    recording = read(shared_tree.root, entry(rois=rois))
    left = recording.voxels.xyz[:, 0] < GRID[0] // 2
    np.testing.assert_array_equal(recording.rois["left"], recording.rois["both"] & left)
    assert 0 < recording.rois["left"].sum() < recording.rois["both"].sum()


def test_ncsnr_becomes_the_ceiling_of_one_trial_and_nan_stays_nan(shared_tree: Tree) -> None:
    recording = read(shared_tree.root)
    x, y, z = recording.voxels.xyz.T
    ratio = shared_tree.ncsnr[x, y, z]
    np.testing.assert_allclose(recording.voxels.noise_ceiling, ratio**2 / (ratio**2 + 1), rtol=1e-6)
    unknown = np.isnan(recording.voxels.noise_ceiling)
    assert unknown.sum() == (shared_tree.visual == 7).sum()
    # NSD's percentage over three repeats: ncsnr .361 is a ceiling of 28.1 %.
    single = nsd_ceiling(0.361)
    assert 3 * single / (1 + 2 * single) == pytest.approx(0.281, abs=5e-4)


def nsd_ceiling(ncsnr: float) -> float:
    from raybrain.datasets.nsd_space import single_trial_ceiling

    return float(single_trial_ceiling(np.array([ncsnr]))[0])


def test_sessions_present_are_read_and_absent_ones_named(tree: Tree) -> None:
    for ending in ("nii.gz", "hdf5"):
        (tree.root / BETAS / f"betas_session02.{ending}").unlink()
        (tree.root / BETAS / f"betas_session05.{ending}").unlink()
    recording = read(tree.root)
    assert recording.trials["session"].unique().tolist() == [1, 3, 4]
    assert any("sessions 2 have no betas" in note for note in recording.findings)
    rows = np.r_[0:TRIALS, 2 * TRIALS : 4 * TRIALS]
    assert recording.trials["image_id"].tolist() == [f"{k:05d}" for k in tree.nsd_id[rows]]
    x, y, z = recording.voxels.xyz.T
    np.testing.assert_array_equal(
        recording.read_session(3), tree.betas[2 * TRIALS : 3 * TRIALS][:, x, y, z]
    )


def test_trials_planned_beyond_the_last_session_are_ignored(tmp_path: Path) -> None:
    # The table of stimuli plans 5 sessions for everyone; only 3 took place.
    tree = write_tree(tmp_path, sessions=3)
    recording = read(tmp_path)
    assert len(recording.trials) == 3 * TRIALS
    assert set(recording.images["image_id"]) == {f"{k:05d}" for k in tree.nsd_id[: 3 * TRIALS]}


def test_shared1000_is_every_shared_image_shown(shared_tree: Tree) -> None:
    trials = read(shared_tree.root).trials
    tested = trials[trials["split"] == "test"]["image_id"].unique()
    assert sorted(tested) == [f"{k:05d}" for k in sorted(shared_tree.shared)]


def test_982_uses_the_sessions_public_before_2023(shared_tree: Tree) -> None:
    split = {"test": "982", "validation": 0.1, "group": "image"}
    trials = read(shared_tree.root, entry(split=split)).trials
    kept = shared_tree.nsd_id[: (SESSIONS - 3) * TRIALS]
    assert trials["image_id"].tolist() == [f"{k:05d}" for k in kept]
    assert (trials["split"] == "test").sum() == np.isin(kept, shared_tree.shared).sum()


def test_1000_needs_all_sessions(tree: Tree) -> None:
    split = {"test": "1000", "validation": 0.1, "group": "image"}
    trials = read(tree.root, entry(split=split)).trials
    assert (trials[trials["split"] == "test"].groupby("image_id").size() == 3).all()
    with pytest.raises(InputError, match="test set '1000' needs all 5 sessions"):
        read(tree.root, entry(split=split), sessions=4)


def test_clusters_are_divided_by_no_split_and_do_not_move(tmp_path: Path) -> None:
    tree = write_tree(tmp_path)
    themes = ["cat sofa", "surf wave", "train station", "pizza plate"]
    for split in ("train2017", "val2017"):
        path = tmp_path / f"nsddata_stimuli/stimuli/nsd/annotations/captions_{split}.json"
        content = json.loads(path.read_text())
        for note in content["annotations"]:
            note["caption"] = f"a {themes[note['image_id'] // 7 % 4]} and a thing"
        path.write_text(json.dumps(content))
    split = {"test": "clusters", "validation": 0.3, "group": "cluster"}
    which = entry(split=split, layout={"clusters": 4})
    recording = read(tmp_path, which)
    group = recording.images.set_index("image_id")["group"]
    # What was written into the captions is found again: 4 clusters, one per theme.
    for name in group.index:
        word = themes[(int(name) * 7 + 1000) // 7 % 4].split()[0]
        assert word in group[name].split("-")
    sides = recording.trials.assign(cluster=recording.trials["image_id"].map(group))
    assert (sides.groupby("cluster")["split"].nunique() == 1).all()
    assert set(sides["split"]) == {"train", "validation", "test"}
    first = read(tmp_path, which, sessions=2)
    pd.testing.assert_frame_equal(first.trials, recording.trials[: 2 * TRIALS])
    assert len(tree.nsd_id) == len(recording.trials)


def test_image_groups_from_instances_name_the_largest_object(tree: Tree) -> None:
    table = pd.read_csv(tree.root / STIM_INFO, index_col=0)
    for split in ("train2017", "val2017"):
        rows = table[table["cocoSplit"] == split]
        notes = [
            {"image_id": int(coco), "id": k, "category_id": category, "area": area}
            for k, coco in enumerate(rows["cocoId"])
            for category, area in ((3, 10.0), (5, 9.0 if coco % 2 else 12.0), (3, 1.0))
        ]
        path = (tree.root / CAPTIONS).with_name(f"instances_{split}.json")
        categories = [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}]
        path.write_text(json.dumps({"annotations": notes, "categories": categories}))
    images = read(tree.root, entry(layout={"groups": "instances"})).images
    odd = (images["image_id"].astype(int) * 7 + 1000) % 2 == 1
    assert images["group"].tolist() == ["cat" if is_odd else "dog" for is_odd in odd]


def test_rois_are_printed_beside_the_published_sizes(shared_tree: Tree) -> None:
    rois = {"V1": {"atlas": "prf-visualrois", "labels": ["V1v"], "published": {SUBJECT: 1350}}}
    recording = read(shared_tree.root, entry(rois=rois))
    count = (shared_tree.visual == 1).sum()
    assert f"ROI V1: {count} voxels (published: 1,350)" in recording.findings


def test_the_shipped_entry_knows_every_subject() -> None:
    shipped = load_entry("nsd")
    sizes = shipped.expect["sessions"]
    assert [sizes[subject] for subject in shipped.subjects] == [40, 40, 32, 30, 40, 32, 40, 30]
    assert 750 * sum(sizes.values()) == 213_000  # trials, Allen et al. 2022
    assert set(shipped.rois["nsdgeneral"].published) == set(shipped.subjects)
    for space in ("func1pt8mm", "func1mm"):
        assert set(shipped.expect["grid"][space]) == set(shipped.subjects)
    assert not shipped.licence.redistributable


def test_data_plan_lists_what_is_missing_and_what_982_does_not_need(tree: Tree) -> None:
    (tree.root / CAPTIONS).unlink()
    split = {"test": "982", "validation": 0.1, "group": "image"}
    listed = nsd.required_files(
        entry(split=split), root=str(tree.root), subject=SUBJECT, settings=Ingest()
    )
    missing = [file.path for file in listed if not file.present]
    assert missing == [CAPTIONS]
    sessions = [file for file in listed if "betas_session" in file.path]
    assert [file.path[-9:-7] for file in sessions] == ["01", "02"]
    assert sessions[0].bytes == (tree.root / sessions[0].path).stat().st_size
    nowhere = nsd.required_files(
        load_entry("nsd"), root=str(tree.root / "none"), subject="subj01", settings=Ingest()
    )
    assert not any(file.present for file in nowhere)
    sessions = [file for file in nowhere if "betas_session" in file.path]
    assert len(sessions) == 40
    assert sessions[0].bytes == 81 * 104 * 83 * 750 * 2


def rewrite(path: Path, **columns: object) -> None:
    """Set cells of responses.tsv."""
    table = pd.read_csv(path, sep="\t")
    for name, (row, value) in columns.items():
        table.loc[row, name] = value
    table.to_csv(path, sep="\t", index=False)


def refuse(root: Path, *parts: str, which: CatalogEntry | None = None) -> None:
    """Opening or reading must fail with one sentence that holds every part."""
    with pytest.raises(InputError) as caught:
        all_betas(read(root, which))
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "path",
    [
        RESPONSES,
        DESIGN,
        STIM_INFO,
        STIMULI,
        CAPTIONS,
        f"{ROI}/streams.nii.gz",
        f"{BETAS}/ncsnr.nii.gz",
    ],
)
def test_missing_file_is_named_with_the_way_to_get_it(tree: Tree, path: str) -> None:
    (tree.root / path).unlink()
    refuse(tree.root, f"{tree.root}/{path} is missing", "aws s3 cp --no-sign-request")


def test_no_betas_at_all(tree: Tree) -> None:
    shutil.rmtree(tree.root / BETAS)
    refuse(tree.root, f"{BETAS}/betas_session01.nii.gz is missing")


def test_annex_link_without_content(tree: Tree) -> None:
    (tree.root / RESPONSES).unlink()
    (tree.root / RESPONSES).symlink_to("../../.git/annex/objects/gone")
    refuse(tree.root, RESPONSES, "datalad get")


@pytest.mark.parametrize("keep", [0.5, 0.999])
def test_truncated_nifti(tree: Tree, keep: float) -> None:
    path = tree.root / BETAS / "betas_session03.nii.gz"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    refuse(tree.root, str(path), "ends early; download it again")


def test_damaged_nifti(tree: Tree) -> None:
    path = tree.root / BETAS / "betas_session03.nii.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    refuse(tree.root, str(path), "download it again")


def test_truncated_and_damaged_hdf5(tree: Tree) -> None:
    path = tree.root / BETAS / "betas_session02.hdf5"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refuse(tree.root, str(path), "download it again", which=entry(layout={"format": "hdf5"}))


def test_not_a_nifti(tree: Tree) -> None:
    path = tree.root / ROI / "streams.nii.gz"
    path.write_bytes(gzip.compress(b"<html>access denied</html>" * 40))
    refuse(tree.root, str(path), "download it again")


@pytest.mark.parametrize("layout", [{"format": "nii.gz"}, {"format": "hdf5"}])
def test_wrong_shape_of_betas(tree: Tree, layout: dict) -> None:
    block = tree.betas[:TRIALS, 1:]
    write_nifti(tree.root / BETAS / "betas_session01.nii.gz", np.moveaxis(block, 0, -1))
    write_hdf5(tree.root / BETAS / "betas_session01.hdf5", block)
    refuse(tree.root, "betas_session01", "same subject and space", which=entry(layout=layout))


def test_wrong_number_of_trials(tree: Tree) -> None:
    block = np.moveaxis(tree.betas[: TRIALS - 1], 0, -1)
    write_nifti(tree.root / BETAS / "betas_session01.nii.gz", block)
    refuse(tree.root, "betas_session01.nii.gz has 11 volumes, but 12 trials")


def test_wrong_grid_of_an_atlas(tree: Tree) -> None:
    write_nifti(tree.root / ROI / "streams.nii.gz", np.zeros((4, 4, 4)))
    refuse(tree.root, "streams", "same subject and space")


def test_grid_other_than_published(tree: Tree) -> None:
    expect = {"grid": {"func1pt8mm": {SUBJECT: [82, 106, 84]}}}
    refuse(tree.root, "(82, 106, 84) is published", which=entry(expect=expect))


def test_sessions_out_of_order(tree: Tree) -> None:
    rewrite(tree.root / RESPONSES, SESSION=(3, 2))
    refuse(tree.root, RESPONSES, "order of presentation")


def test_duplicated_trial(tree: Tree) -> None:
    table = pd.read_csv(tree.root / RESPONSES, sep="\t")
    doubled = pd.concat([table[:4], table[3:]])
    doubled.to_csv(tree.root / RESPONSES, sep="\t", index=False)
    refuse(tree.root, RESPONSES, "session 1, run 1, trial 4 twice")


def test_responses_contradict_the_design(tree: Tree) -> None:
    rewrite(tree.root / RESPONSES, **{"73KID": (14, tree.nsd_id[14] + 2)})
    refuse(tree.root, RESPONSES, "session 2, run 1, trial 3", "same release")


def test_stim_info_contradicts_the_responses(tree: Tree) -> None:
    table = pd.read_csv(tree.root / STIM_INFO, index_col=0)
    image = tree.nsd_id[0]
    column = f"subject{int(SUBJECT[-2:])}_rep0"
    table.loc[image, column] += 1
    table.to_csv(tree.root / STIM_INFO)
    refuse(tree.root, STIM_INFO, "does not list trial 1", "same release")


def test_stim_info_contradicts_the_shared_images(tree: Tree) -> None:
    table = pd.read_csv(tree.root / STIM_INFO, index_col=0)
    table.loc[tree.shared[0], "shared1000"] = False
    table.to_csv(tree.root / STIM_INFO)
    refuse(tree.root, STIM_INFO, "shared images")


def test_betas_of_a_session_without_responses(tree: Tree) -> None:
    table = pd.read_csv(tree.root / RESPONSES, sep="\t")
    table[table["SESSION"] < SESSIONS].to_csv(tree.root / RESPONSES, sep="\t", index=False)
    refuse(tree.root, RESPONSES, f"no trials of session {SESSIONS}")


def test_another_number_of_trials_than_expected(tree: Tree) -> None:
    refuse(tree.root, "12 trials in session 1", which=entry(expect={"trials_per_session": 750}))


def test_unknown_label_suggests_the_nearest(tree: Tree) -> None:
    rois = {"V1": {"atlas": "prf-visualrois", "labels": ["V1V"]}}
    refuse(tree.root, "'V1V'", "did you mean 'V1v'?", which=entry(rois=rois))


def test_union_of_an_unknown_roi_and_of_itself(tree: Tree) -> None:
    one = {"atlas": "streams", "labels": ["early"]}
    refuse(tree.root, "'b'", which=entry(rois={"a": one, "c": {"union": ["a", "b"]}}))
    refuse(tree.root, "itself", which=entry(rois={"a": one, "c": {"union": ["a", "c"]}}))


def test_images_missing_for_trials(tree: Tree) -> None:
    with h5py.File(tree.root / STIMULI, "w") as file:
        file["imgBrick"] = tree.pixels[: tree.nsd_id.max()]
    refuse(tree.root, STIMULI, f"image {tree.nsd_id.max()} (nsdId) was shown")


def test_caption_missing_for_an_image(tree: Tree) -> None:
    path = tree.root / CAPTIONS
    content = json.loads(path.read_text())
    table = pd.read_csv(tree.root / STIM_INFO, index_col=0).loc[np.unique(tree.nsd_id)]
    gone = int(table.loc[table["cocoSplit"] == "train2017", "cocoId"].iloc[0])
    content["annotations"] = [n for n in content["annotations"] if n["image_id"] != gone]
    path.write_text(json.dumps(content))
    refuse(tree.root, f"no caption of COCO image {gone}")


def test_nan_betas(tree: Tree) -> None:
    for session in range(SESSIONS):
        block = tree.betas[session * TRIALS :][:TRIALS].astype(np.float32)
        if session == 1:
            block[:, tree.streams == 5] = np.nan
        path = tree.root / BETAS / f"betas_session{session + 1:02d}.nii.gz"
        write_nifti(path, np.moveaxis(block, 0, -1))
    refuse(tree.root, "betas_session02.nii.gz", f"not finite in {(tree.streams == 5).sum()} of")


def test_session_of_another_type(tree: Tree) -> None:
    block = np.moveaxis(tree.betas[:TRIALS].astype(np.float32), 0, -1)
    write_nifti(tree.root / BETAS / "betas_session02.nii.gz", block)
    refuse(tree.root, "betas_session02.nii.gz holds float32, but other sessions hold int16")


@pytest.mark.parametrize("session", [1, 2, 4])
def test_betas_resaved_with_a_scaling_are_refused(tree: Tree, session: int) -> None:
    image = nibabel.Nifti1Image(np.moveaxis(tree.betas[:TRIALS], 0, -1) / 300, np.eye(4))
    image.set_data_dtype(np.int16)
    name = f"betas_session{session:02d}.nii.gz"
    nibabel.save(image, tree.root / BETAS / name)
    # Before any session is read.
    with pytest.raises(InputError, match=rf"{name} was saved with a scaling of its own"):
        read(tree.root)


def test_a_resampled_atlas_is_refused(tree: Tree) -> None:
    path = tree.root / ROI / "prf-visualrois.nii.gz"
    labels = np.asarray(nibabel.load(path).dataobj, dtype=np.float32)
    write_nifti(path, np.where(labels == 1, np.float32(1.37), labels))
    with pytest.raises(InputError, match=r"atlas prf-visualrois has the label 1\.37 in \d+ voxels"):
        read(tree.root)


def test_a_negative_signal_to_noise_ratio_is_refused(tree: Tree) -> None:
    path = tree.root / BETAS / "ncsnr.nii.gz"
    ratio = np.asarray(nibabel.load(path).dataobj, dtype=np.float32)
    write_nifti(path, -np.abs(ratio))
    with pytest.raises(InputError, match=r"\(ncsnr\) is negative in"):
        read(tree.root)


def test_all_zero_session(tree: Tree) -> None:
    zeros = np.zeros((*GRID, TRIALS), np.int16)
    write_nifti(tree.root / BETAS / "betas_session04.nii.gz", zeros)
    refuse(tree.root, "betas_session04.nii.gz is zero")


def test_nothing_left_to_train_on(tree: Tree) -> None:
    table_shared = len(tree.shared)
    assert table_shared < PER_SUBJECT
    split = {"test": "982", "validation": 0.1, "group": "image"}
    expect = {"sessions": {SUBJECT: 3}}
    refuse(tree.root, "no session", which=entry(split=split, expect=expect))


def test_unknown_choices(tree: Tree) -> None:
    refuse(
        tree.root,
        "'split.test' cannot be 'shared'",
        which=entry(split={"test": "shared", "validation": 0.1, "group": "image"}),
    )
    refuse(
        tree.root,
        "'split.group' cannot be 'run'",
        which=entry(split={"test": "shared1000", "validation": 0.1, "group": "run"}),
    )
    refuse(tree.root, "space", "func1pt8mm", which=entry(layout={"space": "func2mm"}))
