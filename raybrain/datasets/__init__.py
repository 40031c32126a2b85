"""Datasets on disk become trials of betas; one module per layout.

Every reader is a module with one public function,
``open_recording(entry, *, root, subject, settings) -> Recording``, and every recording passes the
same conformance tests.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from raybrain.catalog import CatalogEntry
    from raybrain.config import Ingest

READERS = ("nsd", "things", "haxby", "arrays", "kamitani", "bold5000", "nod", "laion")


@dataclass(frozen=True)
class Voxels:
    """The voxels a recording keeps, in C order of (x, y, z)."""

    index: np.ndarray
    """(voxel,) int64: flat index into the volume, ascending (or the row of a table of voxels)."""
    xyz: np.ndarray
    """(voxel, 3) int32: position in the volume."""
    noise_ceiling: np.ndarray
    """(voxel,) float32: explainable variance of a single trial, a fraction; NaN where unknown."""


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
    dtype: str = "float32"
    sources: Mapping[str, str] = field(default_factory=dict)
    """File, relative to the root -> fingerprint of its content."""
    findings: tuple[str, ...] = ()
    """Sentences for the user: ROI voxel counts beside the published ones, sessions left out."""
    target: str = "image"
    """What a picture stands for: 'image', or 'category' where exemplars are unknown."""


def open_recording(entry: CatalogEntry, *, root: str, subject: str, settings: Ingest) -> Recording:
    """Return the recording of one subject, read by the module that the catalog entry names.

    Raises
    ------
    raybrain.config.InputError
        If a file is missing or does not fit the layout; nothing has been written then.
    """
    module = importlib.import_module(f"raybrain.datasets.{entry.reader}")
    return module.open_recording(entry, root=root, subject=subject, settings=settings)
