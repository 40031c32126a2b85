"""Regions that are published as one mask volume each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raybrain.config import InputError
from raybrain.datasets.files import Root
from raybrain.datasets.roi_labels import resolve, whole_labels
from raybrain.datasets.volumes import read_volume

if TYPE_CHECKING:
    from raybrain.catalog import CatalogEntry, Roi


@dataclass(frozen=True)
class Masks:
    """The ROIs of a catalog entry over the volume."""

    grid: tuple[int, int, int]
    rois: dict[str, np.ndarray]
    """Name -> (x * y * z,) bool, in C order."""
    files: tuple[str, ...]


def read_masks(
    entry: CatalogEntry, *, place: Root, atlas: str, find: Callable[[str], str]
) -> Masks:
    """Return the masks that the entry's ROIs name by ``atlas`` and ``labels``.

    Parameters
    ----------
    atlas
        The only one that the dataset has.
    find
        Label -> file, relative to the root.

    Raises
    ------
    InputError
        If a mask is missing, holds fractions, or lies on another grid than the others.
    """
    volumes: dict[str, np.ndarray] = {}
    files: dict[str, str] = {}

    def mask(label: str) -> np.ndarray:
        if label not in volumes:
            files[label] = find(label)
            name = place.at(files[label])
            volume = read_volume(place, files[label])
            volume = volume[..., 0] if volume.ndim == 4 and volume.shape[3] == 1 else volume
            first = next(iter(volumes), label)
            if volume.ndim != 3 or volume.shape != volumes.get(first, volume).shape:
                raise InputError(
                    f"{name} has shape {volume.shape}, but {place.at(files[first])} has another; "
                    f"take all masks from the same subject and space"
                )
            volumes[label] = whole_labels(volume, name=name) > 0
        return volumes[label]

    def leaf(name: str, roi: Roi) -> np.ndarray:
        if roi.atlas != atlas or not roi.labels:
            raise InputError(
                f"catalog entry {entry.name}: ROI '{name}' needs 'atlas: {atlas}' and the labels "
                f"of its masks"
            )
        return np.logical_or.reduce([mask(label) for label in roi.labels])

    found = resolve(entry.rois, leaf=leaf)
    shape = next(iter(found.values())).shape
    return Masks(
        grid=(int(shape[0]), int(shape[1]), int(shape[2])),
        rois={name: one.reshape(-1) for name, one in found.items()},
        files=tuple(files.values()),
    )
