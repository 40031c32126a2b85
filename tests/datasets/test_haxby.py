"""Haxby 2001: block trials, the delay, category targets; and the real slice in shared/data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raybrain.config import Ingest, InputError
from raybrain.datasets import Recording, haxby, open_recording
from raybrain.datasets.haxby_blocks import clean
from tests.datasets import other_trees as trees
from tests.datasets.test_conformance import EVERY_THIRD_RUN, haxby_entry
from tests.datasets.test_things import SAMPLES

BRAIN = {"brain": {"atlas": "brain"}}
real = pytest.mark.skipif(
    not (SAMPLES / "haxby2001").is_dir(),
    reason="needs the real slice; set RAYBRAIN_SAMPLES to the folder that holds haxby2001/",
)


def read(root: Path, **changes: object) -> Recording:
    return open_recording(
        haxby_entry(**changes), root=str(root), subject="subj1", settings=Ingest()
    )


@pytest.mark.parametrize("delay", [0, 1, 2])
def test_delay_is_found_without_categories(tmp_path: Path, delay: int) -> None:
    trees.write_haxby(tmp_path, delay=delay)
    recording = read(tmp_path)
    expected = f"responses {delay * haxby.TR:g} s after the labels (found from stimulation"
    assert any(note.startswith(expected) for note in recording.findings)


def test_a_trial_is_the_mean_of_its_volumes_cleaned_per_run(tmp_path: Path) -> None:
    tree = trees.write_haxby(tmp_path, delay=2)
    recording = read(tmp_path, layout={"delay": 5.0})
    x, y, z = recording.voxels.xyz.T
    series = tree.bold[x, y, z].T.astype(float)
    expected = []
    for run, _, start in tree.blocks:
        rows = slice((run - 1) * trees.PER_RUN, run * trees.PER_RUN)
        time = np.arange(trees.PER_RUN)
        fit = np.polynomial.polynomial.polyfit(time, series[rows], 1)
        rest = series[rows] - np.polynomial.polynomial.polyval(time, fit).T
        rest /= rest.std(axis=0)
        inner = start - (run - 1) * trees.PER_RUN + 2
        expected.append(rest[inner : inner + trees.BLOCK].mean(axis=0))
    np.testing.assert_allclose(recording.read_session(1), expected, rtol=1e-4, atol=1e-5)
    names = [f"run{run:02d}-{category}" for run, category, _ in tree.blocks]
    assert recording.trials["image_id"].tolist() == names


@pytest.mark.parametrize("number", ["99999999999999999999", "²", "1.5", "one", "1 2", "-"])
def test_a_run_that_is_no_whole_number_is_refused(tmp_path: Path, number: str) -> None:
    trees.write_haxby(tmp_path, delay=1)
    file = next(tmp_path.rglob("labels.txt"))
    rows = file.read_text().splitlines()
    file.write_text("\n".join([*rows[:5], f"rest {number}", *rows[6:]]))
    with pytest.raises(InputError, match=r"labels\.txt has"):
        read(tmp_path)


def test_a_block_that_ends_before_its_response_is_refused(tmp_path: Path) -> None:
    trees.write_haxby(tmp_path, delay=2)
    file = next(tmp_path.rglob("labels.txt"))
    rows = file.read_text().splitlines()
    last = next(n for n, row in enumerate(rows) if row.split()[1] == "1") - 1
    header = rows[0].startswith("labels")
    end = last if last > 0 else max(n for n, row in enumerate(rows) if row.endswith(" 0"))
    number = rows[end].split()[1]
    # One volume of response is left of the last two, none of the last one.
    file.write_text("\n".join([*rows[: end - 1], *[f"face {number}"] * 2, *rows[end + 1 :]]))
    assert np.isfinite(read(tmp_path, layout={"delay": 2.5}).read_session(1)).all()
    file.write_text("\n".join([*rows[:end], f"face {number}", *rows[end + 1 :]]))
    with pytest.raises(InputError, match=f"'face' in row {end + (not header)}.*ends without"):
        read(tmp_path, layout={"delay": 2.5})


def test_constant_voxels_become_zero_and_are_in_no_roi(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    series = np.column_stack([np.full(40, 0.1), rng.standard_normal(40), 3.0 + np.arange(40.0)])
    cleaned = clean(series, run=np.repeat([1, 2], 20))
    np.testing.assert_array_equal(cleaned[:, 0], 0.0)
    np.testing.assert_array_equal(cleaned[:, 2], 0.0)  # a line and nothing else
    np.testing.assert_allclose(cleaned[:20, 1].std(), 1.0, rtol=1e-5)
    trees.write_haxby(tmp_path)
    assert (read(tmp_path).voxels.xyz[:, 0] > 0).all()


def test_runs_are_held_out_whole(tmp_path: Path) -> None:
    trees.write_haxby(tmp_path)
    trials = read(tmp_path).trials
    assert set(trials.loc[trials["split"] == "test", "run"]) == {3, 6}
    assert (trials.groupby("run")["split"].nunique() == 1).all()
    one = read(tmp_path, split=EVERY_THIRD_RUN | {"test": "run-2"}).trials
    assert set(one.loc[one["split"] == "test", "run"]) == {2}
    with pytest.raises(InputError, match="run-1 to run-6"):
        read(tmp_path, split=EVERY_THIRD_RUN | {"test": "run-7"})
    with pytest.raises(InputError, match="blocks of one run share its noise"):
        read(tmp_path, split=EVERY_THIRD_RUN | {"group": "image"})


def test_targets_are_categories_and_say_so(tmp_path: Path) -> None:
    trees.write_haxby(tmp_path)
    recording = read(tmp_path)
    assert recording.target == "category"
    assert any("every score measures category decoding" in one for one in recording.findings)
    assert any("OpenMoji drawings as stand-ins" in one for one in recording.findings)
    images = recording.images.set_index("image_id")
    assert images.loc["run02-house", "captions"] == ("a house",)
    assert set(images["group"]) == set(trees.CATEGORIES)
    pictures = recording.read_images([f"run01-{name}" for name in trees.CATEGORIES])
    assert len({picture.tobytes() for picture in pictures}) == len(trees.CATEGORIES)
    again = recording.read_images(["run04-cat"])[0]
    np.testing.assert_array_equal(again, pictures[trees.CATEGORIES.index("cat")])


def test_photographs_stand_for_their_category_where_present(tmp_path: Path) -> None:
    from PIL import Image

    trees.write_haxby(tmp_path, stimuli=True)
    folder = tmp_path / "stimuli/houses"
    for number, level in enumerate((0, 100, 255)):  # the mean is 118, so 100 is nearest
        Image.new("L", (8, 8), level).save(folder / f"{number}.jpg")
    recording = read(tmp_path)
    assert any("of the photographs shown" in one for one in recording.findings)
    picture = recording.read_images(["run01-house"])[0]
    assert abs(float(picture.mean()) - 100) < 2


def test_masks_are_those_of_the_subject(tmp_path: Path) -> None:
    tree = trees.write_haxby(tmp_path)
    recording = read(tmp_path)
    x, y, z = recording.voxels.xyz.T
    np.testing.assert_array_equal(recording.rois["vt"], tree.mask[x, y, z] > 0)
    (tmp_path / "subj1/mask4_vt.nii.gz").unlink()
    with pytest.raises(InputError, match=r"mask4_vt\.nii\.gz is missing; get it from"):
        read(tmp_path)


def test_a_lone_series_needs_no_masks(tmp_path: Path) -> None:
    trees.write_haxby(tmp_path, alone=True)
    recording = read(tmp_path)
    assert recording.rois["brain"].all()
    assert not recording.rois["vt"].any()
    assert "there is no mask4_vt.nii.gz here: its ROI is empty" in recording.findings


def test_bad_labels_and_volumes(tmp_path: Path) -> None:
    trees.write_haxby(tmp_path, alone=True)
    path = tmp_path / "attributes_literal.txt"
    lines = path.read_text().splitlines()

    def refuse(changed: list[str], sentence: str) -> None:
        path.write_text("\n".join(changed))
        with pytest.raises(InputError, match=sentence):
            read(tmp_path, rois=BRAIN)

    refuse(lines[:-1], f"has {len(lines)} volumes, but .* has {len(lines) - 1} labels")
    refuse(["rest", *lines[1:]], "has 'rest' in row 1")
    refuse(lines[::-1], "run after run")
    refuse([f"rest {line.split()[1]}" for line in lines], "no label but 'rest'")
    path.write_text("\n".join(lines))
    content = (tmp_path / "bold.nii.gz").read_bytes()
    (tmp_path / "bold.nii.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"bold\.nii\.gz ends early"):
        read(tmp_path, rois=BRAIN)


@real
def test_real_slice_decodes_categories_over_held_out_runs() -> None:
    recording = read(SAMPLES / "haxby2001", rois=BRAIN)
    trials = recording.trials
    assert len(trials) == 96
    assert trials.groupby("run").size().eq(8).all()
    betas = recording.read_session(1).astype(np.float64)
    category = trials["image_id"].str.split("-").str[1].to_numpy()
    names = np.unique(category)
    onehot = (category[:, None] == names).astype(float)

    def accuracy(onehot: np.ndarray) -> float:
        """Kernel ridge from blocks to categories, one run left out at a time."""
        right = []
        for run in range(1, 13):
            test = (trials["run"] == run).to_numpy()
            mean, spread = betas[~test].mean(axis=0), betas[~test].std(axis=0)
            train_x, test_x = (betas[~test] - mean) / spread, (betas[test] - mean) / spread
            gram = train_x @ train_x.T / betas.shape[1] + 0.3 * np.eye(len(train_x))
            centre = onehot[~test].mean(axis=0)
            weights = np.linalg.solve(gram, onehot[~test] - centre)
            guess = (test_x @ train_x.T / betas.shape[1] @ weights).argmax(axis=1)
            right.append(guess == onehot[test].argmax(axis=1))
        return float(np.mean(right))

    assert accuracy(onehot) >= 0.65  # 84.4 % measured; chance 12.5 %
    rng = np.random.default_rng(0)
    shuffled = [accuracy(rng.permutation(onehot)) for _ in range(5)]
    assert abs(np.mean(shuffled) - 0.125) < 0.08
