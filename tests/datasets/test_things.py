"""THINGS-fMRI: the known traps, on miniature trees and on the real tables in shared/data."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from raybrain.catalog import load_entry
from raybrain.config import Ingest, InputError
from raybrain.datasets import Recording, open_recording
from raybrain.datasets import things_tables as tables
from raybrain.datasets.files import Root
from tests.datasets import other_trees as trees
from tests.datasets.test_conformance import THINGS_ROIS, things_entry

SAMPLES = Path(
    os.environ.get("RAYBRAIN_SAMPLES", Path(__file__).parents[2].parent / "shared" / "data")
)
real = pytest.mark.skipif(
    not (SAMPLES / "things").is_dir(),
    reason="needs the real THINGS tables; set RAYBRAIN_SAMPLES to the folder that holds things/",
)
ZERO_SHOT = {"test": "zero_shot", "validation": 0.3, "group": "concept"}
STIMULI = "betas_csv/sub-01_StimulusMetadata.csv"
RESPONSES = "betas_csv/sub-01_ResponseData.h5"
VOXELS = "betas_csv/sub-01_VoxelMetadata.csv"


def read(root: Path, **changes: object) -> Recording:
    return open_recording(
        things_entry(**changes), root=str(root), subject="sub-01", settings=Ingest()
    )


def all_betas(recording: Recording) -> np.ndarray:
    sessions = recording.trials["session"].unique().tolist()
    return np.concatenate([recording.read_session(session) for session in sessions])


@pytest.fixture
def tree(tmp_path: Path) -> trees.Things:
    return trees.write_things(tmp_path / "things")


def test_every_publication_gives_the_same_recording(tmp_path: Path) -> None:
    made = {
        source: trees.write_things(tmp_path / source, source=source)
        for source in ("betas_csv", "ICA-betas", "betas_vol")
    }
    found = {source: read(tree.root, layout={"source": source}) for source, tree in made.items()}
    table = found["betas_csv"]
    truth = made["betas_csv"].responses
    for recording in found.values():
        # Rows are trials in order, catch trials gone; columns voxels of the ROIs.
        np.testing.assert_array_equal(all_betas(recording), truth[recording.voxels.index].T)
        pd.testing.assert_frame_equal(recording.trials, table.trials)
        np.testing.assert_array_equal(recording.voxels.index, table.voxels.index)


def test_ica_tables_are_comma_separated_in_spite_of_their_name(tmp_path: Path) -> None:
    trees.write_things(tmp_path, source="ICA-betas")
    path = "derivatives/ICA-betas/sub-01/voxel-metadata/sub-01_task-things_stimulus-metadata.tsv"
    assert "\t" not in (tmp_path / path).read_text()
    assert len(tables.read_stimuli(Root(str(tmp_path)), path)) > 0


def test_commas_in_a_column_name_do_not_make_a_table_comma_separated(tree: trees.Things) -> None:
    definitions = tables.read_definitions(Root(str(tree.root)), "things_concepts.tsv")
    assert definitions["dog"] == "is a dog"


def test_exp_is_train_and_catch_is_dropped(tree: trees.Things) -> None:
    path = tree.root / STIMULI
    table = pd.read_csv(path)
    table["trial_type"] = table["trial_type"].replace("train", "exp")
    table.to_csv(path, index=False)
    trials = read(tree.root).trials
    tested = trials["split"] == "test"
    np.testing.assert_array_equal(tested, tree.trials["trial_type"] == "test")


@pytest.mark.parametrize("items", [np.int64, "S"])
def test_column_labels_may_be_numbers_or_text(tree: trees.Things, items: object) -> None:
    labels = np.arange(tree.responses.shape[1]).astype(items)
    trees.write_responses(tree.root / RESPONSES, tree.responses, items=labels)
    recording = read(tree.root)
    np.testing.assert_array_equal(all_betas(recording), tree.responses[recording.voxels.index].T)


def test_column_labels_out_of_order_are_refused(tree: trees.Things) -> None:
    labels = np.arange(tree.responses.shape[1])[::-1]
    trees.write_responses(tree.root / RESPONSES, tree.responses, items=labels)
    with pytest.raises(InputError, match=r"does not list trials 0, 1, 2, \.\.\. in order"):
        read(tree.root)


def test_noise_ceilings_are_percent(tree: trees.Things) -> None:
    recording = read(tree.root)
    expected = tree.voxels["nc_singletrial"].to_numpy()[recording.voxels.index] / 100
    np.testing.assert_allclose(recording.voxels.noise_ceiling, expected, rtol=1e-6)
    assert set(np.round(recording.voxels.noise_ceiling, 3)) == {0.0, np.float32(0.4)}


def test_column_names_with_line_breaks_and_brackets(tree: trees.Things) -> None:
    rois = {
        "p9": {"columns": ["glasser-p9-46v"]},
        "as_written": {"columns": ["glasser-p9-\n46v"]},
        "LO1": {"columns": ["LO1 (prf)"]},
    }
    recording = read(tree.root, rois=rois)
    inside = tree.voxels.loc[recording.voxels.index]
    np.testing.assert_array_equal(recording.rois["p9"], inside["glasser-p9-\n46v"] == 1)
    np.testing.assert_array_equal(recording.rois["as_written"], recording.rois["p9"])
    np.testing.assert_array_equal(recording.rois["LO1"], inside["LO1 (prf)"] == 1)
    with pytest.raises(InputError, match=r"no column 'LO1'; did you mean 'LO1 \(prf\)'"):
        read(tree.root, rois={"LO1": {"columns": ["LO1"]}})


def test_concepts_of_the_test_also_train_unless_zero_shot(tree: trees.Things) -> None:
    standard, zero = read(tree.root), read(tree.root, split=ZERO_SHOT)

    def concepts(recording: Recording, *, test: bool) -> set[str]:
        side = recording.trials[(recording.trials["split"] == "test") == test]
        return {tables.concept_of(stem) for stem in side["image_id"]}

    assert concepts(standard, test=True) == set(trees.TESTED)
    assert concepts(standard, test=True) < concepts(standard, test=False)
    assert concepts(zero, test=True) == set(trees.TESTED)
    assert concepts(zero, test=False) == set(trees.CONCEPTS) - set(trees.TESTED)
    # What was dropped is dropped from the betas as well.
    kept = ~(tree.trials["concept"].isin(trees.TESTED) & (tree.trials["trial_type"] == "train"))
    truth = tree.responses[zero.voxels.index][:, kept.to_numpy()].T
    np.testing.assert_array_equal(all_betas(zero), truth)
    assert any("2 of 2 test concepts also occur in training" in one for one in standard.findings)


@pytest.mark.parametrize("flat", [False, True])
def test_pictures_are_nested_or_flat(tmp_path: Path, flat: bool) -> None:
    trees.write_things(tmp_path, flat=flat)
    recording = read(tmp_path)
    assert len(recording.read_images(["mouse1_14b"])) == 1


def test_captions_join_name_and_definition_without_digits(tree: trees.Things) -> None:
    images = read(tree.root).images.set_index("image_id")
    assert images.loc["mouse1_14b", "captions"] == ("mouse, is a mouse1",)
    assert images.loc["mouse1_14b", "group"] == "mouse1"
    assert images.loc["ice_cream_01s", "captions"] == ("ice cream, is a ice_cream",)
    (tree.root / "things_concepts.tsv").unlink()
    bare = read(tree.root)
    assert bare.images.set_index("image_id").loc["mouse1_14b", "captions"] == ("mouse",)
    assert any("captions are the names of the concepts" in one for one in bare.findings)


def test_runs_without_zero_padding(tmp_path: Path) -> None:
    tree = trees.write_things(tmp_path, source="betas_vol")
    shutil.rmtree(tmp_path / "betas_vol/sub-01/ses-things02")
    for run, shown in tree.trials[tree.trials["session"] == 2].groupby("run"):
        trees.write_volumes(
            tmp_path,
            session=2,
            run=run,
            shown=shown,
            responses=tree.responses,
            brain=tree.brain,
            padded=False,
        )
    recording = read(tmp_path, layout={"source": "betas_vol"})
    np.testing.assert_array_equal(all_betas(recording), tree.responses[recording.voxels.index].T)


def test_annex_links_without_content(tmp_path: Path) -> None:
    trees.write_things(tmp_path, source="betas_vol")
    stem = tmp_path / "betas_vol/sub-01/ses-things01/sub-01_ses-things01_run-01"
    Path(f"{stem}_conditions.tsv").unlink()
    Path(f"{stem}_conditions.tsv").symlink_to("../.git/annex/objects/gone")
    with pytest.raises(InputError, match="datalad get"):
        read(tmp_path, layout={"source": "betas_vol"})


def write_events(tree: trees.Things, *, swap: bool) -> None:
    for (session, run), shown in tree.trials.groupby(["session", "run"]):
        names = (shown["concept"] + "/" + shown["stem"] + ".jpg").tolist()
        if swap:
            names[:2] = names[1::-1]
        kinds = shown["trial_type"].replace("train", "exp").tolist()
        table = pd.DataFrame(
            {
                "onset": 3.0 + 4.5 * np.arange(len(names) + 1),
                "trial_type": [*kinds[:1], "catch", *kinds[1:]],
                "file_path": [*names[:1], "catch008.jpg", *names[1:]],
            }
        )
        folder = tree.root / f"sub-01/ses-things{session:02d}/func"
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"sub-01_ses-things{session:02d}_task-things_run-{run:02d}"
        table.to_csv(folder / f"{stem}_events.tsv", sep="\t", index=False)


def test_raw_events_are_compared_where_present(tree: trees.Things) -> None:
    write_events(tree, swap=False)
    assert "raw events of 6 runs agree with the table of trials" in read(tree.root).findings
    write_events(tree, swap=True)
    with pytest.raises(InputError, match=r"run-01_events\.tsv lists other pictures"):
        read(tree.root)


def edit(path: Path, change: object) -> None:
    table = pd.read_csv(path)
    change(table).to_csv(path, index=False)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.assign(trial_id=[0, 0, *t["trial_id"][2:]]), "trial_id 0 twice"),
        (lambda t: t[::-1], "not in order of session, run and trial_id"),
        (lambda t: t.assign(concept="zebra"), "the concept zebra"),
        (lambda t: t.assign(trial_type="nap"), "trial_type 'nap'"),
        (lambda t: t[:-1], "23 trials; take all three from the same subject"),
        (lambda t: t.drop(columns="concept"), "no column 'concept'"),
    ],
)
def test_bad_table_of_trials(tree: trees.Things, change: object, sentence: str) -> None:
    edit(tree.root / STIMULI, change)
    with pytest.raises(InputError, match=sentence):
        read(tree.root)


def test_bad_tables_of_voxels_and_responses(tree: trees.Things) -> None:
    edit(tree.root / VOXELS, lambda t: t[::-1])
    with pytest.raises(InputError, match="voxel_id 0, 1, 2"):
        read(tree.root)
    edit(tree.root / VOXELS, lambda t: t[::-1])
    with h5py.File(tree.root / RESPONSES, "r+") as file:
        file["ResponseData/block0_values"][:, 3] = np.nan
    recording = read(tree.root)
    count = len(recording.voxels.index)
    with pytest.raises(InputError, match=rf"session 1 of .* not finite in {count} of {count}"):
        all_betas(recording)
    content = (tree.root / RESPONSES).read_bytes()
    (tree.root / RESPONSES).write_bytes(content[:1000])
    with pytest.raises(InputError, match=r"ResponseData\.h5 cannot be read"):
        read(tree.root)


def test_missing_pictures_are_counted_and_named(tree: trees.Things) -> None:
    (tree.root / "object_images/dog/dog_13b.jpg").unlink()
    with pytest.raises(
        InputError, match=r"1 of 20 pictures are missing .* dog_13b; get the THINGS"
    ):
        read(tree.root)


def test_another_number_of_trials_than_published(tree: trees.Things) -> None:
    with pytest.raises(InputError, match="8 trials in session 1, but things has 820"):
        read(tree.root, expect={"trials_per_session": 820})


def test_shipped_entry_names_columns_of_the_published_table() -> None:
    shipped = load_entry("things")
    columns = {column for roi in shipped.rois.values() for column in roi.columns}
    # As printed by the dataset's own notebook fmri_usage.ipynb.
    printed = (
        "V1 V2 V3 hV4 VO1 VO2 TO1 TO2 V3b V3a IT lEBA rEBA lFFA rFFA lOFA rOFA lSTS rSTS lPPA rPPA "
        "lRSC rRSC lTOS rTOS lLOC rLOC glasser-V1"
    )
    published = {*printed.split(), "LO1 (prf)", "LO2 (prf)"}
    assert columns <= published
    assert THINGS_ROIS.keys() & shipped.rois.keys()


@real
def test_real_table_of_trials() -> None:
    trials = tables.read_stimuli(Root(str(SAMPLES)), "things/sub-01_StimulusMetadata.csv")
    assert len(trials) == 9840
    assert trials["is_test"].sum() == 1200
    assert (trials.groupby(["session", "run"]).size() == 82).all()
    assert (trials["column"] == np.arange(9840)).all()
    kept, table, _ = tables.split_trials(things_entry(split=ZERO_SHOT), trials=trials)
    assert table[table["split"] == "test"]["image_id"].nunique() == 100
    fitted = set(kept["concept"][table["split"] != "test"])
    assert len(fitted) == 620
    assert not fitted & set(kept["concept"][table["split"] == "test"])
    _, standard, _ = tables.split_trials(things_entry(), trials=trials)
    assert standard[standard["split"] != "test"]["image_id"].nunique() == 8640
    assert standard[standard["split"] == "test"].groupby("image_id").size().eq(12).all()
    # Test images are exemplars from 13 on, which is how betas_vol tells them apart.
    exemplar = trials["stem"].str.extract(r"_(\d+)[a-z]$")[0].astype(int)
    assert ((exemplar > tables.LAST_TRAIN_EXEMPLAR) == trials["is_test"]).all()


@real
@pytest.mark.parametrize("run", [1, 2])
def test_real_events_have_the_order_of_the_table_without_catch(run: int) -> None:
    root = Root(str(SAMPLES))
    trials = tables.read_stimuli(root, "things/sub-01_StimulusMetadata.csv")
    shown = trials[(trials["session"] == 1) & (trials["run"] == run)]
    path = f"things/sub-01_ses-things01_task-things_run-{run:02d}_events.tsv"
    assert len(tables.read_table(root, path)) == 92
    events = tables.read_events(root, path)
    assert events["stem"].tolist() == shown["stem"].tolist()
    assert events["is_test"].tolist() == shown["is_test"].tolist()
