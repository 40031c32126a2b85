"""HDF5 files of a dataset, with h5py's errors made one plain sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import h5py

from raybrain import store
from raybrain.config import InputError
from raybrain.datasets.files import Root


@contextlib.contextmanager
def opened(root: Root, path: str) -> Iterator[h5py.File]:
    """Open a file for reading; what it raises on damaged content becomes `InputError`."""
    try:
        with root.open(path) as file, h5py.File(file, "r") as content:
            yield content
    except InputError:
        raise
    except (*store.DAMAGED, KeyError, AttributeError, IndexError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{root.at(path)} cannot be read ({reason}); {root.again}") from None
