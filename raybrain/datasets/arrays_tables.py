"""The tables of a dataset of one's own: ``trials.csv`` and ``voxels.csv``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from raybrain.config import InputError
from raybrain.datasets import Voxels
from raybrain.datasets.files import Root
from raybrain.datasets.pictures import stem_of
from raybrain.datasets.roi_labels import resolve
from raybrain.datasets.splits import assign, held_out
from raybrain.datasets.things_tables import pick_columns, plain_name, read_table

if TYPE_CHECKING:
    from raybrain.catalog import CatalogEntry, Roi

EVERY_VOXEL = "*"
"""As the only column of an ROI: all of them."""
TEST_SETS = ("given", "hashed")
"""given: the column split of trials.csv. hashed: a tenth of the groups, chosen by name."""
HASHED_TEST = 0.1
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Chosen:
    """The voxels of the ROIs."""

    voxels: Voxels
    rois: dict[str, np.ndarray]
    files: tuple[str, ...]
    """What was read, relative to the root."""


def read_trials(place: Root, path: str) -> pd.DataFrame:
    """Return the trials in order of session, with the row of each in the array of betas."""
    table = read_table(place, path, columns=("image_id",))
    name = place.at(path)
    if table["image_id"].isna().any():
        raise InputError(f"{name} has trials without image_id; give each the name of its picture")
    table["image_id"] = table["image_id"].astype(str).map(stem_of)
    table["row"] = np.arange(len(table))
    for column, default in (("session", 1), ("run", 0)):
        values = table.get(column, pd.Series(default, index=table.index))
        if not pd.api.types.is_integer_dtype(values):
            raise InputError(f"{name} must give every trial a whole number in column {column}")
        table[column] = values
    table["group"] = table.get("group", pd.Series("", index=table.index)).fillna("").astype(str)
    return table.sort_values("session", kind="stable", ignore_index=True)


def is_trials_first(shape: tuple[int, ...], *, trials: int) -> bool:
    """Return whether betas are (trial, voxel); so they are where both axes could be the trials."""
    return len(shape) == 2 and shape[0] == trials


def choose_voxels(
    entry: CatalogEntry,
    *,
    place: Root,
    folder: str,
    shape: tuple[int, ...],
    trials: int,
    betas: str,
) -> Chosen:
    """Return the voxels of the ROIs; their index is their place in the array, trials aside."""
    name = place.at(betas)
    if trials not in (shape[0], shape[-1]) or len(shape) not in (2, 4):
        raise InputError(
            f"{name} has shape {shape}, but trials.csv lists {trials} trials; one axis must be the "
            f"trials: (trial, voxel), (voxel, trial) or (x, y, z, trial)"
        )
    first = is_trials_first(shape, trials=trials)
    grid = shape[1:] if first else shape[:-1]
    path = f"{folder}voxels.csv"
    files = [path] if place.exists(path) else []
    if files:
        table = read_table(place, path)
        table.columns = [plain_name(column) for column in table.columns]
    else:
        table = pd.DataFrame(index=np.arange(int(np.prod(grid))))
    flat = _places(table, grid=grid, name=place.at(path))

    def leaf(roi_name: str, roi: Roi) -> np.ndarray:
        if roi.columns == (EVERY_VOXEL,):
            return np.ones(len(table), dtype=bool)
        if not roi.columns:
            raise InputError(
                f"catalog entry {entry.name}: ROI '{roi_name}' needs columns of voxels.csv, or "
                f"'*' for every voxel"
            )
        if not files:
            raise place.missing(path)
        return pick_columns(table, columns=roi.columns, name=place.at(path))

    order = np.argsort(flat, kind="stable")
    masks = {roi: mask[order] for roi, mask in resolve(entry.rois, leaf=leaf).items()}
    inside = np.logical_or.reduce(list(masks.values()))
    rows = order[inside]
    if not len(rows):
        raise InputError(f"no row of {place.at(path)} lies in an ROI; choose other columns")
    ceiling = table.get("noise_ceiling", pd.Series(np.nan, index=table.index)).to_numpy(dtype=float)
    if (ceiling[rows] > 1.0).any() or (ceiling[rows] < 0.0).any():
        raise InputError(
            f"{place.at(path)} has noise ceilings outside 0..1; write the explainable variance of "
            f"a single trial as a fraction (percent / 100)"
        )
    if {"x", "y", "z"} <= set(table.columns):
        xyz = table[["x", "y", "z"]].to_numpy()[rows]
    else:
        xyz = np.stack([flat[rows], np.zeros_like(rows), np.zeros_like(rows)], axis=1)
    kept = Voxels(
        index=flat[rows].astype(np.int64),
        xyz=xyz.astype(np.int32),
        noise_ceiling=ceiling[rows].astype(np.float32),
    )
    return Chosen(
        voxels=kept, rois={roi: mask[inside] for roi, mask in masks.items()}, files=tuple(files)
    )


def _places(table: pd.DataFrame, *, grid: tuple[int, ...], name: str) -> np.ndarray:
    """Return the flat place of every row of voxels.csv in the voxel axes of the betas."""
    if len(grid) == 3 and {"x", "y", "z"} <= set(table.columns):
        xyz = table[["x", "y", "z"]].to_numpy(dtype=int)
        if (xyz < 0).any() or (xyz >= grid).any():
            raise InputError(f"{name} has positions outside the volume {grid}; count from 0")
        flat = np.ravel_multi_index(tuple(xyz.T), grid)
    else:
        flat = np.arange(len(table))
        if len(table) != int(np.prod(grid)):
            raise InputError(
                f"{name} has {len(table)} rows, but the betas have {int(np.prod(grid))} voxels; "
                f"write a row per voxel, in the same order"
            )
    if len(np.unique(flat)) != len(flat):
        raise InputError(f"{name} lists a position twice; write a row per voxel")
    return flat


def split_trials(entry: CatalogEntry, *, table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the recording's trials with the split that the catalog entry names."""
    if entry.split.test not in TEST_SETS:
        raise InputError(
            f"catalog entry {entry.name}: 'split.test' cannot be '{entry.split.test}'; "
            f"choose from {', '.join(TEST_SETS)}"
        )
    group = {
        "image": table["image_id"],
        "concept": table["group"],
        "cluster": table["group"],
        "run": "session " + table["session"].astype(str) + " run " + table["run"].astype(str),
    }[entry.split.group]
    if entry.split.test == "hashed":
        tested = held_out(group, fraction=HASHED_TEST, salt="test")
        split = assign(
            is_test=group.isin(tested).to_numpy(), group=group, validation=entry.split.validation
        )
    else:
        split = _given_split(table, group=group, validation=entry.split.validation, name=name)
    trials = pd.DataFrame(
        {
            "image_id": table["image_id"],
            "session": table["session"],
            "run": table["run"],
            "repeat": table.groupby("image_id").cumcount(),
            "split": split,
        }
    )
    mixed = trials.groupby("image_id")["split"].agg(lambda one: (one == "test").nunique() > 1)
    if mixed.any():
        raise InputError(
            f"{name} shows image {mixed.index[mixed.to_numpy()][0]} both in the test and outside "
            f"it; put all its trials on one side"
        )
    return trials


def _given_split(
    table: pd.DataFrame, *, group: pd.Series, validation: float, name: str
) -> np.ndarray:
    if "split" not in table.columns:
        raise InputError(
            f"{name} has no column split; add train or test for every trial, or set "
            f"'split: {{test: hashed}}' in the catalog entry"
        )
    unknown = set(table["split"].astype(str)) - set(SPLITS)
    if unknown:
        raise InputError(f"{name} has split '{min(unknown)}'; write {', '.join(SPLITS)}")
    given = table["split"].to_numpy(dtype=object)
    if (given == "validation").any():
        validation = 0.0
    split = assign(is_test=given == "test", group=group, validation=validation)
    split[given == "validation"] = "validation"
    return split
