"""Every reader keeps the same promises; a new reader adds a case here."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cloudpickle
import fsspec
import numpy as np
import pandas as pd
import pytest

from raybrain.catalog import CatalogEntry
from raybrain.config import Ingest, InputError
from raybrain.datasets import READERS, Recording, open_recording
from tests.datasets import bdata_tree, entries, masks_tree, nod_tree
from tests.datasets import other_trees as trees
from tests.datasets.nsd_tree import SUBJECT, write_surface, write_tree
from tests.datasets.test_nsd import entry as nsd_entry


def entry(
    reader: str,
    *,
    subject: str,
    rois: dict,
    split: dict,
    layout: dict,
    expect: dict | None = None,
    storage: dict | None = None,
) -> CatalogEntry:
    return CatalogEntry.model_validate(
        {
            "name": reader,
            "title": reader,
            "reader": reader,
            "root": "unused",
            "get": "get it from the miniature shop",
            "subjects": [subject],
            "rois": rois,
            "split": split,
            "layout": layout,
            "expect": expect or {},
            "storage": storage or {},
            "licence": {"name": "none", "url": "none", "redistributable": True},
            "cite": "none",
        }
    )


THINGS_ROIS = {
    "V1": {"columns": ["V1"]},
    "faces": {"columns": ["lFFA", "rFFA"]},
    "early": {"union": ["V1", "LO"]},
    "LO": {"columns": ["LO1 (prf)"]},
}
STANDARD = {"test": "standard", "validation": 0.3, "group": "image"}
EVERY_THIRD_RUN = {"test": "every-third-run", "validation": 0.1, "group": "run"}


def things_entry(**changes: object) -> CatalogEntry:
    made = {"subject": "sub-01", "rois": THINGS_ROIS, "split": STANDARD, "layout": {}} | changes
    return entry("things", **made)


def haxby_entry(**changes: object) -> CatalogEntry:
    made = {
        "subject": "subj1",
        "rois": {"brain": {"atlas": "brain"}, "vt": {"atlas": "mask4_vt"}},
        "split": EVERY_THIRD_RUN,
        "layout": {},
    } | changes
    return entry("haxby", **made)


def arrays_entry(**changes: object) -> CatalogEntry:
    made = {
        "subject": "P1",
        "rois": {"V1": {"columns": ["V1"]}, "both": {"columns": ["V1", "ventral"]}},
        "split": {"test": "given", "validation": 0.2, "group": "image"},
        "layout": {},
    } | changes
    return entry("arrays", **made)


@dataclass(frozen=True)
class Case:
    name: str
    entry: CatalogEntry
    subject: str
    write: Callable[[Path], object]


def _nsd_surface(root: Path) -> None:
    write_tree(root, endings=())
    write_surface(root)


CASES = [
    Case("nsd-nifti", nsd_entry(layout={"format": "nii.gz"}), SUBJECT, write_tree),
    Case("nsd-hdf5", nsd_entry(layout={"format": "hdf5"}), SUBJECT, write_tree),
    Case("nsd-surface", nsd_entry(layout={"space": "fsaverage"}), SUBJECT, _nsd_surface),
    Case("things-table", things_entry(), "sub-01", trees.write_things),
    Case(
        "things-ica",
        things_entry(layout={"source": "ICA-betas"}),
        "sub-01",
        lambda root: trees.write_things(root, source="ICA-betas", flat=True),
    ),
    Case(
        "things-volumes",
        things_entry(layout={"source": "betas_vol"}, expect={"sessions": 3, "runs_per_session": 2}),
        "sub-01",
        lambda root: trees.write_things(root, source="betas_vol"),
    ),
    Case(
        "things-zero-shot",
        things_entry(split={"test": "zero_shot", "validation": 0.3, "group": "concept"}),
        "sub-01",
        trees.write_things,
    ),
    Case("haxby", haxby_entry(), "subj1", lambda root: trees.write_haxby(root, stimuli=True)),
    Case(
        "haxby-slice",
        haxby_entry(rois={"brain": {"atlas": "brain"}}),
        "subj1",
        lambda root: trees.write_haxby(root, alone=True),
    ),
    Case("arrays-npy", arrays_entry(), "P1", trees.write_arrays),
    Case("arrays-h5", arrays_entry(), "P1", lambda root: trees.write_arrays(root, kind="h5")),
    Case("arrays-zarr", arrays_entry(), "P1", lambda root: trees.write_arrays(root, kind="zarr")),
    Case(
        "god",
        entries.god_entry(layout=entries.make("god").layout | {"runs_per_session": 2}),
        "Subject1",
        bdata_tree.write_god,
    ),
    Case(
        "deeprecon-shapes",
        entries.deeprecon_entry(
            layout=entries.make("deeprecon").layout | {"runs_per_session": 2},
            split={"test": "artificial", "validation": 0.3, "group": "concept"},
        ),
        "sub-01",
        bdata_tree.write_deeprecon,
    ),
    Case("bold5000", entries.bold5000_entry(), "CSI2", masks_tree.write_bold5000),
    Case("nod", entries.nod_entry(), nod_tree.SUBJECT, nod_tree.write_nod),
    Case("laion", entries.laion_entry(), "sub-01", masks_tree.write_laion),
]


@dataclass(frozen=True)
class Opened:
    case: Case
    root: Path
    recording: Recording

    def open(self, root: str | None = None, **settings: object) -> Recording:
        return open_recording(
            self.case.entry,
            root=root or str(self.root),
            subject=self.case.subject,
            settings=Ingest(**settings),
        )


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    case = request.param
    root = tmp_path_factory.mktemp(case.name)
    case.write(root)
    recording = open_recording(case.entry, root=str(root), subject=case.subject, settings=Ingest())
    return Opened(case=case, root=root, recording=recording)


def test_every_reader_has_a_case() -> None:
    assert {case.entry.reader for case in CASES} == set(READERS)


def test_trials_are_in_order_of_acquisition(opened: Opened) -> None:
    trials = opened.recording.trials
    assert list(trials.columns) == ["image_id", "session", "run", "repeat", "split"]
    assert list(trials.index) == list(range(len(trials)))
    assert trials["session"].is_monotonic_increasing
    assert all(isinstance(name, str) for name in trials["image_id"])
    for column in ("session", "run", "repeat"):
        assert trials[column].dtype.kind == "i"
    counted = trials.groupby("image_id").cumcount()
    pd.testing.assert_series_equal(trials["repeat"], counted, check_names=False, check_dtype=False)


def test_no_image_is_on_two_sides(opened: Opened) -> None:
    trials = opened.recording.trials
    assert set(trials["split"]) == {"train", "validation", "test"}
    assert (trials.groupby("image_id")["split"].nunique() == 1).all()


def test_no_group_is_divided_between_training_and_validation(opened: Opened) -> None:
    recording = opened.recording
    fitted = recording.trials[recording.trials["split"] != "test"].copy()
    kind = opened.case.entry.split.group
    if kind == "concept":
        concept = recording.images.set_index("image_id")["group"]
        fitted["of"] = fitted["image_id"].map(concept)
    else:
        fitted["of"] = fitted["run" if kind == "run" else "image_id"]
    assert (fitted.groupby("of")["split"].nunique() == 1).all()


def test_images_are_those_shown_with_captions(opened: Opened) -> None:
    images = opened.recording.images
    assert list(images.columns) == ["image_id", "captions", "group"]
    assert images["image_id"].tolist() == sorted(set(opened.recording.trials["image_id"]))
    for captions in images["captions"]:
        assert isinstance(captions, tuple)
        assert captions
        assert all(isinstance(text, str) and text == text.strip() and text for text in captions)
    assert all(isinstance(group, str) for group in images["group"])


def test_voxels_are_ascending_and_within_some_roi(opened: Opened) -> None:
    recording = opened.recording
    index = recording.voxels.index
    assert index.dtype == np.int64
    assert (np.diff(index) > 0).all()
    assert recording.voxels.xyz.shape == (len(index), 3)
    assert recording.voxels.xyz.dtype == np.int32
    # C order of (x, y, z) is lexicographic order of the positions.
    assert [tuple(p) for p in recording.voxels.xyz] == sorted(map(tuple, recording.voxels.xyz))
    masks = list(recording.rois.values())
    assert all(mask.shape == index.shape and mask.dtype == bool for mask in masks)
    assert np.logical_or.reduce(masks).all()
    assert list(recording.rois) == list(opened.case.entry.rois)
    for name, roi in opened.case.entry.rois.items():
        if roi.union:
            parts = np.logical_or.reduce([recording.rois[part] for part in roi.union])
            np.testing.assert_array_equal(recording.rois[name], parts)


def test_noise_ceilings_are_fractions(opened: Opened) -> None:
    ceiling = opened.recording.voxels.noise_ceiling
    assert ceiling.dtype == np.float32
    known = ceiling[~np.isnan(ceiling)]
    assert ((known >= 0) & (known <= 1)).all()


def test_sessions_are_read_as_described(opened: Opened) -> None:
    recording = opened.recording
    for session, rows in recording.trials.groupby("session"):
        betas = recording.read_session(int(session))
        assert betas.shape == (len(rows), len(recording.voxels.index))
        assert betas.dtype == np.dtype(recording.dtype)
        assert np.isfinite(betas).all()
        assert betas.flags.c_contiguous


def test_pictures_are_rgb(opened: Opened) -> None:
    recording = opened.recording
    names = recording.images["image_id"].tolist()
    chosen = [names[-1], names[0], names[-1]]
    pictures = recording.read_images(chosen)
    assert len(pictures) == 3
    for picture in pictures:
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        assert picture.shape[2] == 3
    np.testing.assert_array_equal(pictures[0], pictures[2])


def test_readers_travel_to_another_process(opened: Opened, tmp_path: Path) -> None:
    recording = opened.recording
    session = int(recording.trials["session"].iloc[-1])
    name = recording.images["image_id"].iloc[0]
    content = cloudpickle.dumps((recording.read_session, recording.read_images, session, name))
    assert len(content) < 200_000 + 16 * len(recording.voxels.index)
    (tmp_path / "readers").write_bytes(content)
    script = (
        "import pickle, sys, pathlib\n"
        "read_session, read_images, session, name = pickle.loads(pathlib.Path(sys.argv[1])"
        ".read_bytes())\n"
        "answer = pickle.dumps((read_session(session), read_images([name])[0]))\n"
        "pathlib.Path(sys.argv[2]).write_bytes(answer)\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "readers"), str(tmp_path / "answer")],
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    betas, picture = pickle.loads((tmp_path / "answer").read_bytes())
    np.testing.assert_array_equal(betas, recording.read_session(session))
    np.testing.assert_array_equal(picture, recording.read_images([name])[0])


def test_opening_again_gives_the_same(opened: Opened) -> None:
    again = opened.open()
    pd.testing.assert_frame_equal(again.trials, opened.recording.trials)
    pd.testing.assert_frame_equal(again.images, opened.recording.images)
    assert again.sources == opened.recording.sources
    assert again.findings == opened.recording.findings


def test_fewer_sessions_move_no_trial(opened: Opened) -> None:
    everything = opened.recording.trials
    if everything["session"].nunique() < 2:
        pytest.skip("this dataset has one session")
    few = opened.open(sessions=everything["session"].max() - 1)
    head = everything[everything["session"] < everything["session"].max()]
    pd.testing.assert_frame_equal(few.trials, head)
    last = int(head["session"].max())
    np.testing.assert_array_equal(few.read_session(last), opened.recording.read_session(last))


def test_sources_name_files_that_exist_and_change_with_them(opened: Opened) -> None:
    sources = opened.recording.sources
    assert sources
    for path, word in sources.items():
        assert (opened.root / path).exists()
        assert ":" in word or len(word) == 64


def test_data_plan_covers_every_source(opened: Opened) -> None:
    import importlib

    module = importlib.import_module(f"raybrain.datasets.{opened.case.entry.reader}")
    listed = module.required_files(
        opened.case.entry, root=str(opened.root), subject=opened.case.subject, settings=Ingest()
    )
    assert all(file.present for file in listed), [f.path for f in listed if not f.present]
    assert all(file.bytes for file in listed)
    covered = [file.path for file in listed]
    for path in opened.recording.sources:
        # Label tables have a built-in fallback and captions.csv is optional, so neither is needed.
        if not path.endswith((".ctab", "captions.csv")):
            assert any(path == one or path.startswith(f"{one}/") for one in covered), path
    absent = module.required_files(
        opened.case.entry,
        root=str(opened.root / "nowhere"),
        subject=opened.case.subject,
        settings=Ingest(),
    )
    assert absent
    assert not any(file.present for file in absent)


def test_a_url_gives_what_the_folder_gives(opened: Opened) -> None:
    if opened.case.name == "arrays-zarr":
        pytest.skip("Zarr opens asynchronous file systems only; s3 is tested in test_s3.py")
    memory = fsspec.filesystem("memory")
    top = f"/{opened.case.name}"
    for file in opened.root.rglob("*"):
        if file.is_file():
            memory.pipe(f"{top}/{file.relative_to(opened.root)}", file.read_bytes())
    remote = opened.open(root=f"memory:/{top}")
    here = opened.recording
    pd.testing.assert_frame_equal(remote.trials, here.trials)
    pd.testing.assert_frame_equal(remote.images, here.images)
    assert remote.sources == here.sources
    session = int(here.trials["session"].iloc[0])
    np.testing.assert_array_equal(remote.read_session(session), here.read_session(session))
    names = here.images["image_id"].tolist()[:2]
    for ours, theirs in zip(here.read_images(names), remote.read_images(names), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_an_empty_root_is_one_sentence_with_a_remedy(opened: Opened, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        opened.open(root=str(tmp_path / "nothing"))
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path / "nothing") in message
    assert opened.case.entry.get in message or "save" in message
