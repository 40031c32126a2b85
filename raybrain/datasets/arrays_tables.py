"""The tables of a dataset of one's own: ``trials.csv`` and ``voxels.csv``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from raybrain.config import InputError
from raybrain.datasets import Voxels
from raybrain.datasets.axes import Axes, find_axes, grid_of
from raybrain.datasets.files import Root
from raybrain.datasets.pictures import stem_of
from raybrain.datasets.roi_labels import resolve
from raybrain.datasets.splits import assign, check_rule, held_out, trials_of
from raybrain.datasets.tables import (
    check_ceiling,
    composed,
    numbers,
    read_table,
    whole_numbers,
)
from raybrain.datasets.things_tables import pick_columns, plain_name

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
    axes: Axes
    """Of the array of betas."""
    rois: dict[str, np.ndarray]
    files: tuple[str, ...]
    """What was read, relative to the root."""


def read_trials(place: Root, path: str) -> pd.DataFrame:
    """Return the trials in order of session, with the row of each in the array of betas."""
    table = read_table(place, path, columns=("image_id",), text=("image_id", "group", "split"))
    name = place.at(path)
    if not len(table):
        raise InputError(f"{name} lists no trial; write a row per trial, in the order of the betas")
    table["image_id"] = _image_ids(table["image_id"].str.strip().map(composed))
    if not table["image_id"].all():
        raise InputError(f"{name} has trials without image_id; give each the name of its picture")
    table["row"] = np.arange(len(table))
    for column, default in (("session", 1), ("run", 0)):
        given = column in table.columns
        table[column] = whole_numbers(table, column, name=name) if given else default
    table["group"] = table["group"] if "group" in table.columns else ""
    return table.sort_values("session", kind="stable", ignore_index=True)


def _image_ids(written: pd.Series) -> pd.Series:
    """Return names without the picture's ending, unless two would become one: cat.png, cat.jpg."""
    names = pd.Series({name: stem_of(name) for name in written.unique()}, dtype=object)
    shared = names.duplicated(keep=False)
    return written.map(names.where(~shared, names.index.to_series()))


def choose_voxels(
    entry: CatalogEntry,
    *,
    place: Root,
    folder: str,
    shape: tuple[int, ...],
    trials: int,
    betas: str,
    axes: Axes | None,
    attributes: Mapping[str, object],
) -> Chosen:
    """Return the voxels of the ROIs; their index is their place in the array, trials aside."""
    path = f"{folder}voxels.csv"
    files = [path] if place.exists(path) else []
    table = read_table(place, path) if files else pd.DataFrame()
    table.columns = [plain_name(column) for column in table.columns]
    positions = _positions(table, name=place.at(path))
    found = find_axes(
        shape,
        trials=trials,
        positions=positions,
        attributes=attributes,
        wanted=axes,
        name=place.at(betas),
    )
    grid = grid_of(shape, found)
    if not files:
        table = pd.DataFrame(index=np.arange(int(np.prod(grid))))
    flat = _places(table, positions=positions, grid=grid, name=place.at(path))

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
    ceiling = np.full(len(table), np.nan)
    if "noise_ceiling" in table.columns:
        ceiling = numbers(table, "noise_ceiling", name=place.at(path))
        check_ceiling(ceiling[rows], name=place.at(path))
    if positions is not None:
        xyz = positions[rows]
    elif len(grid) == 3:
        xyz = np.stack(np.unravel_index(flat[rows], grid), axis=1)
    else:
        xyz = np.stack([flat[rows], np.zeros_like(rows), np.zeros_like(rows)], axis=1)
    kept = Voxels(
        index=flat[rows].astype(np.int64),
        xyz=xyz.astype(np.int32),
        noise_ceiling=ceiling[rows].astype(np.float32),
    )
    return Chosen(
        voxels=kept,
        axes=found,
        rois={roi: mask[inside] for roi, mask in masks.items()},
        files=tuple(files),
    )


def _positions(table: pd.DataFrame, *, name: str) -> np.ndarray | None:
    """Return x, y and z of every row of voxels.csv as (voxel, 3), None if it has none."""
    columns = [column for column in ("x", "y", "z") if column in table.columns]
    if not columns:
        return None
    if len(columns) < 3:
        raise InputError(f"{name} has {columns[0]} but not all of x, y and z; add the others")
    xyz = np.stack([whole_numbers(table, column, name=name) for column in columns], axis=1)
    if (xyz < 0).any():
        raise InputError(
            f"{name} has negative positions; they count voxels from 0 and are no millimetres"
        )
    return xyz


def _places(
    table: pd.DataFrame, *, positions: np.ndarray | None, grid: tuple[int, ...], name: str
) -> np.ndarray:
    """Return the flat place of every row of voxels.csv in the voxel axes of the betas."""
    if len(grid) == 3 and positions is not None:
        if (positions >= grid).any():
            raise InputError(f"{name} has positions outside the volume {grid}; count from 0")
        flat = np.ravel_multi_index(tuple(positions.T), grid)
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
    check_rule(entry, "test", known=TEST_SETS)
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
    trials = trials_of(table, split=split)
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
    unknown = set(table["split"].str.strip()) - set(SPLITS)
    if unknown:
        raise InputError(f"{name} has split '{min(unknown)}'; write {', '.join(SPLITS)}")
    given = table["split"].str.strip().to_numpy(dtype=object)
    if (given == "validation").any():
        validation = 0.0
    split = assign(is_test=given == "test", group=group, validation=validation)
    split[given == "validation"] = "validation"
    return split
