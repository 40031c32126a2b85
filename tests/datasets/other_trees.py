"""Miniature trees of THINGS-fMRI, Haxby 2001 and a lab's own arrays, in their exact layouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pandas as pd
from PIL import Image

GRID = (6, 5, 4)


def write_nifti(path: Path, volume: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4), dtype=volume.dtype), path)


def write_picture(path: Path, *, rng: np.random.Generator, side: int = 8) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (side, side, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


# THINGS-fMRI ---------------------------------------------------------------------------------

THINGS_SESSIONS = 3
THINGS_RUNS = 2
CONCEPTS = ("dog", "mouse1", "stove1", "ice_cream", "lamp", "zebra")
TESTED = ("dog", "mouse1")
COLUMNS = ("V1", "V2", "V3", "hV4", "LO1 (prf)", "lFFA", "rFFA", "IT", "glasser-p9-\n46v")


@dataclass(frozen=True)
class Things:
    root: Path
    trials: pd.DataFrame
    responses: np.ndarray
    """(voxel, trial)."""
    voxels: pd.DataFrame
    brain: np.ndarray


def write_things(root: Path, *, source: str = "betas_csv", flat: bool = False) -> Things:
    """Every session shows one exemplar of each concept and all test images, as in the original."""
    rng = np.random.default_rng(1)
    rows = []
    for session in range(1, THINGS_SESSIONS + 1):
        train = [(concept, "train", f"{concept}_{session:02d}s") for concept in CONCEPTS]
        test = [(concept, "test", f"{concept}_{13 + k}b") for k, concept in enumerate(TESTED)]
        shown = [(train + test)[k] for k in rng.permutation(len(train) + len(test))]
        half = len(shown) // THINGS_RUNS
        rows += [(session, 1 + k // half, *one) for k, one in enumerate(shown)]
    trials = pd.DataFrame(rows, columns=["session", "run", "concept", "trial_type", "stem"])
    trials["trial_id"] = np.arange(len(trials))
    brain = np.zeros(GRID, dtype=bool)
    brain[1:5, 1:4, :3] = True
    voxels = pd.DataFrame(np.argwhere(brain), columns=["voxel_x", "voxel_y", "voxel_z"])
    voxels.insert(0, "voxel_id", np.arange(len(voxels)))
    voxels.insert(1, "subject_id", 1)
    voxels["nc_singletrial"] = np.where(voxels["voxel_id"] % 5 == 0, 0.0, 40.0)
    voxels["nc_testset"] = 80.0
    for column in COLUMNS:
        voxels[column] = rng.integers(0, 2, len(voxels)).astype(float)
    responses = rng.standard_normal((len(voxels), len(trials)))
    responses = responses.astype(np.float32).astype(np.float64)  # exact in the volumes as well

    stimuli = trials.assign(subject_id=1, stimulus=trials["stem"] + ".jpg")[
        ["trial_type", "session", "run", "subject_id", "trial_id", "stimulus", "concept"]
    ]
    if source == "ICA-betas":
        folder = root / "derivatives/ICA-betas/sub-01/voxel-metadata"
        folder.mkdir(parents=True)
        # Named .tsv, yet comma separated.
        stimuli.to_csv(folder / "sub-01_task-things_stimulus-metadata.tsv", index=False)
        voxels.to_csv(folder / "sub-01_task-things_voxel-metadata.tsv", index=False)
        write_responses(folder / "sub-01_task-things_voxel-wise-responses.h5", responses)
    else:
        folder = root / "betas_csv"
        folder.mkdir(parents=True)
        voxels.to_csv(folder / "sub-01_VoxelMetadata.csv", index=False)
    if source == "betas_csv":
        stimuli.to_csv(folder / "sub-01_StimulusMetadata.csv", index=False)
        write_responses(folder / "sub-01_ResponseData.h5", responses)
    if source == "betas_vol":
        write_nifti(root / "brainmasks/sub-01_space-T1w_brainmask.nii.gz", brain.astype(np.float32))
        for (session, run), shown in trials.groupby(["session", "run"]):
            write_volumes(
                root, session=session, run=run, shown=shown, responses=responses, brain=brain
            )
    for stem, concept in sorted(set(zip(trials["stem"], trials["concept"], strict=True))):
        place = root / "object_images" / ("" if flat else concept) / f"{stem}.jpg"
        write_picture(place, rng=rng)
    definition = "Definition (from WordNet, Google, or Wikipedia)"
    concepts = pd.DataFrame({"uniqueID": CONCEPTS, definition: [f"is a {c}" for c in CONCEPTS]})
    concepts.to_csv(root / "things_concepts.tsv", sep="\t", index=False)
    return Things(root=root, trials=trials, responses=responses, voxels=voxels, brain=brain)


def write_responses(path: Path, responses: np.ndarray, *, items: Sequence | None = None) -> None:
    """The nodes that ``DataFrame.to_hdf`` writes for columns voxel_id, 0, 1, 2, ..."""
    voxels, trials = responses.shape
    with h5py.File(path, "w") as file:
        group = file.create_group("ResponseData")
        group["block0_values"] = responses
        group["block0_items"] = np.arange(trials) if items is None else np.asarray(items)
        group["block1_values"] = np.arange(voxels)[:, None]
        group["block1_items"] = np.array([b"voxel_id"])
        group["axis1"] = np.arange(voxels)


def write_volumes(
    root: Path,
    *,
    session: int,
    run: int,
    shown: pd.DataFrame,
    responses: np.ndarray,
    brain: np.ndarray,
    padded: bool = True,
) -> None:
    """A volume per trial with a catch trial in second place."""
    number = f"{run:02d}" if padded else str(run)
    stem = f"betas_vol/sub-01/ses-things{session:02d}/sub-01_ses-things{session:02d}_run-{number}"
    series = np.zeros((*GRID, len(shown) + 1), dtype=np.float32)
    columns = np.insert(shown["trial_id"].to_numpy(), 1, -1)
    names = np.insert((shown["concept"] + "/" + shown["stem"] + ".jpg").to_numpy(), 1, "catch8.jpg")
    for volume, column in enumerate(columns):
        series[brain, volume] = 99.0 if column < 0 else responses[:, column]
    write_nifti(root / f"{stem}_betas.nii.gz", series)
    table = pd.DataFrame({"image_filename": names})
    table.to_csv(root / f"{stem}_conditions.tsv", sep="\t")


# Haxby ---------------------------------------------------------------------------------------

RUNS = 6
CATEGORIES = ("face", "house", "cat", "bottle", "scissors", "shoe", "chair", "scrambledpix")
BLOCK, GAP = 4, 3
PER_RUN = GAP + len(CATEGORIES) * (BLOCK + GAP)


@dataclass(frozen=True)
class Haxby:
    root: Path
    bold: np.ndarray
    """(x, y, z, volume)."""
    blocks: list[tuple[int, str, int]]
    """Run from 1, category, first labelled volume."""
    mask: np.ndarray


def write_haxby(root: Path, *, alone: bool = False, delay: int = 2, stimuli: bool = False) -> Haxby:
    """Responses follow the labels after ``delay`` volumes; a line drifts through each run."""
    rng = np.random.default_rng(4)
    patterns = {category: rng.standard_normal(GRID) for category in CATEGORIES}
    on = np.abs(rng.standard_normal(GRID)) + 1.0
    labels, blocks, series = [], [], []
    for run in range(RUNS):
        volumes = 1000.0 + 5 * rng.standard_normal((PER_RUN, *GRID))
        volumes += np.linspace(0, 60, PER_RUN)[:, None, None, None]
        names = ["rest"] * PER_RUN
        for k, category in enumerate(rng.permutation(CATEGORIES)):
            start = GAP + k * (BLOCK + GAP)
            blocks.append((run + 1, str(category), run * PER_RUN + start))
            for volume in range(start, start + BLOCK):
                names[volume] = str(category)
                if 0 <= volume + delay < PER_RUN:
                    volumes[volume + delay] += 40 * on + 10 * patterns[category]
        labels += [f"{name} {run}" for name in names]
        series.append(volumes)
    bold = np.moveaxis(np.concatenate(series), 0, -1)
    bold[0] = 0.0  # outside the head
    bold = bold.round().astype(np.int16)
    folder = root if alone else root / "subj1"
    write_nifti(folder / "bold.nii.gz", bold)
    mask = np.zeros(GRID, dtype=np.float32)
    mask[2:4] = 1.0
    if alone:
        (folder / "attributes_literal.txt").write_text("\n".join(labels) + "\n")
    else:
        (folder / "labels.txt").write_text("labels chunks\n" + "\n".join(labels) + "\n")
        write_nifti(folder / "mask4_vt.nii.gz", mask)
    if stimuli:
        folders = ("faces", "houses", "cats", "bottles", "scissors", "shoes", "chairs")
        for name in (*folders, "controls/scrambled_faces"):
            for number in range(3):
                write_picture(root / f"stimuli/{name}/{number}.jpg", rng=rng)
    return Haxby(root=root, bold=bold, blocks=blocks, mask=mask)


# Arrays --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arrays:
    root: Path
    betas: np.ndarray
    """(trial, voxel) in the order of trials.csv."""
    trials: pd.DataFrame
    pixels: dict[str, np.ndarray]


def write_arrays(root: Path, *, kind: str = "npy") -> Arrays:
    """Ten images shown twice each over two sessions; three of them test."""
    rng = np.random.default_rng(6)
    names = [f"scene {k}" for k in range(10)]
    trials = pd.DataFrame(
        {
            "image_id": names + names,
            "session": [1] * 10 + [2] * 10,
            "split": (["train"] * 7 + ["test"] * 3) * 2,
            "group": ["indoor", "outdoor"] * 10,
        }
    )
    voxels = pd.DataFrame(np.argwhere(np.ones(GRID)), columns=["x", "y", "z"])
    voxels["V1"] = (np.arange(len(voxels)) % 3 == 0).astype(int)
    voxels["ventral"] = (np.arange(len(voxels)) % 3 == 1).astype(int)
    voxels["noise_ceiling"] = rng.uniform(0, 1, len(voxels))
    betas = rng.standard_normal((len(trials), len(voxels))).astype(np.float32)
    folder = root / "P1"
    folder.mkdir(parents=True)
    volume = np.moveaxis(betas.reshape(-1, *GRID), 0, -1)
    if kind == "npy":
        np.save(folder / "betas.npy", betas)
    elif kind == "npy-volume":
        np.save(folder / "betas.npy", volume)
    elif kind == "npy-fortran":
        np.save(folder / "betas.npy", np.asfortranarray(betas.T))
    elif kind == "h5":
        with h5py.File(folder / "betas.h5", "w") as file:
            file["betasmd"] = volume
    elif kind == "zarr":
        import zarr

        zarr.save_array(str(folder / "betas.zarr"), betas)
    trials.to_csv(folder / "trials.csv", index=False)
    voxels.to_csv(folder / "voxels.csv", index=False)
    pixels = {
        name: write_picture(folder / f"images/{name.replace(' ', ' ')}.png", rng=rng)
        for name in names
    }
    captions = [
        {"image_id": name, "caption": f"{name}, view {k}"} for name in names for k in (1, 2)
    ]
    pd.DataFrame(captions).to_csv(folder / "captions.csv", index=False)
    return Arrays(root=root, betas=betas, trials=trials, pixels=pixels)
