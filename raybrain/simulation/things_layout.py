"""The files of THINGS-fMRI, written as its publication ``betas_csv`` ships them.

Index bases are THINGS': voxel_id and trial_id from 0, session and run from 1; noise ceilings are
percentages. A picture is an exemplar of a concept; here every concept has one.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from PIL import Image

from raybrain.simulation.geometry import Anatomy
from raybrain.simulation.nsd_layout import write_whole
from raybrain.simulation.schedule import Design, ImageSet
from raybrain.simulation.truth import GroundTruth

SUBJECTS = tuple(f"sub-{number:02d}" for number in range(1, 9))
AREAS = {"V1": ("V1v", "V1d"), "V2": ("V2v", "V2d"), "V3": ("V3v", "V3d"), "hV4": ("hV4",)}
VENTRAL_COLUMN = "IT"
DEFINITION = "Definition (from WordNet, Google, or Wikipedia)"
JPEG_QUALITY = 95


def concepts(images: ImageSet) -> list[str]:
    """Return the concept of every picture, unique; a digit tells homonyms apart, as in THINGS."""
    taken: dict[str, int] = {}
    found = []
    for emoji in images.emoji:
        name = re.sub(r"[^a-z]+", "_", emoji.captions[0].split(",")[0].lower()).strip("_") or "sign"
        taken[name] = taken.get(name, 0) + 1
        found.append(name if taken[name] == 1 else f"{name}{taken[name]}")
    return found


def write_pictures(root: Path, *, images: ImageSet, pixels: np.ndarray) -> None:
    """Write object_images/<concept>/<concept>_01b.jpg and things_concepts.tsv."""
    names = concepts(images)
    for name, picture in zip(names, pixels, strict=True):
        content = io.BytesIO()
        Image.fromarray(picture).save(content, format="JPEG", quality=JPEG_QUALITY)
        path = root / "object_images" / name / f"{_stem(name)}.jpg"
        write_whole(path, partial(Path.write_bytes, data=content.getvalue()))
    said = [emoji.captions[0].partition(", ")[2] for emoji in images.emoji]
    table = pd.DataFrame({"uniqueID": names, DEFINITION: said})
    write_whole(root / "things_concepts.tsv", partial(table.to_csv, sep="\t", index=False))


def write_trials(
    root: Path, *, subject: str, images: ImageSet, design: Design, source: str
) -> None:
    """Write StimulusMetadata.csv; ``source`` is the subject whose order of trials is taken."""
    shown = design.images_of(source)
    names = np.array(concepts(images))[shown]
    within = np.arange(len(shown)) % design.trials_per_session
    table = pd.DataFrame(
        {
            "trial_type": np.where(images.shared[shown], "test", "train"),
            "session": design.session + 1,
            "run": np.searchsorted(design.run_starts(), within, side="right"),
            "subject_id": SUBJECTS.index(subject) + 1,
            "trial_id": np.arange(len(shown)),
            "stimulus": [f"{_stem(name)}.jpg" for name in names],
            "concept": names,
        }
    )
    path = root / "betas_csv" / f"{subject}_StimulusMetadata.csv"
    write_whole(path, partial(table.to_csv, index=False))


def write_voxels(
    root: Path, *, subject: str, anatomy: Anatomy, truth: GroundTruth, repeats: int
) -> None:
    """Write VoxelMetadata.csv: position, noise ceilings in percent and a 0/1 column per ROI."""
    x, y, z = anatomy.xyz.T
    columns: dict[str, object] = {
        "voxel_id": np.arange(len(anatomy.index)),
        "subject_id": SUBJECTS.index(subject) + 1,
        **{"voxel_x": x, "voxel_y": y, "voxel_z": z},
        "nc_singletrial": 100 * truth.noise_ceiling(1),
        "nc_testset": 100 * truth.noise_ceiling(repeats),
        **{name: np.isin(anatomy.area, parts).astype(float) for name, parts in AREAS.items()},
        VENTRAL_COLUMN: (~anatomy.early).astype(float),
    }
    path = root / "betas_csv" / f"{subject}_VoxelMetadata.csv"
    write_whole(path, partial(pd.DataFrame(columns).to_csv, index=False))


def write_responses(
    root: Path, *, subject: str, shape: tuple[int, int], sessions: Iterable[np.ndarray]
) -> None:
    """Write ResponseData.h5, one row per voxel and one column per trial, session by session.

    Parameters
    ----------
    root, subject
        Where, and of whom.
    shape : tuple
        Voxels and trials.
    sessions : iterable of ndarray
        (trial, voxel) of one session after the other.
    """
    voxels, trials = shape

    def fill(path: Path) -> None:
        with h5py.File(path, "w") as file:
            # The nodes of a pandas table with the columns voxel_id, 0, 1, 2, ...
            group = file.create_group("ResponseData")
            values = group.create_dataset("block0_values", shape=shape, dtype="float64")
            group["block0_items"] = np.arange(trials)
            group["block1_values"] = np.arange(voxels)[:, None]
            group["block1_items"] = np.array([b"voxel_id"])
            group["axis1"] = np.arange(voxels)
            start = 0
            for betas in sessions:
                values[:, start : start + len(betas)] = betas.T
                start += len(betas)

    write_whole(root / "betas_csv" / f"{subject}_ResponseData.h5", fill)


def _stem(concept: str) -> str:
    return f"{concept}_01b"
