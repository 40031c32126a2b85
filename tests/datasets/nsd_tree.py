"""A miniature tree in NSD's exact layout, written independently of the simulation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pandas as pd
from scipy.io import savemat

IMAGES = 60  # imgBrick, and rows of the stimulus table
PER_SUBJECT = 20  # columns of subjectim
SHARED = 5
SUBJECTS = 8
GRID = (7, 6, 5)
TRIALS = 12  # per session, 2 runs
SESSIONS = 5
SUBJECT = "subj02"
SPLITS = ("train2017", "val2017")


@dataclass(frozen=True)
class Tree:
    root: Path
    nsd_id: np.ndarray
    """(trial,) 0-based, all planned trials."""
    shared: np.ndarray
    """0-based."""
    betas: np.ndarray
    """(trial, X, Y, Z) int16 as stored."""
    visual: np.ndarray
    """(X, Y, Z) label volume prf-visualrois."""
    streams: np.ndarray
    ncsnr: np.ndarray
    pixels: np.ndarray


def write_tree(
    root: Path,
    *,
    seed: int = 0,
    endings: tuple[str, ...] = ("nii.gz", "hdf5"),
    space: str = "func1pt8mm",
    betas_version: str = "betas_fithrf_GLMdenoise_RR",
    sessions: int = SESSIONS,
    subject: str = SUBJECT,
    ctabs: bool = True,
) -> Tree:
    rng = np.random.default_rng(seed)
    number = int(subject[-2:])
    experiment = root / "nsddata/experiments/nsd"
    pp = root / f"nsddata/ppdata/{subject}"
    betas_folder = root / f"nsddata_betas/ppdata/{subject}/{space}/{betas_version}"
    annotations = root / "nsddata_stimuli/stimuli/nsd/annotations"
    for folder in (experiment, pp / "behav", pp / space / "roi", betas_folder, annotations):
        folder.mkdir(parents=True, exist_ok=True)

    # 1-based everywhere in the .mat. The shared images are the first of every subject's list.
    shared = np.sort(rng.choice(IMAGES, SHARED, replace=False)) + 1
    rest = np.setdiff1d(np.arange(1, IMAGES + 1), shared)
    subjectim = np.stack(
        [
            np.concatenate([rng.permutation(shared), rng.permutation(rest)[: PER_SUBJECT - SHARED]])
            for _ in range(SUBJECTS)
        ]
    )
    ordering = rng.permutation(np.repeat(np.arange(1, PER_SUBJECT + 1), 3))
    assert len(ordering) == TRIALS * SESSIONS
    savemat(
        experiment / "nsd_expdesign.mat",
        {
            "masterordering": ordering[None].astype(np.float64),
            "subjectim": subjectim.astype(np.float64),
            "sharedix": shared[None].astype(np.float64),
        },
    )
    nsd_id = subjectim[number - 1][ordering - 1] - 1

    table = pd.DataFrame(
        {
            "cocoId": 1000 + 7 * np.arange(IMAGES),
            "cocoSplit": [SPLITS[k % 3 == 0] for k in range(IMAGES)],
            "cropBox": "(0.0, 0.0, 0.125, 0.125)",
            "loss": 0.1,
            "nsdId": np.arange(IMAGES),
            "flagged": False,
            "BOLD5000": False,
            "shared1000": np.isin(np.arange(IMAGES) + 1, shared),
        }
    )
    for other in range(1, SUBJECTS + 1):
        order = subjectim[other - 1][ordering - 1]
        table[f"subject{other}"] = np.isin(np.arange(IMAGES) + 1, order).astype(int)
        for repeat in range(3):
            column = np.zeros(IMAGES, int)
            for image in np.unique(order):
                column[image - 1] = np.flatnonzero(order == image)[repeat] + 1
            table[f"subject{other}_rep{repeat}"] = column
    table.to_csv(experiment / "nsd_stim_info_merged.csv")

    trials = np.arange(TRIALS * sessions)
    within = trials % TRIALS
    pd.DataFrame(
        {
            "SUBJECT": number,
            "SESSION": trials // TRIALS + 1,
            "RUN": within // (TRIALS // 2) + 1,
            "TRIAL": within % (TRIALS // 2) + 1,
            "73KID": nsd_id[trials] + 1,
            "10KID": ordering[trials],
            "TIME": 737000.5 + trials,
            "ISOLD": 0,
            "ISCORRECT": [np.nan if t % 5 == 0 else 1.0 for t in trials],
            "RT": 700.25,
        }
    ).to_csv(pp / "behav/responses.tsv", sep="\t", index=False, na_rep="NaN")

    visual = rng.integers(-1, 8, GRID).astype(np.float64)
    streams = rng.integers(-1, 8, GRID).astype(np.float64)
    general = np.where(streams > 0, 1.0, streams)
    left = np.arange(GRID[0])[:, None, None] < GRID[0] // 2
    for name, volume in (
        ("prf-visualrois", visual),
        ("streams", streams),
        ("nsdgeneral", general),
    ):
        write_nifti(pp / f"{space}/roi/{name}.nii.gz", volume)
        write_nifti(pp / f"{space}/roi/lh.{name}.nii.gz", np.where(left, volume, -1.0))
        write_nifti(pp / f"{space}/roi/rh.{name}.nii.gz", np.where(left, -1.0, volume))
    if ctabs:
        own = root / f"nsddata/freesurfer/{subject}/label"
        average = root / "nsddata/freesurfer/fsaverage/label"
        own.mkdir(parents=True)
        average.mkdir(parents=True)
        (own / "prf-visualrois.mgz.ctab").write_text(
            "0 Unknown\n1 V1v\n2 V1d\n3 V2v\n4 V2d\n5 V3v\n6 V3d\n7 hV4\n"
        )
        (average / "streams.mgz.ctab").write_text(
            "0 Unknown\n1 early\n2 midventral\n3 midlateral\n4 midparietal\n5 ventral\n6 lateral\n"
            "7 parietal\n"
        )

    betas = rng.integers(-900, 900, (len(trials), *GRID)).astype(np.int16)
    betas[:, streams == -1] = 0
    betas[:, (visual > 0) & (streams == -1)] = 7
    for session in range(sessions):
        block = betas[session * TRIALS : (session + 1) * TRIALS]
        stem = betas_folder / f"betas_session{session + 1:02d}"
        if "nii.gz" in endings:
            write_nifti(Path(f"{stem}.nii.gz"), np.moveaxis(block, 0, -1))
        if "hdf5" in endings:
            write_hdf5(Path(f"{stem}.hdf5"), block)
    ncsnr = rng.uniform(0.05, 1.5, GRID)
    ncsnr[visual == 7] = np.nan
    write_nifti(betas_folder / "ncsnr.nii.gz", ncsnr)

    pixels = rng.integers(0, 256, (IMAGES, 9, 9, 3)).astype(np.uint8)
    with h5py.File(root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5", "w") as file:
        file["imgBrick"] = pixels
    for split in SPLITS:
        rows = table[table["cocoSplit"] == split]
        notes = [
            {"image_id": int(coco), "id": 10 * int(coco) + k, "caption": f"image {nsd} text {k}\n"}
            for coco, nsd in zip(rows["cocoId"], rows["nsdId"], strict=True)
            for k in (1, 0)
        ]
        (annotations / f"captions_{split}.json").write_text(json.dumps({"annotations": notes}))
    return Tree(
        root=root,
        nsd_id=nsd_id,
        shared=shared - 1,
        betas=betas,
        visual=visual,
        streams=streams,
        ncsnr=ncsnr,
        pixels=pixels,
    )


def write_nifti(path: Path, volume: np.ndarray) -> None:
    image = nibabel.Nifti1Image(volume, np.diag([1.8, 1.8, 1.8, 1.0]), dtype=volume.dtype)
    nibabel.save(image, path)


def write_hdf5(path: Path, block: np.ndarray) -> None:
    """As MATLAB writes X x Y x Z x trial, so as h5py sees it: (trial, Z, Y, X)."""
    with h5py.File(path, "w") as file:
        file.create_dataset("betas", data=block.transpose(0, 3, 2, 1), chunks=(len(block), 1, 1, 1))


@dataclass(frozen=True)
class Surface:
    betas: np.ndarray
    """(trial, hemisphere, vertex) float32 percent signal change."""
    visual: np.ndarray
    """(hemisphere, vertex)."""
    streams: np.ndarray
    ncsnr: np.ndarray


def write_surface(
    root: Path, *, vertices: int = 50, sessions: int = SESSIONS, subject: str = SUBJECT
) -> Surface:
    """fsaverage: an .mgh per hemisphere, floats not x 300, NaN where nothing was scanned."""
    rng = np.random.default_rng(3)
    folder = root / f"nsddata_betas/ppdata/{subject}/fsaverage/betas_fithrf_GLMdenoise_RR"
    labels = root / "nsddata/freesurfer/fsaverage/label"
    folder.mkdir(parents=True)
    labels.mkdir(parents=True, exist_ok=True)
    visual = rng.integers(-1, 8, (2, vertices)).astype(np.float32)
    streams = rng.integers(-1, 8, (2, vertices)).astype(np.float32)
    betas = rng.standard_normal((sessions * TRIALS, 2, vertices)).astype(np.float32)
    ncsnr = rng.uniform(0.05, 1.5, (2, vertices)).astype(np.float32)
    ncsnr[:, 10:15] = np.nan
    betas[:, :, 10:15] = np.nan

    def save(path: Path, values: np.ndarray) -> None:
        nibabel.save(nibabel.MGHImage(values.astype(np.float32), np.eye(4)), path)

    for side, name in enumerate(("lh", "rh")):
        for atlas, values in (
            ("prf-visualrois", visual),
            ("streams", streams),
            ("nsdgeneral", np.sign(streams)),
        ):
            save(labels / f"{name}.{atlas}.mgz", values[side][:, None, None])
        save(folder / f"{name}.ncsnr.mgh", ncsnr[side][:, None, None])
        for session in range(sessions):
            block = betas[session * TRIALS : (session + 1) * TRIALS, side].T
            save(folder / f"{name}.betas_session{session + 1:02d}.mgh", block[:, None, None])
    return Surface(betas=betas, visual=visual, streams=streams, ncsnr=ncsnr)
