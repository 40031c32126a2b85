"""Miniature trees of Generic Object Decoding and Deep Image Reconstruction, in bdpy's HDF5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from tests.datasets.other_trees import write_picture

TRAINED = [f"n{1518878 + 7 * k:08d}" for k in range(6)]
TESTED = ["n01443537", "n01621127", "n04572121"]
TRAIN_PICTURES = [f"{synset}_{10042 + 1000 * k}" for k, synset in enumerate(TRAINED)]
TRAIN_PICTURES += [
    f"{synset}_{number}" for synset, number in zip(TRAINED, (14910, 65), strict=False)
]
TEST_PICTURES = [
    f"{synset}_{number}" for synset, number in zip(TESTED, (22563, 19020, 3260), strict=True)
]
SHAPES = ["red_square", "blue_cross", "green_ring"]
VOXELS = 30
AREAS = ("V1", "V2", "V3", "V4", "LOC", "FFA", "PPA")
ROIS = (*AREAS, "HVC", "VC")


@dataclass(frozen=True)
class Session:
    """What was written of one kind of session."""

    betas: np.ndarray
    """(sample, voxel) as in the file."""
    names: list[str]
    runs: np.ndarray


@dataclass(frozen=True)
class Tree:
    root: Path
    sessions: dict[str, Session]
    flags: np.ndarray
    """(roi, voxel) bool, in the order of the file."""
    places: np.ndarray
    """(voxel, 3) on the grid, in the order of the file."""


def stimulus_id(name: str) -> float:
    """The number of ImageNet's picture, as the lab's own script makes it."""
    synset, picture = name[1:].split("_")
    return float(f"{int(synset)}.{int(picture):06d}")


def anatomy(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of 3 mm in no order, and overlapping flags."""
    grid = np.argwhere(np.ones((4, 3, 5)))
    places = grid[rng.permutation(len(grid))[:VOXELS]]
    places[0] = 0  # the lowest corner, so that places on the grid count from it
    kept = np.unique(places, axis=0)
    places = kept[rng.permutation(len(kept))]
    flags = rng.random((len(AREAS), len(places))) < 0.2
    flags[0, :2] = True
    higher = flags[4:].any(axis=0)
    return np.vstack([flags, higher, flags.any(axis=0)]), places


def write_bdata(
    path: Path,
    *,
    responses: np.ndarray,
    columns: Mapping[str, np.ndarray],
    flags: np.ndarray,
    places: np.ndarray,
    axes: str = "xyz",
    vmap: Mapping[str, Mapping[float, str]] | None = None,
    old: bool = False,
    after: bool = False,
) -> None:
    """Design columns before the voxels, or after them; NaN where a column is of another kind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    design = np.stack(list(columns.values()), axis=1).astype(float)
    parts = [responses, design] if after else [design, responses]
    count, first = design.shape[1] + responses.shape[1], 0 if after else design.shape[1]
    voxels = slice(first, first + responses.shape[1])
    keys, values = [], []

    def add(key: str, where: slice | int, value: object) -> None:
        row = np.full(count, np.nan)
        row[where] = value
        keys.append(key)
        values.append(row)

    for k, key in enumerate(columns):
        add(key, (responses.shape[1] if after else 0) + k, 1)
    add("VoxelData", voxels, 1)
    for axis, position in zip(axes, places.T, strict=True):
        # Millimetres of a volume of 3 mm whose origin lies between voxels.
        add(f"voxel_{axis}", voxels, position * 3.0 - 4.5 if axes == "xyz" else position)
    for roi, flag in zip(ROIS, flags, strict=True):
        add(f"ROI_{roi}", voxels, np.where(flag, 1.0, np.nan))
    with h5py.File(path, "w") as file:
        data, group = ("dataSet", "metaData") if old else ("dataset", "metadata")
        file[data] = np.concatenate(parts, axis=1)
        file[f"{group}/key"] = [key.encode() for key in keys]
        file[f"{group}/description"] = [f"1 = {key}".encode() for key in keys]
        file[f"{group}/value"] = np.stack(values)
        file["header/ctime"] = "2020-01-01 00:00:00"
        for kind, texts in (vmap or {}).items():
            for number, text in texts.items():
                file[f"vmap/{kind}/{number}"] = text


def _session(rng: np.random.Generator, *, names: Sequence[str], runs: int, voxels: int) -> Session:
    """Every picture once a run, in another order each time."""
    shown = [names[k] for _ in range(runs) for k in rng.permutation(len(names))]
    return Session(
        betas=rng.standard_normal((len(shown), voxels)).astype(np.float32).astype(np.float64),
        names=shown,
        runs=np.repeat(np.arange(1, runs + 1), len(names)),
    )


def _pictures(root: Path, names: Sequence[str], rng: np.random.Generator) -> None:
    for name in names:
        write_picture(root / f"images/{name}.png", rng=rng)


def write_words(root: Path) -> None:
    lines = [f"{synset}\tthing {k}, object {k}" for k, synset in enumerate([*TRAINED, *TESTED])]
    (root / "words.txt").write_text("\n".join(lines) + "\n")


def write_god(
    root: Path, *, label: str = "stimulus_id", old: bool = False, categories: bool = False
) -> Tree:
    """One file a person: DataType 1 training, 2 perception, 3 imagery, in this order."""
    rng = np.random.default_rng(11)
    flags, places = anatomy(rng)
    voxels = len(places)
    sessions = {
        "training": _session(rng, names=TRAIN_PICTURES, runs=2, voxels=voxels),
        "perception": _session(rng, names=TEST_PICTURES, runs=4, voxels=voxels),
        "imagery": _session(rng, names=TEST_PICTURES, runs=2, voxels=voxels),
    }
    labels = np.concatenate([[stimulus_id(n) for n in one.names] for one in sessions.values()])
    kinds = np.repeat([1, 2, 3], [len(one.names) for one in sessions.values()])
    if categories:
        labels = np.where(kinds == 3, np.floor(labels), labels)
    write_bdata(
        root / "Subject1.h5",
        responses=np.concatenate([one.betas for one in sessions.values()]),
        columns={
            "DataType": kinds,
            "Run": np.concatenate([one.runs for one in sessions.values()]),
            label: labels,
        },
        flags=flags,
        places=places,
        old=old,
    )
    write_words(root)
    _pictures(root, [*TRAIN_PICTURES, *TEST_PICTURES], rng)
    return Tree(root=root, sessions=sessions, flags=flags, places=places)


def write_deeprecon(root: Path, *, named: bool = False) -> Tree:
    """A file per kind of session; pictures numbered from 1 in each; 26 is fixation in imagery."""
    rng = np.random.default_rng(12)
    flags, places = anatomy(rng)
    kinds = {
        "NaturalImageTraining": ("training", TRAIN_PICTURES, 3),
        "NaturalImageTest": ("perception", TEST_PICTURES, 4),
        "ArtificialImage": ("artificial", SHAPES, 4),
        "imagery": ("imagery", [*TEST_PICTURES, *SHAPES], 2),
    }
    sessions = {}
    for kind, (part, names, runs) in kinds.items():
        rest = ["fixation"] if part == "imagery" else []
        one = _session(rng, names=[*names, *rest], runs=runs, voxels=len(places))
        numbers = {name: float(k) for k, name in enumerate(names, start=1)} | {"fixation": 26.0}
        folder = "" if part == "imagery" else "perception"
        column = "Label" if part == "imagery" else "image_index"
        write_bdata(
            root / f"sub-01_{folder}{kind}_original_VC.h5",
            responses=one.betas,
            columns={"Run": one.runs, column: np.array([numbers[name] for name in one.names])},
            flags=flags,
            places=places,
            axes="ijk",
            vmap={column: {v: k for k, v in numbers.items()}} if named else None,
            after=part == "perception",
        )
        sessions[part] = one
        lines = []
        for k, name in enumerate(names, start=1):
            # Two forms are about: name and number, or with the picture's id between them.
            known = name.startswith("n0") and part != "imagery"
            middle = f"\t{stimulus_id(name)!s}\t{k}" if known else ""
            lines.append(f"{name}{middle}\t{k}")
        (root / f"stimulus_{kind}.tsv").write_text("\n".join(lines) + "\n")
    write_words(root)
    _pictures(root, [*TRAIN_PICTURES, *TEST_PICTURES, *SHAPES], rng)
    return Tree(root=root, sessions=sessions, flags=flags, places=places)
