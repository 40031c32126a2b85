"""Generic Object Decoding and Deep Image Reconstruction: the known traps, on miniature trees."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from raybrain.config import Ingest, InputError
from raybrain.datasets import Recording, open_recording
from raybrain.datasets.files import Root
from raybrain.datasets.kamitani_labels import concept_of, read_stimuli, stimulus_name
from tests.datasets import bdata_tree as trees
from tests.datasets.entries import deeprecon_entry, god_entry, make


def read(root: Path, **changes: object) -> Recording:
    return open_recording(
        god_entry(**changes), root=str(root), subject="Subject1", settings=Ingest()
    )


def read_deep(root: Path, **changes: object) -> Recording:
    return open_recording(
        deeprecon_entry(**changes), root=str(root), subject="sub-01", settings=Ingest()
    )


def by_bdpy(path: Path, key: str) -> np.ndarray:
    """The columns of a kind as bdpy selects them, read with h5py alone."""
    with h5py.File(path) as file:
        keys = [one.decode() for one in file["metadata/key"][:]]
        return file["dataset"][:][:, file["metadata/value"][keys.index(key)] == 1]


@pytest.fixture
def god(tmp_path: Path) -> trees.Tree:
    return trees.write_god(tmp_path / "god")


@pytest.fixture
def deep(tmp_path: Path) -> trees.Tree:
    return trees.write_deeprecon(tmp_path / "deep")


def test_god_equals_an_independent_reading(god: trees.Tree) -> None:
    recording = read(god.root)
    path = god.root / "Subject1.h5"
    kinds = by_bdpy(path, "DataType").ravel()
    voxels = by_bdpy(path, "VoxelData")
    # Voxels come in C order of their place; rows as they lie in the file.
    order = np.lexsort(god.places.T[::-1])
    inside = order[god.flags[:, order].any(axis=0)]
    np.testing.assert_array_equal(recording.voxels.xyz, god.places[inside])
    for session, kind in ((1, 1), (2, 2)):
        np.testing.assert_array_equal(
            recording.read_session(session), voxels[kinds == kind][:, inside]
        )
    for k, roi in enumerate(trees.ROIS[:3]):
        np.testing.assert_array_equal(recording.rois[roi], god.flags[k, inside])
        kept = recording.read_session(2)[:, recording.rois[roi]]
        truth = by_bdpy(path, f"ROI_{roi}")[kinds == 2]
        np.testing.assert_array_equal(np.sort(kept, axis=1), np.sort(truth, axis=1))
    shown = [*god.sessions["training"].names, *god.sessions["perception"].names]
    assert recording.trials["image_id"].tolist() == shown
    runs = np.concatenate([god.sessions["training"].runs, god.sessions["perception"].runs])
    np.testing.assert_array_equal(recording.trials["run"], runs)


def test_test_categories_are_absent_from_training_and_validation(god: trees.Tree) -> None:
    recording = read(god.root)
    concepts = recording.trials["image_id"].map(concept_of)
    split = recording.trials["split"]
    sides = {side: set(concepts[split == side]) for side in ("train", "validation", "test")}
    assert sides["test"] == set(trees.TESTED)
    assert not sides["test"] & (sides["train"] | sides["validation"])
    assert not sides["train"] & sides["validation"]
    note = "0 of 3 test categories also occur in training, with other images"
    assert note in recording.findings


def test_a_category_on_both_sides_is_told(god: trees.Tree) -> None:
    with h5py.File(god.root / "Subject1.h5", "r+") as file:
        label = file["dataset"][:, 2]
        first = trees.stimulus_id(god.sessions["training"].names[0])
        label[label == first] = float(f"{int(trees.TESTED[0][1:])}.000777")
        file["dataset"][:, 2] = label
    trees.write_picture(
        god.root / f"images/{trees.TESTED[0]}_777.png", rng=np.random.default_rng(0)
    )
    assert (
        "1 of 3 test categories also occur in training, with other images"
        in read(god.root).findings
    )


def test_zeros_at_the_end_of_a_stimulus_id_are_lost_in_text_only() -> None:
    assert stimulus_name(1518878.014910) == "n01518878_14910"
    assert stimulus_name(float("1518878.01491")) == "n01518878_14910"
    assert stimulus_name(3767745.000109) == "n03767745_109"
    assert stimulus_name(1443537.0) == "n01443537"


def test_the_published_lines_of_both_tables(tmp_path: Path) -> None:
    # As the lab's repository has them: four columns, and three for imagined categories.
    table = tmp_path / "table.tsv"
    table.write_text(
        "n02416519_12793\t2416519.012793\t13\t13\nn02916179_24850\t2916179.02485\t20\t20\n"
    )
    found = read_stimuli(Root(str(tmp_path)), "table.tsv")
    assert found.get(20.0) == "n02916179_24850" == found.get(2916179.024850)
    assert found.get(2916179.02486) is None
    table.write_text("n01443537\t1443537\t1\n")
    found = read_stimuli(Root(str(tmp_path)), "table.tsv")
    assert found.get(1.0) == "n01443537" == found.get(1443537.0)


def test_metadata_nan_is_no_flag_and_old_names_are_read(tmp_path: Path) -> None:
    new = read(trees.write_god(tmp_path / "new").root)
    old = read(trees.write_god(tmp_path / "old", label="Label", old=True).root)
    np.testing.assert_array_equal(new.read_session(2), old.read_session(2))
    assert old.trials["image_id"].tolist() == new.trials["image_id"].tolist()


@pytest.mark.parametrize("categories", [False, True])
def test_imagery_of_a_category_is_pictured_by_its_test_image(
    tmp_path: Path, categories: bool
) -> None:
    tree = trees.write_god(tmp_path, categories=categories)
    recording = read(tmp_path, split={"test": "imagery", "validation": 0.3, "group": "concept"})
    tested = recording.trials[recording.trials["split"] == "test"]
    assert tested["image_id"].tolist() == tree.sessions["imagery"].names
    assert any("was imagined" in one for one in recording.findings) == categories


def test_scan_sessions_are_groups_of_runs(tmp_path: Path) -> None:
    trees.write_god(tmp_path)
    recording = read(tmp_path, layout=make("god").layout | {"runs_per_session": 2})
    assert recording.trials.groupby("session")["run"].unique().map(list).to_dict() == {
        1: [1, 2],
        2: [1, 2],
        3: [3, 4],
    }


@pytest.mark.parametrize("test", ["perception", "artificial", "imagery"])
def test_deeprecon_equals_an_independent_reading(deep: trees.Tree, test: str) -> None:
    recording = read_deep(deep.root, split={"test": test, "validation": 0.3, "group": "concept"})
    order = np.lexsort(deep.places.T[::-1])
    inside = order[deep.flags[:, order].any(axis=0)]
    for session, part in ((1, "training"), (2, test)):
        one = deep.sessions[part]
        kept = np.array([name != "fixation" for name in one.names])
        np.testing.assert_array_equal(recording.read_session(session), one.betas[kept][:, inside])
        shown = recording.trials["image_id"][recording.trials["session"] == session]
        assert shown.tolist() == [name for name in one.names if name != "fixation"]


def test_fixation_among_imagery_is_left_out_and_told(deep: trees.Tree) -> None:
    split = {"test": "imagery", "validation": 0.3, "group": "concept"}
    recording = read_deep(deep.root, split=split)
    assert any("2 samples with the labels 26" in one for one in recording.findings)
    layout = {k: v for k, v in make("deeprecon").layout.items() if k != "drop"}
    with pytest.raises(InputError, match=r"stimulus_imagery\.tsv has no picture number 26"):
        read_deep(deep.root, split=split, layout=layout)


def test_columns_lie_elsewhere_in_another_file(deep: trees.Tree) -> None:
    # The test's voxels begin in column 0, those of training in column 2.
    assert by_bdpy(
        deep.root / "sub-01_perceptionNaturalImageTest_original_VC.h5", "VoxelData"
    ).shape
    recording = read_deep(deep.root)
    order = np.lexsort(deep.places.T[::-1])
    inside = order[deep.flags[:, order].any(axis=0)]
    np.testing.assert_array_equal(
        recording.read_session(2), deep.sessions["perception"].betas[:, inside]
    )


def test_names_in_the_file_need_no_table(tmp_path: Path) -> None:
    tree = trees.write_deeprecon(tmp_path, named=True)
    layout = {k: v for k, v in make("deeprecon").layout.items() if k != "stimuli"}
    recording = read_deep(tmp_path, layout=layout)
    assert recording.trials["image_id"].tolist()[-1] == tree.sessions["perception"].names[-1]


def test_rest_without_a_label_is_left_out(deep: trees.Tree) -> None:
    with h5py.File(deep.root / "sub-01_perceptionNaturalImageTraining_original_VC.h5", "r+") as f:
        f["dataset"][4, 1] = np.nan
    recording = read_deep(deep.root)
    truth = np.delete(deep.sessions["training"].betas, 4, axis=0)
    assert len(recording.read_session(1)) == len(truth)
    assert any("training: 1 samples without a label" in one for one in recording.findings)


def test_captions_are_the_words_of_synsets(god: trees.Tree) -> None:
    images = read(god.root).images.set_index("image_id")
    assert images.loc["n01443537_22563", "captions"] == ("thing 6, object 6",)
    assert images.loc["n01443537_22563", "group"] == "n01443537"
    (god.root / "words.txt").unlink()
    bare = read(god.root)
    assert bare.images.set_index("image_id").loc["n01443537_22563", "captions"] == ("n01443537",)
    assert any("captions are bare names" in one for one in bare.findings)


def edit(path: Path, change: object) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


def _flag(file: h5py.File) -> None:
    keys = [one.decode() for one in file["metadata/key"][:]]
    file["metadata/value"][keys.index("ROI_V1"), -1] = 0.5


def _short(file: h5py.File) -> None:
    value = file["metadata/value"][:, :-1]
    del file["metadata/value"]
    file["metadata/value"] = value


def _label(file: h5py.File) -> None:
    file["dataset"][0, 2] = 17


def _infinite(file: h5py.File) -> None:
    file["dataset"][0, 3:] = np.inf


def _twice(file: h5py.File) -> None:
    keys = [one.decode() for one in file["metadata/key"][:]]
    for axis in "xyz":
        row = keys.index(f"voxel_{axis}")
        file["metadata/value"][row, -1] = file["metadata/value"][row, -2]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_flag, "values other than 1 and nothing in ROI_V1"),
        (_short, "kinds of them"),
        (_label, "does not name them; give the table"),
        (_infinite, "not finite in"),
        (_twice, "a voxel's position twice"),
        (lambda f: f.__delitem__("metadata"), "no metadata/key and metadata/value"),
        (lambda f: f.__delitem__("dataset"), "no table of numbers called 'dataset'"),
    ],
)
def test_bad_files(god: trees.Tree, change: object, sentence: str) -> None:
    edit(god.root / "Subject1.h5", change)
    with pytest.raises(InputError, match=sentence):
        read(god.root).read_session(1)


def test_files_of_two_releases_are_refused(deep: trees.Tree) -> None:
    path = deep.root / "sub-01_perceptionNaturalImageTest_original_VC.h5"
    with h5py.File(path, "r+") as file:
        keys = [one.decode() for one in file["metadata/key"][:]]
        file["metadata/value"][keys.index("voxel_i"), 0] += 1
    with pytest.raises(InputError, match="holds other voxels than"):
        read_deep(deep.root)


def test_unknown_names_are_hinted_at(god: trees.Tree) -> None:
    with pytest.raises(InputError, match="did you mean 'ROI_V1'"):
        read(god.root, rois={"V1": {"columns": ["ROI_V11"]}})
    with pytest.raises(InputError, match="cannot be 'letters'; choose from perception, imagery"):
        read(god.root, split={"test": "letters", "validation": 0.1, "group": "image"})
    with pytest.raises(InputError, match=r"no column 'stimulus' \(layout\.label\)"):
        read(god.root, layout=make("god").layout | {"label": {"training": "stimulus"}})


def test_a_missing_picture_is_named(god: trees.Tree) -> None:
    (god.root / f"images/{trees.TEST_PICTURES[0]}.png").unlink()
    with pytest.raises(InputError, match=r"1 of 11 pictures are missing .* on request"):
        read(god.root)


def test_a_session_is_read_in_blocks(deep: trees.Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_deep(deep.root).read_session(1)
    monkeypatch.setattr("raybrain.datasets.bdata.BLOCK_BYTES", 1000)
    np.testing.assert_array_equal(read_deep(deep.root).read_session(1), whole)
