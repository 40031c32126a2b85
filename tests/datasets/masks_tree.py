"""Miniature trees of BOLD5000 2.0 and LAION-fMRI: volume series, masks and lists of pictures."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from PIL import Image

from tests.datasets.other_trees import GRID, write_nifti, write_picture


@dataclass(frozen=True)
class Tree:
    root: Path
    series: dict[int, np.ndarray]
    """Session -> (x, y, z, trial)."""
    shown: dict[int, list[str]]
    """Session -> picture of every trial, by its plain name."""
    masks: dict[str, np.ndarray]
    """Label -> (x, y, z) bool."""
    brain: np.ndarray


# BOLD5000 ------------------------------------------------------------------------------------

PER_RUN = 4
BOLD_RUNS = {1: 2, 2: 1, 3: 2}
REPEATED = ["COCO_train2014_000000000009.jpg", "n01440764_10026.JPEG", "kitchen3.jpg"]
ONCE = [f"n{1440765 + k:08d}_{k}.JPEG" for k in range(4)] + ["airplanecabin1.jpg", "kitchen1.jpg"]
ONCE += ["COCO_train2014_000000000025.jpg"]
BOLD_MASKS = [
    f"{side}{area}" for side in ("LH", "RH") for area in ("EarlyVis", "LOC", "OPA", "PPA", "RSC")
]


def write_bold5000(root: Path, *, subject: str = "CSI2", misnamed: bool = True) -> Tree:
    """Three sessions of 2, 1 and 2 runs; each repeated picture is first shown without ``rep_``."""
    rng = np.random.default_rng(21)
    r, o = REPEATED, ONCE
    order = [r[0], o[0], r[1], r[2], o[1], r[0], o[2], r[1], o[3], o[4], r[2], r[0], o[5], r[1]]
    order += [o[6], r[2], r[0], r[1], r[2], o[3]]
    seen: set[str] = set()
    lines = []
    for name in order:
        lines.append(f"rep_{name}" if name in seen and name in REPEATED else name)
        seen.add(name)
    (root / f"{subject}_imgnames.txt").parent.mkdir(parents=True, exist_ok=True)
    (root / f"{subject}_imgnames.txt").write_text("\n".join(lines) + "\n")
    stimuli = root / "BOLD5000_Stimuli/Scene_Stimuli"
    for name in dict.fromkeys(order):
        # COCO's files go without the prefix that the list has.
        kind = "COCO" if name.startswith("COCO") else "ImageNet" if name[0] == "n" else "Scene"
        file = stimuli / "Presented_Stimuli" / kind / name.removeprefix("COCO_train2014_")
        write_picture(file, rng=rng)
    (stimuli / "repeated_stimuli_113_list.txt").write_text("\n".join(REPEATED) + "\n")
    words = root / "BOLD5000_Stimuli/Image_Labels/imagenet_final_labels.txt"
    words.parent.mkdir(parents=True, exist_ok=True)
    words.write_text("n01440764 tench, Tinca tinca\nn01440765 goldfish\n")
    notes = [
        {"image_id": 9, "id": 2, "caption": "two cups "},
        {"image_id": 9, "id": 1, "caption": "A cup."},
    ]
    (root / "captions_train2014.json").write_text(json.dumps({"annotations": notes}))
    brain = np.zeros(GRID, dtype=bool)
    brain[1:] = True
    write_nifti(root / f"{subject}_brainmask.nii.gz", brain.astype(np.float32))
    masks = {label: rng.random(GRID) < 0.15 for label in BOLD_MASKS}
    masks["LHEarlyVis"][0, 0, 0] = True  # outside the brain
    wrong = {"LHLOC": "LHLO", "RHLOC": "RHLO", "RHRSC": "RHRRSC"} if misnamed else {}
    for label, mask in masks.items():
        file = f"sub-{subject}_mask-{wrong.get(label, label)}.nii.gz"
        write_nifti(root / f"derivatives/spm/sub-{subject}/{file}", mask.astype(np.uint8))
    series, shown, start = {}, {}, 0
    for session, runs in BOLD_RUNS.items():
        count = runs * PER_RUN
        volumes = rng.standard_normal((*GRID, count)).astype(np.float32)
        volumes[~brain] = 0
        name = f"{subject}_GLMbetas-TYPED-FITHRF-GLMDENOISE-RR_ses-{session:02d}.nii.gz"
        write_nifti(root / name, volumes)
        series[session] = volumes
        plain = [one.rsplit(".", 1)[0].removeprefix("COCO_train2014_") for one in order]
        shown[session] = plain[start : start + count]
        start += count
    assert start == len(order)
    return Tree(root=root, series=series, shown=shown, masks=masks, brain=brain)


# LAION-fMRI ----------------------------------------------------------------------------------

LAION = [f"shared_12rep_LAION_cluster_{k}_i0.jpg" for k in range(6)]
LAION += [f"unique_sub-01_LAION_cluster_{k}_i3.jpg" for k in (3, 8, 9)]
OOD = ["shared_4rep_OOD_shape_star.png", "shared_4rep_OOD_gabor_45.png"]
KINDS = {
    "retinotopy": ["V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4"],
    "face": ["FFA1", "FFA2"],
    "place": ["PPA"],
    "object": ["l-objects", "v-objects"],
    "general": ["laion-ventral", "laion-lateral", "laion-dorsal", "laion-general"],
}


def write_laion(root: Path, *, subject: str = "sub-01") -> Tree:
    """Three sessions; a table of trials that is not in the order of its volumes."""
    rng = np.random.default_rng(22)
    names = [*LAION, *OOD]
    folder = root / f"derivatives/glmsingle-tedana/{subject}"
    series, shown = {}, {}
    for session in (1, 2, 3):
        order = [names[k] for k in rng.permutation(len(names))]
        stem = f"{subject}_ses-{session:02d}_task-images"
        func = folder / f"ses-{session:02d}/func"
        volumes = rng.standard_normal((*GRID, len(order))).astype(np.float32)
        write_nifti(
            func / f"{stem}_space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz", volumes
        )
        table = pd.DataFrame(
            {
                "session": f"ses-{session:02d}",
                "run": [f"run-{1 + k // 6:02d}" for k in range(len(order))],
                "beta_index": np.arange(len(order)),
                "label": order,
            }
        )
        table[::-1].to_csv(func / f"{stem}_desc-SingletrialBetas_trials.tsv", sep="\t", index=False)
        series[session], shown[session] = volumes, order
    percent = rng.uniform(0, 90, GRID).astype(np.float32)
    percent[2, 2, 2] = np.nan
    percent[3, 3, 3] = 0
    write_nifti(
        folder / f"{subject}_task-images_space-T1w_desc-Noiseceiling12rep_statmap.nii.gz", percent
    )
    masks = {}
    for kind, labels in KINDS.items():
        for label in labels:
            masks[label] = rng.random(GRID) < 0.15
            masks[label][2, 2, 2] = True
            file = f"{subject}_space-T1w_res-1pt8_label-{label}_mask.nii.gz"
            write_nifti(
                root / f"derivatives/rois/{subject}/{kind}/{file}", masks[label].astype(np.uint8)
            )
    listed = [names[k] for k in rng.permutation(len(names))]
    (root / "stimuli").mkdir(parents=True)
    pd.DataFrame({"image_name": listed, "dataset": "x", "n_reps": 12}).to_csv(
        root / "stimuli/task-images_metadata.csv", index=False
    )
    with h5py.File(root / "stimuli/task-images_stimuli.h5", "w") as file:
        images = file.create_dataset("images", (len(listed),), dtype=h5py.vlen_dtype(np.uint8))
        for k, name in enumerate(listed):
            images[k] = np.frombuffer(_encoded(rng, ending=name.rsplit(".", 1)[1]), dtype=np.uint8)
    rows = [
        {"image_name": name, "caption_idx": rank, "source": source, "caption": f"{source} {rank}"}
        for name in listed
        for rank, source in ((2, "human"), (0, "ai"), (1, "human"))
        if source == "human" or name in LAION
    ]
    pd.DataFrame(rows).to_csv(root / "stimuli/task-images_desc-captions.csv", index=False)
    for split, tested in (
        ("tau", [LAION[0], LAION[8]]),
        ("ood", OOD),
        ("cluster_k5_0", LAION[3:6]),
    ):
        trained = [name for name in LAION if name not in tested]
        # The split by cluster holds out cluster 3 as a whole.
        if split == "cluster_k5_0":
            tested = [*tested, LAION[6]]
            trained = [name for name in LAION if name not in tested]
        content = {
            "name": split,
            "variants": [{"variant_id": 0, "train_ids": trained, "test_ids": tested}],
        }
        file = root / f"splits/{subject}/{split}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    return Tree(root=root, series=series, shown=shown, masks=masks, brain=percent)


def _encoded(rng: np.random.Generator, *, ending: str) -> bytes:
    buffer = io.BytesIO()
    pixels = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, format="PNG" if ending == "png" else "JPEG")
    return buffer.getvalue()
