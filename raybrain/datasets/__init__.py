"""Datasets on disk become trials of betas; one module per layout.

Every reader is a module with two public functions,
``open_recording(entry, *, root, subject, settings) -> Recording`` and, of the same arguments,
``required_files -> list of RequiredFile``; every recording passes the same conformance tests.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from raybrain import plugins
from raybrain.catalog import READERS
from raybrain.config import InputError, extension

if TYPE_CHECKING:
    from raybrain.catalog import CatalogEntry
    from raybrain.config import Ingest


@dataclass(frozen=True)
class Voxels:
    """The voxels a recording keeps, in C order of (x, y, z)."""

    index: np.ndarray
    """(voxel,) int64: flat index into the volume, ascending (or the row of a table of voxels)."""
    xyz: np.ndarray
    """(voxel, 3) int32: position in the volume."""
    noise_ceiling: np.ndarray
    """(voxel,) float32: explainable variance of a single trial, a fraction; NaN where unknown."""

    @classmethod
    def on_grid(
        cls,
        index: np.ndarray,
        *,
        grid: tuple[int, ...],
        noise_ceiling: np.ndarray | None = None,
    ) -> Voxels:
        """Return the voxels at flat places of a volume, their noise ceilings unknown if not given.

        Parameters
        ----------
        index : (voxel,) int
            Ascending, in C order of (x, y, z).
        grid : tuple of int
            Of the volume.
        noise_ceiling : (voxel,) float, optional
        """
        known = np.full(len(index), np.nan) if noise_ceiling is None else noise_ceiling
        return cls(
            index=index.astype(np.int64),
            xyz=np.stack(np.unravel_index(index, grid), axis=1).astype(np.int32),
            noise_ceiling=known.astype(np.float32),
        )


@dataclass(frozen=True)
class Surface:
    """Where voxels that are vertices of the cortex lie."""

    hemisphere: np.ndarray
    """(voxel,) int8: 0 left, 1 right."""
    edges: np.ndarray | None = None
    """(edge, 2) int32: numbers of voxels that are neighbours, ascending, the lower first; None
    where the mesh is not known."""


@dataclass(frozen=True)
class Recording:
    """Everything a reader found about one subject, and how to read the betas."""

    dataset: str
    subject: str
    trials: pd.DataFrame
    """One row per trial, sessions ascending and in order of acquisition within a session.
    Columns: image_id (str), session (int), run (int, 0 when unknown), repeat (int from 0),
    split ('train', 'validation' or 'test')."""
    voxels: Voxels
    rois: Mapping[str, np.ndarray]
    """Name -> (voxel,) bool."""
    images: pd.DataFrame
    """One row per image shown, ascending image_id. Columns: image_id (str),
    captions (tuple of str), group (str: a category or concept)."""
    read_session: Callable[[int], np.ndarray]
    """Session -> (trial, voxel) of ``dtype``, rows as in ``trials``. Light to pickle."""
    read_images: Callable[[Sequence[str]], list[np.ndarray]]
    """image_ids -> uint8 (y, x, rgb) each. Light to pickle."""
    read_sides: Callable[[Sequence[str]], list[int]] | None = None
    """image_ids -> pixels along the shorter side each, from the heads of the files; None where all
    pictures are of one size. Light to pickle."""
    scale: float = 1.0
    """betas in percent signal change (or the dataset's own unit) = stored value * scale."""
    units: str = "percent"
    """Of the betas once scaled, as UDUNITS spells it: ``percent`` signal change, or ``1``."""
    dtype: str = "float32"
    sources: Mapping[str, str] = field(default_factory=dict)
    """File, relative to the root -> fingerprint of its content."""
    findings: tuple[str, ...] = ()
    """Sentences for the user: ROI voxel counts beside the published ones, sessions left out."""
    surface: Surface | None = None
    """Of vertices; None in a volume."""
    target: str = "image"
    """What a picture stands for: 'image', or 'category' where exemplars are unknown."""


def open_recording(entry: CatalogEntry, *, root: str, subject: str, settings: Ingest) -> Recording:
    """Return the recording of one subject, read by the module that the catalog entry names.

    Raises
    ------
    raybrain.config.InputError
        If a file is missing or does not fit the layout; nothing has been written then.
    """
    found: Recording = reader_of(entry).open_recording(
        entry, root=root, subject=subject, settings=settings
    )
    return found


def reader_of(entry: CatalogEntry) -> Any:
    """Return the module that reads the layout of a catalog entry, ours or another package's.

    Raises
    ------
    InputError
        If the reader of another package cannot be imported, or lacks a function that readers have.
    """
    if entry.reader in READERS:
        return importlib.import_module(f"raybrain.datasets.{entry.reader}")
    reader = extension(plugins.DATASETS, entry.reader)
    for name in ("open_recording", "required_files"):
        if not callable(getattr(reader, name, None)):
            whose = plugins.version(plugins.DATASETS, entry.reader)
            raise InputError(f"the reader '{entry.reader}' of {whose} has no {name}; mend it")
    return reader
