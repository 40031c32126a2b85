"""A miniature tree of the Natural Object Dataset: CIFTI files of betas, areas, and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import scipy.io
from nibabel import cifti2

from tests.datasets.other_trees import write_picture
from tests.datasets.surface_tree import strip, write_surface

SUBJECT = "sub-01"
VERTICES = 24
"""Of a hemisphere, the medial wall included."""
AREAS = {
    **{"V1": 1, "V2": 4, "V3": 5, "V4": 6, "V8": 7, "FFC": 18, "LO1": 20, "LO2": 21, "PIT": 22},
    **{"PHA1": 126, "PHA3": 127, "VMV1": 153, "VMV3": 154, "PHA2": 155, "V4t": 156, "LO3": 159},
    **{"VMV2": 160, "VVC": 163},
}
"""Their places among the 180 of HCP-MMP1."""
RUNS = (1, 2, 10)
PER_RUN = 4
SYNSETS = [f"n{1440764 + k:08d}" for k in range(len(RUNS) * PER_RUN)]
COCO = ["000000000009", "000000000025"]


@dataclass(frozen=True)
class Tree:
    root: Path
    betas: dict[str, np.ndarray]
    """Run's folder -> (trial, vertex of the file)."""
    shown: dict[str, list[str]]
    vertices: tuple[np.ndarray, np.ndarray]
    """Of both hemispheres, in the order of the file."""
    areas: np.ndarray
    """(vertex of the file,) 0 to 360."""
    faces: np.ndarray
    """(vertex of the file,) labels of the localizer."""


def axis(left: np.ndarray, right: np.ndarray, *, voxels: int = 0) -> cifti2.BrainModelAxis:
    """Both hemispheres without their medial walls, and voxels behind them."""
    sides = [
        cifti2.BrainModelAxis.from_surface(vertices, VERTICES, name=f"CORTEX_{side}")
        for side, vertices in (("LEFT", left), ("RIGHT", right))
    ]
    found = sides[0] + sides[1]
    if voxels:
        mask = np.zeros((3, 3, 3), dtype=bool)
        mask.reshape(-1)[:voxels] = True
        found += cifti2.BrainModelAxis.from_mask(mask, name="THALAMUS_LEFT", affine=np.eye(4))
    return found


def write_maps(path: Path, values: np.ndarray, *, rows: cifti2.Axis, columns: cifti2.Axis) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = cifti2.Cifti2Header.from_axes((rows, columns))
    nibabel.save(cifti2.Cifti2Image(values.astype(np.float32), header), path)


def beta_file(run: int) -> str:
    folder = f"ses-imagenet01_task-imagenet_run-{run}"
    return f"derivatives/ciftify/{SUBJECT}/results/{folder}/{folder}_beta.dscalar.nii"


def surfaces(root: Path) -> list[Path]:
    folder = root / f"derivatives/ciftify/{SUBJECT}/standard_fsLR_surface"
    return [folder / f"{SUBJECT}.{side}.midthickness.32k_fs_LR.surf.gii" for side in "LR"]


def write_nod(root: Path, *, voxels: int = 3, mesh: bool = True) -> Tree:
    """Two sessions of three runs, run-10 among them, and two runs of the repeated pictures."""
    rng = np.random.default_rng(31)
    left = np.sort(rng.permutation(VERTICES)[: VERTICES - 4])
    right = np.sort(rng.permutation(VERTICES)[: VERTICES - 6])
    columns = axis(left, right, voxels=voxels)
    cortex = len(left) + len(right)
    results = root / f"derivatives/ciftify/{SUBJECT}/results"
    betas, shown = {}, {}
    for session in (1, 2):
        order = [SYNSETS[k] for k in rng.permutation(len(SYNSETS))]
        for k, run in enumerate(RUNS):
            names = [f"{synset}_{session}" for synset in order[k * PER_RUN : (k + 1) * PER_RUN]]
            folder = f"ses-imagenet{session:02d}_task-imagenet_run-{run}"
            shown[folder] = names
    for run in (1, 2):
        shown[f"ses-coco_task-coco_run-{run}"] = COCO
    for folder, names in shown.items():
        ending = ".jpg" if "coco" in folder else ".JPEG"
        values = rng.standard_normal((len(names), len(columns))).astype(np.float32)
        files = [f"{name}{ending}" for name in names]
        write_maps(
            results / folder / f"{folder}_beta.dscalar.nii",
            values,
            rows=cifti2.ScalarAxis(files),
            columns=columns,
        )
        # writelines() of names without line breaks, as the dataset's code does it.
        (results / folder / f"{folder}_label.txt").write_text("".join(files))
        betas[folder] = values[:, :cortex]
        for name, file in zip(names, files, strict=True):
            kind = "coco" if name in COCO else f"imagenet/{name.split('_')[0]}"
            write_picture(root / f"stimuli/{kind}/{file}", rng=rng)
    numbers = rng.choice([0, *AREAS.values()], cortex).astype(np.float64)
    numbers[:4] = [1, 1, 4, 0]
    numbers[len(left) :] = np.where(numbers[len(left) :] > 0, numbers[len(left) :] + 180, 0)
    numbers[len(left) : len(left) + 2] = [181, 184]
    support = root / "supportfiles"
    support.mkdir()
    scipy.io.savemat(support / "MMP_mpmLR32k.mat", {"glasser_MMP": numbers[None]})
    named = {number: area for area, number in AREAS.items()}
    lines = ["左脑,右脑".encode("gbk")]  # the heading is in GBK
    for number in range(1, 181):
        area = named.get(number, f"A{number}")
        lines.append(f"L_{area}_ROI,R_{area}_ROI".encode())
    (support / "roilbl_mmp.csv").write_bytes(b"\r\n".join(lines) + b"\r\n")
    faces = rng.integers(0, 3, cortex).astype(np.float32)
    table = {0: ("???", (0, 0, 0, 0)), 1: ("OFA", (1, 0, 0, 1)), 2: ("FFA-1", (0, 1, 0, 1))}
    write_maps(
        results / "ses-floc_task-floc/floc-faces.dlabel.nii",
        faces[None],
        rows=cifti2.LabelAxis(["faces"], [table]),
        columns=axis(left, right),
    )
    for turn, (path, side) in enumerate(
        zip(surfaces(root), ("CortexLeft", "CortexRight"), strict=True)
    ):
        if mesh:
            write_surface(path, strip(VERTICES, turn=7 * turn), vertices=VERTICES, side=side)
    words = [f"{synset}\tthing {k}" for k, synset in enumerate(SYNSETS)]
    (root / "words.txt").write_text("\n".join(words) + "\n")
    return Tree(
        root=root,
        betas=betas,
        shown=shown,
        vertices=(left, right),
        areas=numbers.astype(int),
        faces=faces,
    )
