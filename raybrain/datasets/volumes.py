"""NIfTI and MGH files: small ones whole, series as a stream of which chosen voxels are kept."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from typing import BinaryIO

import nibabel
import numpy as np

from raybrain.config import InputError
from raybrain.datasets.files import Root

_PIECE = 1 << 20
_MGH_VERSION = b"\x00\x00\x00\x01"
_UNREADABLE = (
    EOFError,
    OSError,
    OverflowError,
    ValueError,
    zlib.error,
    nibabel.wrapstruct.WrapStructError,
    nibabel.filebasedimages.ImageFileError,
    nibabel.spatialimages.HeaderDataError,
)


@dataclass(frozen=True)
class Series:
    """What the header of a NIfTI or MGH file says."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    """First byte of the data."""
    slope: float
    inter: float


def read_volume(root: Root, path: str) -> np.ndarray:
    """Return a whole NIfTI or MGH volume as float32 with the scaling of its header applied.

    Raises
    ------
    InputError
        If the file is missing or cannot be read.
    """
    content = root.read(path)
    try:
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        kind = nibabel.MGHImage if content[:4] == _MGH_VERSION else nibabel.Nifti1Image
        image = kind.from_bytes(content)
        return np.asarray(image.dataobj, dtype=np.float32)
    except _UNREADABLE as error:
        raise _damaged(root.at(path), error) from None


def read_header(root: Root, path: str) -> Series:
    """Return what the header says, reading only the beginning of the file."""
    with root.open(path) as file:
        return _header(_Bytes(file, root.at(path)), root.at(path))


def read_series(
    root: Root, path: str, *, voxels: np.ndarray, grid: tuple[int, ...], volumes: int | None = None
) -> np.ndarray:
    """Return chosen voxels of every volume, as stored, without holding more than one volume.

    Parameters
    ----------
    voxels : (voxel,) int64
        Flat indices into ``grid`` in C order of (x, y, z).
    grid : tuple of int
        Shape that every volume must have.
    volumes : int, optional
        Number of volumes that the file must have.

    Returns
    -------
    (volume, voxel) array of the file's own type

    Raises
    ------
    InputError
        If the file is missing, ends early, is damaged, or has another shape.
    """
    name = root.at(path)
    with root.open(path) as file:
        stream = _Bytes(file, name)
        header = _header(stream, name)
        check_shape(header, name=name, grid=grid, volumes=volumes)
        count = header.shape[3] if len(header.shape) > 3 else 1
        stored = np.ravel_multi_index(np.unravel_index(voxels, grid), grid, order="F")
        buffer = np.empty(int(np.prod(grid)), dtype=header.dtype)
        chosen = np.empty((count, len(stored)), dtype=header.dtype.newbyteorder("="))
        for row in chosen:
            stream.fill(buffer.data.cast("B"))
            row[:] = buffer[stored]
        stream.finish()
    return chosen


def check_shape(header: Series, *, name: str, grid: tuple[int, ...], volumes: int | None) -> None:
    """Raise `InputError` unless the file has the grid and number of volumes."""
    found = header.shape
    count = found[3] if len(found) > 3 else 1
    if tuple(found[:3]) != tuple(grid):
        raise InputError(
            f"{name} has volumes of {_by(found[:3])} voxels, but the ROIs have {_by(grid)}; "
            f"take both from the same subject and space"
        )
    if volumes is not None and count != volumes:
        raise InputError(
            f"{name} has {count} volumes, but {volumes} trials are recorded for it; "
            f"download it again, or check that the tables belong to this subject"
        )


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in shape)


def _header(stream: _Bytes, name: str) -> Series:
    content = bytearray(284)  # the length of an MGH header; the shorter of the two kinds
    stream.fill(memoryview(content))
    try:
        if content[:4] == _MGH_VERSION:
            mgh = nibabel.freesurfer.mghformat.MGHHeader(bytes(content), check=False)
            return Series(
                shape=tuple(int(size) for size in mgh.get_data_shape()),
                dtype=mgh.get_data_dtype(),
                offset=len(content),
                slope=1.0,
                inter=0.0,
            )
        rest = bytearray(348 - len(content))
        stream.fill(memoryview(rest))
        header = nibabel.Nifti1Header(bytes(content + rest), check=False)
        shape = tuple(int(size) for size in header.get_data_shape())
        if int(header["sizeof_hdr"]) != 348 or len(shape) < 3:
            raise ValueError("it has no NIfTI header")
        offset = max(int(header.get_data_offset()), 352)  # some writers leave 0
        slope, inter = header.get_slope_inter()
        dtype = header.get_data_dtype()
    except (KeyError, *_UNREADABLE) as error:
        raise _damaged(name, error) from None
    stream.fill(memoryview(bytearray(offset - 348)))
    return Series(
        shape=shape,
        dtype=dtype,
        offset=offset,
        slope=1.0 if slope is None else float(slope),
        inter=0.0 if inter is None else float(inter),
    )


class _Bytes:
    """The bytes of a file in order, inflated if it is gzipped (several members allowed).

    zlib is called directly with 1 MiB pieces: the gzip module of Python 3.11 inflates 8 KiB at a
    time and is slower.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self._pending = file.read(_PIECE)
        self._gzipped = self._pending[:2] == b"\x1f\x8b"
        self._inflate = zlib.decompressobj(wbits=31)

    def fill(self, target: memoryview) -> None:
        """Fill ``target`` with the next bytes."""
        done = 0
        while done < len(target):
            piece = self._next(len(target) - done)
            target[done : done + len(piece)] = piece
            done += len(piece)

    def finish(self) -> None:
        """Check that the file ends whole: a gzip's checksum comes last."""
        while self._gzipped and not self._inflate.eof:
            if self._next(_PIECE):
                raise InputError(
                    f"{self._name} holds more data than its header says; download it again"
                )

    def _next(self, most: int) -> bytes:
        if not self._pending:
            self._pending = self._file.read(_PIECE)
        if self._gzipped and self._inflate.eof and self._pending:
            self._inflate = zlib.decompressobj(wbits=31)
        if not self._pending:
            raise InputError(f"{self._name} ends early; download it again")
        if not self._gzipped:
            piece, self._pending = self._pending[:most], self._pending[most:]
            return piece
        try:
            piece = self._inflate.decompress(self._pending, most)
        except zlib.error as error:
            raise _damaged(self._name, error) from None
        self._pending = self._inflate.unconsumed_tail or self._inflate.unused_data
        return piece


def _damaged(name: str, error: Exception) -> InputError:
    return InputError(f"{name} cannot be read ({error}); download it again")
