"""NSD's betas of one scan session, from NIfTI or HDF5, in one voxel order."""

from __future__ import annotations

import re
from collections.abc import Mapping

import h5py
import numpy as np

from raybrain.config import InputError
from raybrain.datasets.files import Root
from raybrain.datasets.nifti import read_header, read_series

SCALE = 1.0 / 300.0  # NSD data manual: volume betas are percent signal change x 300, int16
ENDINGS = ("nii.gz", "hdf5")


def session_files(root: Root, *, folder: str, ending: str | None) -> dict[int, str]:
    """Return session -> file of the betas that are present, ascending.

    Where both formats are present NIfTI is read, unless ``ending`` says otherwise.
    """
    endings = ENDINGS if ending is None else (ending,)
    found: dict[int, str] = {}
    names = root.names(folder)
    for one in reversed(endings):
        for name in names:
            match = re.fullmatch(rf"betas_session(\d+)\.{re.escape(one)}", name)
            if match:
                found[int(match.group(1))] = f"{folder}/{name}"
    return dict(sorted(found.items()))


def read_type(root: Root, *, path: str) -> np.dtype:
    """Return the type in which a session is stored, reading only the head of the file."""
    if path.endswith(".hdf5"):
        with root.open(path) as file, _betas(file, name=root.at(path)) as betas:
            return betas.dtype
    header = read_header(root, path)
    if (header.slope, header.inter) not in ((1.0, 0.0), (0.0, 0.0)):
        raise InputError(
            f"{root.at(path)} was saved with a scaling of its own (slope {header.slope:g}); "
            f"use the file as NSD ships it, integers of percent signal change x 300"
        )
    return header.dtype


def read_session(
    session: int,
    *,
    root: Root,
    files: Mapping[int, str],
    trials: Mapping[int, int],
    voxels: np.ndarray,
    grid: tuple[int, int, int],
    dtype: str,
) -> np.ndarray:
    """Return betas (trial, voxel) as stored, voxels in C order of (x, y, z) in either format.

    Raises
    ------
    InputError
        If the file is missing, truncated, of another shape or type, or holds values that are not
        finite.
    """
    path = files[session]
    read = _read_hdf5 if path.endswith(".hdf5") else read_series
    betas = read(root, path, voxels=voxels, grid=grid, volumes=trials[session])
    name = root.at(path)
    if betas.dtype != np.dtype(dtype):
        raise InputError(
            f"{name} holds {betas.dtype}, but other sessions hold {dtype}; "
            f"take all sessions from the same release"
        )
    if betas.dtype.kind == "f" and not np.isfinite(betas).all():
        bad = int((~np.isfinite(betas)).any(axis=0).sum())
        raise InputError(
            f"{name} has betas that are not finite in {bad} of the chosen voxels; "
            f"download it again, or leave the ROIs that hold them out of the catalog entry"
        )
    if not betas.any():
        raise InputError(f"{name} is zero in every chosen voxel; download it again")
    return betas


def _read_hdf5(
    root: Root, path: str, *, voxels: np.ndarray, grid: tuple[int, ...], volumes: int
) -> np.ndarray:
    """Read slabs of constant z: h5py sees MATLAB's (X, Y, Z, trial) reversed, (trial, Z, Y, X)."""
    x, y, z = np.unravel_index(voxels, grid)
    with root.local(path) as file, _betas(file, name=root.at(path)) as betas:
        wanted = (volumes, *grid[::-1])
        if betas.shape != wanted:
            raise InputError(
                f"{root.at(path)} holds betas {betas.shape}, but {wanted} (trial, z, y, x) is "
                f"expected from the ROIs and the trials; take all from the same subject and space"
            )
        chosen = np.empty((volumes, len(voxels)), dtype=betas.dtype)
        for level in np.unique(z):
            here = np.flatnonzero(z == level)
            low_y, high_y = y[here].min(), y[here].max() + 1
            low_x, high_x = x[here].min(), x[here].max() + 1
            slab = betas[:, level, low_y:high_y, low_x:high_x]
            chosen[:, here] = slab[:, y[here] - low_y, x[here] - low_x]
    return chosen


class _betas:
    """The dataset ``betas`` of an HDF5 file, with h5py's errors made plain."""

    def __init__(self, file: object, *, name: str) -> None:
        self._file, self._name = file, name

    def __enter__(self) -> h5py.Dataset:
        try:
            self._open = h5py.File(self._file, "r")
            return self._open["betas"]
        except (OSError, KeyError) as error:
            raise InputError(f"{self._name} cannot be read ({error}); download it again") from None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        self._open.close()
        if isinstance(error, OSError):
            raise InputError(f"{self._name} cannot be read ({error}); download it again") from None
