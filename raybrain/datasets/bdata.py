"""BData, the HDF5 files of bdpy and BrainDecoderToolbox2: samples in rows, everything in columns.

``dataset`` is (sample, column) float64 and holds responses, labels and the design side by side.
``metadata/key`` names kinds of columns, and row k of ``metadata/value`` says for every column
whether it is of kind k: 1 if so (or a number, such as a position), and NaN if not.
``vmap/KEY/NUMBER`` may hold the text that a number stands for. Files from before 2018 write
``dataSet`` and ``metaData``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import h5py
import numpy as np

from raybrain.config import InputError
from raybrain.datasets.files import Root
from raybrain.datasets.hdf5 import opened

BLOCK_BYTES = 64 * 1024 * 1024
"""Most that is held of the file beside the session itself."""
MOST_COLUMNS = 4_000_000
MOST_METADATA = 512 * 1024 * 1024
"""Bytes of ``metadata/value`` that are read; published files have some 20 MB."""


@dataclass(frozen=True)
class Heading:
    """What a file says of its columns; its responses are read a session at a time."""

    path: str
    samples: int
    keys: Mapping[str, np.ndarray]
    """Kind -> (column,) float64, NaN where the column is of another kind."""
    labels: Mapping[str, Mapping[float, str]] = field(default_factory=dict)
    """Kind -> number -> what it stands for."""

    def columns(self, key: str) -> np.ndarray:
        """Return the columns (int64) that are of a kind, as bdpy selects them: those with 1."""
        return np.flatnonzero(self.keys[key] == 1) if key in self.keys else np.empty(0, np.int64)


def read_heading(root: Root, path: str) -> Heading:
    """Return the kinds of columns of a file and the texts of its labels.

    Raises
    ------
    InputError
        If the file is missing, damaged or no BData.
    """
    name = root.at(path)
    with opened(root, path) as content:
        data = _dataset(content, name=name)
        group = content.get("metadata", content.get("metaData"))
        if not isinstance(group, h5py.Group) or not {"key", "value"} <= set(group):
            raise InputError(f"{name} has no metadata/key and metadata/value; {root.again}")
        key, value = group["key"], group["value"]
        if value.ndim != 2 or key.shape != value.shape[:1] or value.shape[1] != data.shape[1]:
            raise InputError(
                f"{name} describes {value.shape} columns, but has {data.shape[1]} columns and "
                f"{key.shape[0] if key.ndim else 0} kinds of them; {root.again}"
            )
        if value.size * value.dtype.itemsize > MOST_METADATA or value.dtype.kind not in "fiu":
            raise InputError(f"{name} holds no numbers in metadata/value; {root.again}")
        names = [_text(one) for one in np.asarray(key).tolist()]
        values = np.asarray(value, dtype=np.float64)
        labels = {
            str(kind): {float(number): _text(text[()]) for number, text in texts.items()}
            for kind, texts in content.get("vmap", {}).items()
        }
        samples = int(data.shape[0])
    twice = sorted({one for one in names if names.count(one) > 1})
    if twice:
        raise InputError(f"{name} has the kind of column '{twice[0]}' twice; {root.again}")
    return Heading(
        path=path, samples=samples, keys=dict(zip(names, values, strict=True)), labels=labels
    )


def read_column(root: Root, heading: Heading, key: str) -> np.ndarray:
    """Return (sample,) float64, the one column of a kind.

    Raises
    ------
    InputError
        If there is none, or several.
    """
    name = root.at(heading.path)
    columns = heading.columns(key)
    if len(columns) != 1:
        raise InputError(f"{name} has {len(columns)} columns '{key}', where one is needed")
    with opened(root, heading.path) as content:
        return np.asarray(_dataset(content, name=name)[:, int(columns[0])], dtype=np.float64)


def read_rows(root: Root, path: str, *, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return (row, column) float32 of chosen samples and columns.

    Whole rows are read, as they lie together in the file, at most 64 MiB of them at a time.

    Parameters
    ----------
    rows, columns : ndarray of int64
    """
    name = root.at(path)
    with opened(root, path) as content:
        data = _dataset(content, name=name)
        if rows.max() >= data.shape[0] or columns.max() >= data.shape[1]:
            raise InputError(f"{name} has changed while it was read; start again")
        found = np.empty((len(rows), len(columns)), dtype=np.float32)
        most = max(1, BLOCK_BYTES // (data.dtype.itemsize * data.shape[1]))
        for start in range(int(rows.min()), int(rows.max()) + 1, most):
            here = np.flatnonzero((rows >= start) & (rows < start + most))
            if len(here):
                last = int(rows[here].max()) + 1
                found[here] = data[start:last][rows[here] - start][:, columns]
    return found


def _dataset(content: h5py.File, *, name: str) -> h5py.Dataset:
    data = content.get("dataset", content.get("dataSet"))
    if not isinstance(data, h5py.Dataset) or data.ndim != 2 or data.dtype.kind not in "fiu":
        raise InputError(f"{name} has no table of numbers called 'dataset'; get a BData file")
    stored = data.id.get_storage_size()
    lacking = data.chunks is None and stored < data.size * data.dtype.itemsize
    if lacking or data.shape[1] > MOST_COLUMNS or not data.size:
        raise InputError(f"{name} claims {data.shape} numbers and does not hold them; get it again")
    return data


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
