"""HDF5 files of a dataset, with h5py's errors made one plain sentence."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import h5py
import numpy as np

from raybrain import store
from raybrain.config import InputError
from raybrain.datasets.files import Root

LONGEST = 256 * 2**20
"""Most bytes of one value of a list, such as an encoded picture."""


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


@contextlib.contextmanager
def opened_list(root: Root, path: str, *, name: str) -> Iterator[h5py.Dataset]:
    """Open a list whose values are arrays or strings of bytes of any length.

    Raises
    ------
    InputError
        If the file cannot be read or has no such list.
    """
    with opened(root, path) as content:
        data = content.get(name)
        wrong = not isinstance(data, h5py.Dataset) or data.ndim != 1
        if wrong or data.dtype.kind not in "OSV":
            raise InputError(f"{root.at(path)} has no list called '{name}'; {root.again}")
        yield data


def read_values(root: Root, path: str, *, name: str, rows: Sequence[int]) -> list[bytes]:
    """Return the values of chosen rows of a list, in that order.

    HDF5 takes the memory that a value claims before it looks whether the value is there: one
    damaged number would cost up to 4 GB. So what is claimed is read first, as the file keeps it.

    Raises
    ------
    InputError
        If there is no such list or row, or a value claims more bytes than the file has.
    """
    with opened_list(root, path, name=name) as data, root.open(path) as raw:
        most = min(data.file.id.get_filesize(), LONGEST)
        for row in rows:
            claimed = _claimed(data, row=row, raw=raw)
            if claimed > most:
                raise InputError(
                    f"{root.at(path)} claims {claimed:,} bytes for number {row} of its {name} and "
                    f"does not hold them; {root.again}"
                )
        return [bytes(data[row]) for row in rows]


def _claimed(data: h5py.Dataset, *, row: int, raw: BinaryIO) -> int:
    """Return the bytes that reading a value takes, 0 if nothing tells them beforehand.

    A value of any length is kept as its length in four bytes, least first, and where its content
    lies, an address and an index (HDF5 File Format Specification 3.0, VIII.B).
    """
    if data.dtype.kind != "O":
        return int(data.dtype.itemsize)
    each = 4 + data.file.id.get_create_plist().get_sizes()[0] + 4
    offset = data.id.get_offset()
    if data.chunks is not None:
        chunk, place = divmod(row, data.chunks[0])
        mask, content = data.id.read_direct_chunk((chunk * data.chunks[0],))
        kept = _unfiltered(content, data=data, mask=mask, size=each * data.chunks[0])
        kept = kept[place * each : place * each + 4]
    elif offset is not None:
        raw.seek(offset + row * each)
        kept = raw.read(4)
    else:
        kept = b""  # beside the list's description, where little fits, or never written
    return int.from_bytes(kept, "little")


def _unfiltered(content: bytes, *, data: h5py.Dataset, mask: int, size: int) -> bytes:
    """Return a chunk as it was before compression; nothing if that was by another filter."""
    filters = data.id.get_create_plist()
    for index in reversed(range(filters.get_nfilters())):
        if mask >> index & 1:
            continue
        code, _, settings, _ = filters.get_filter(index)
        if code == h5py.h5z.FILTER_DEFLATE:
            content = zlib.decompressobj().decompress(content, size)
        elif code == h5py.h5z.FILTER_SHUFFLE and len(content) % settings[0] == 0:
            content = np.frombuffer(content, np.uint8).reshape(settings[0], -1).T.tobytes()
        else:
            return b""
    return content
