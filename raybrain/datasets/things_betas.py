"""Responses of THINGS-fMRI: rows of a large table read a few at a time, or volumes per run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np

from raybrain.config import InputError
from raybrain.datasets.files import Root
from raybrain.datasets.volumes import read_header, read_series

BLOCK_BYTES = 64 * 1024 * 1024
"""Most that is held of the table beside the session itself; the whole is 15.7 GB per subject."""


@contextlib.contextmanager
def _table(file: Path | BinaryIO, *, name: str) -> Iterator[h5py.Group]:
    try:
        with h5py.File(file, "r") as content:
            yield content["ResponseData"]
    except (OSError, RuntimeError, KeyError) as error:
        raise InputError(f"{name} cannot be read ({error}); download it again") from None


def check_table(root: Root, path: str, *, voxels: int, trials: int) -> None:
    """Raise `InputError` unless the table has a row per voxel and a column per trial, in order."""
    name = root.at(path)
    with root.open(path) as file, _table(file, name=name) as table:
        shape = table["block0_values"].shape
        ids = np.asarray(table["block1_values"]).ravel()
        items = np.asarray(table["block0_items"]).ravel()
    if shape != (voxels, trials):
        raise InputError(
            f"{name} holds {shape} responses, but the tables beside it list {voxels} voxels and "
            f"{trials} trials; take all three from the same subject"
        )
    # Column labels are integers in the published file; rewritten ones may be text.
    if not np.array_equal(items.astype(np.int64), np.arange(trials)):
        raise InputError(f"{name} does not list trials 0, 1, 2, ... in order; download it again")
    if not np.array_equal(ids, np.arange(voxels)):
        raise InputError(f"{name} does not list voxel_id 0, 1, 2, ... in order; download it again")


def read_table_session(
    session: int,
    *,
    root: Root,
    path: str,
    columns: Mapping[int, np.ndarray],
    voxels: np.ndarray,
) -> np.ndarray:
    """Return (trial, voxel) float32 of one session from ``ResponseData``, rows = voxels there.

    Neighbouring rows are read together, at most 64 MiB at a time, and only the span of columns
    that the session takes.
    """
    name = root.at(path)
    wanted = columns[session]
    first, last = int(wanted.min()), int(wanted.max()) + 1
    most = max(1, BLOCK_BYTES // (8 * (last - first)))
    betas = np.empty((len(wanted), len(voxels)), dtype=np.float32)
    with root.open(path) as file, _table(file, name=name) as table:
        values = table["block0_values"]
        for start, stop in _runs(voxels, most=most):
            low, high = int(voxels[start]), int(voxels[stop - 1]) + 1
            block = values[low:high, first:last]
            betas[:, start:stop] = block[voxels[start:stop] - low][:, wanted - first].T
    check_finite(betas, name=f"session {session} of {name}")
    return betas


def _runs(voxels: np.ndarray, *, most: int, gap: int = 4) -> Iterator[tuple[int, int]]:
    """Yield ranges of ``voxels`` whose rows lie close together and span at most ``most`` rows."""
    start = 0
    for stop in range(1, len(voxels) + 1):
        if (
            stop == len(voxels)
            or voxels[stop] - voxels[stop - 1] > gap
            or voxels[stop] - voxels[start] >= most
        ):
            yield start, stop
            start = stop


def read_volume_session(
    session: int,
    *,
    root: Root,
    files: Mapping[int, Sequence[str]],
    volumes: Mapping[int, Sequence[np.ndarray]],
    counts: Mapping[int, Sequence[int]],
    flat: np.ndarray,
    grid: tuple[int, int, int],
) -> np.ndarray:
    """Return (trial, voxel) float32 of one session from the volumes of its runs.

    Parameters
    ----------
    volumes
        Session -> for every run the volumes to keep; catch trials are not among them.
    counts
        Session -> for every run how many volumes its file must have.
    flat : (voxel,) int64
        Place of every voxel in the volume.
    """
    runs = []
    for path, kept, count in zip(files[session], volumes[session], counts[session], strict=True):
        header = read_header(root, path)
        series = read_series(root, path, voxels=flat, grid=grid, volumes=count)
        betas = series[kept].astype(np.float32, copy=False)
        if (header.slope, header.inter) not in ((1.0, 0.0), (0.0, 0.0)):
            betas = betas * np.float32(header.slope) + np.float32(header.inter)
        check_finite(betas, name=root.at(path))
        runs.append(betas)
    return np.concatenate(runs)


def check_finite(betas: np.ndarray, *, name: str, again: str = "download it again") -> None:
    """Raise `InputError` if any value is not finite."""
    bad = int((~np.isfinite(betas)).any(axis=0).sum())
    if bad:
        raise InputError(
            f"{name} has responses that are not finite in {bad} of {betas.shape[1]} voxels; "
            f"{again}, or leave the ROIs that hold them out of the catalog entry"
        )
