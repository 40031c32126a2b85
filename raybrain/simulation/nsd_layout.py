"""The files of the Natural Scenes Dataset, written as NSD ships them.

Index bases are NSD's: nsdId, imgBrick and the rows of the csv from 0; masterordering, subjectim,
sharedix, 73KID, 10KID and the repK columns from 1.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pandas as pd
from scipy.io import savemat

from raybrain.simulation.geometry import EARLY_AREAS, VENTRAL, Anatomy
from raybrain.simulation.schedule import RUNS_PER_SESSION, SUBJECTS, Design, ImageSet

BETAS = "betas_fithrf_GLMdenoise_RR"
SPACE = "func1pt8mm"
VOXEL_SIZE = 1.8
BETA_SCALE = 300  # int16 = percent signal change x 300
REPEAT_COLUMNS = 3  # nsd_stim_info_merged.csv has no room for a fourth
CAPTIONS_PER_IMAGE = 5
STIMULI = Path("nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5")
LABELS = {
    "prf-visualrois": ("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4"),
    "streams": (
        *("early", "midventral", "midlateral", "midparietal", "ventral", "lateral", "parietal"),
    ),
    "nsdgeneral": ("nsdgeneral",),
}
"""Atlas -> names of the labels 1, 2, 3, ..."""


def betas_folder(root: Path, *, subject: str) -> Path:
    """Return where the betas and ncsnr of a subject lie."""
    return root / "nsddata_betas/ppdata" / subject / SPACE / BETAS


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a file that appears under its name only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".part-{path.name}")
    write(part)
    part.replace(path)


def write_stimuli(root: Path, *, pixels: np.ndarray) -> None:
    """Write nsd_stimuli.hdf5 from pixels (image, y, x, rgb) uint8."""

    def fill(path: Path) -> None:
        with h5py.File(path, "w") as file:
            file.create_dataset("imgBrick", data=pixels)

    write_whole(root / STIMULI, fill)


def read_stimuli(root: Path, *, images: slice) -> np.ndarray:
    """Return pixels (image, y, x, rgb) uint8 from nsd_stimuli.hdf5."""
    with h5py.File(root / STIMULI, "r") as file:
        return np.asarray(file["imgBrick"][images])


def write_annotations(root: Path, *, images: ImageSet, pixels: np.ndarray) -> None:
    """Write captions and instances as COCO does.

    An instance is the whole drawing; its category is the subgroup of the emoji.
    """
    folder = root / "nsddata_stimuli/stimuli/nsd/annotations"
    kinds = sorted({(e.subgroup, e.group) for e in images.emoji})
    categories = [
        {"id": k, "name": name, "supercategory": group} for k, (name, group) in enumerate(kinds, 1)
    ]
    number = {name: k for k, (name, _) in enumerate(kinds, 1)}
    height, width = pixels.shape[1:3]
    for split in ("train2017", "val2017"):
        chosen = np.flatnonzero(images.coco_split == split)
        header = {
            "info": {"description": "OpenMoji, CC BY-SA 4.0, https://openmoji.org"},
            "licenses": [{"id": 1, "name": "CC BY-SA 4.0"}],
            "images": [
                {
                    "id": int(images.coco_id[i]),
                    "file_name": images.emoji[i].svg.name,
                    **{"width": width, "height": height, "license": 1},
                }
                for i in chosen
            ],
        }
        captions = [
            {
                "image_id": int(images.coco_id[i]),
                "id": int(i) * CAPTIONS_PER_IMAGE + k,
                "caption": caption,
            }
            for i in chosen
            for k, caption in enumerate(images.emoji[i].captions[:CAPTIONS_PER_IMAGE])
        ]
        instances = [
            {
                "image_id": int(images.coco_id[i]),
                "id": int(i),
                "category_id": number[images.emoji[i].subgroup],
                **_outline(pixels[i]),
            }
            for i in chosen
        ]
        _write_json(folder / f"captions_{split}.json", {**header, "annotations": captions})
        _write_json(
            folder / f"instances_{split}.json",
            {**header, "categories": categories, "annotations": instances},
        )


def _outline(picture: np.ndarray) -> dict[str, Any]:
    drawn = (picture != 255).any(axis=-1)
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    box = [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
    return {"bbox": box, "area": int(drawn.sum()), "iscrowd": 0}


def _write_json(path: Path, content: Any) -> None:
    write_whole(path, lambda part: part.write_text(json.dumps(content)))


def write_design(root: Path, *, images: ImageSet, design: Design) -> None:
    """Write nsd_expdesign.mat and nsd_stim_info_merged.csv."""
    folder = root / "nsddata/experiments/nsd"
    repeat = design.repeat()
    counts = [
        np.bincount(design.session[repeat == k], minlength=design.sessions)
        for k in range(design.repeats)
    ]
    starts = [*design.run_starts(), design.trials_per_session]
    shown = np.zeros((design.sessions, RUNS_PER_SESSION, max(np.diff(starts))), dtype=np.uint8)
    for run, length in enumerate(np.diff(starts)):
        shown[:, run, :length] = 1
    content = io.BytesIO()
    savemat(
        content,
        {
            "masterordering": design.masterordering[None].astype(np.uint16),
            "subjectim": design.subjectim.astype(np.int32),
            "sharedix": design.sharedix[None].astype(np.int32),
            "basiccnt": np.stack(counts).astype(np.uint16),
            "stimpattern": shown,
        },
        do_compression=True,
    )
    # The header carries the time of writing; the same experiment should give the same bytes.
    header = b"MATLAB 5.0 MAT-file, simulated experiment".ljust(116)
    whole = header + content.getvalue()[116:]
    write_whole(folder / "nsd_expdesign.mat", lambda part: part.write_bytes(whole))
    table = _stim_info(images, design=design)
    write_whole(folder / "nsd_stim_info_merged.csv", table.to_csv)


def _stim_info(images: ImageSet, *, design: Design) -> pd.DataFrame:
    count = len(images.emoji)
    columns: dict[str, Any] = {
        "cocoId": images.coco_id,
        "cocoSplit": images.coco_split,
        "cropBox": ["(0, 0, 0, 0)"] * count,
        "loss": 0.0,
        "nsdId": np.arange(count),
        "flagged": False,
        "BOLD5000": False,
        "shared1000": images.shared,
        **{f"subject{number}": 1 for number in range(1, len(SUBJECTS) + 1)},
    }
    repeat = design.repeat()
    for number, subject in enumerate(SUBJECTS, 1):
        shown = design.images_of(subject)
        for k in range(REPEAT_COLUMNS):
            trial = np.zeros(count, dtype=np.int64)  # 0: not shown so often
            trial[shown[repeat == k]] = np.flatnonzero(repeat == k) + 1
            columns[f"subject{number}_rep{k}"] = trial
    return pd.DataFrame(columns)


def write_responses(root: Path, *, subject: str, responses: pd.DataFrame) -> None:
    """Write responses.tsv."""
    path = root / "nsddata/ppdata" / subject / "behav/responses.tsv"
    write_whole(path, lambda part: responses.to_csv(part, sep="\t", index=False, na_rep="NaN"))


def write_anatomy(root: Path, *, subject: str, anatomy: Anatomy) -> None:
    """Write brainmask, ROI volumes (-1 off cortex, 0 unlabelled) and their colour tables."""
    folder = root / "nsddata/ppdata" / subject / SPACE
    write_volume(folder / "brainmask.nii.gz", anatomy.brain.astype(np.int16))
    labels = _labels(anatomy)
    across = np.arange(anatomy.grid[0])[:, None, None]
    left = np.broadcast_to(2 * across + 1 < anatomy.grid[0], anatomy.grid)
    for atlas, names in LABELS.items():
        volume = np.where(anatomy.cortex, 0.0, -1.0).astype(np.float32)
        volume.reshape(-1)[anatomy.index] = labels[atlas]
        for prefix, side in (("", True), ("lh.", left), ("rh.", ~left)):
            write_volume(
                folder / "roi" / f"{prefix}{atlas}.nii.gz",
                np.where(side, volume, np.float32(-1)),
            )
        table = "".join(f"{k} {name}\n" for k, name in enumerate(("Unknown", *names)))
        path = root / "nsddata/freesurfer" / subject / "label" / f"{atlas}.mgz.ctab"
        write_whole(path, partial(Path.write_text, data=table))


def _labels(anatomy: Anatomy) -> dict[str, np.ndarray]:
    number = {name: k for k, name in enumerate(LABELS["prf-visualrois"], 1)}
    assert tuple(number) == EARLY_AREAS
    streams = LABELS["streams"]
    return {
        "prf-visualrois": np.array([number.get(name, 0) for name in anatomy.area]),
        "streams": np.where(anatomy.early, streams.index("early") + 1, streams.index(VENTRAL) + 1),
        "nsdgeneral": np.ones(len(anatomy.area)),
    }


def write_ncsnr(root: Path, *, subject: str, anatomy: Anatomy, ncsnr: np.ndarray) -> None:
    """Write ncsnr.nii.gz: NaN outside the brain, 0 where the brain is not modelled."""
    volume = np.where(anatomy.brain, 0.0, np.nan).astype(np.float32)
    volume.reshape(-1)[anatomy.index] = ncsnr
    write_volume(betas_folder(root, subject=subject) / "ncsnr.nii.gz", volume)


def write_betas(
    root: Path,
    *,
    subject: str,
    session: int,
    betas: np.ndarray,
    index: np.ndarray,
    grid: tuple[int, int, int],
) -> None:
    """Write betas_sessionNN.nii.gz, (x, y, z, trial) int16, 0 where nothing is modelled.

    Parameters
    ----------
    root, subject, session
        Session from 1.
    betas : ndarray
        (trial, voxel) percent signal change.
    index : ndarray
        (voxel,) flat C-order index into the volume.
    grid : tuple
        Voxels along x, y and z.
    """
    limits = np.iinfo(np.int16)
    stored = np.clip(np.rint(betas * BETA_SCALE), limits.min, limits.max).astype(np.int16)
    # NIfTI lies in Fortran order, trial slowest; (trial, z, y, x) in C order is the same bytes.
    volume = np.zeros((len(betas), *grid[::-1]), dtype=np.int16)
    x, y, z = np.unravel_index(index, grid)
    volume[:, z, y, x] = stored
    name = f"betas_session{session:02d}.nii.gz"
    write_volume(betas_folder(root, subject=subject) / name, volume.transpose(3, 2, 1, 0))


def write_volume(path: Path, volume: np.ndarray) -> None:
    """Write a NIfTI volume with NSD's voxel size, centred on the origin."""
    affine = np.diag([VOXEL_SIZE, VOXEL_SIZE, VOXEL_SIZE, 1.0])
    affine[:3, 3] = -VOXEL_SIZE * (np.array(volume.shape[:3]) - 1) / 2
    image = nibabel.Nifti1Image(volume, affine)
    write_whole(path, lambda part: nibabel.save(image, part))
