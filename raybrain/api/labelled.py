"""Stores as xarray Datasets: dimensions with names, rows with labels, betas with their unit."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raybrain import seal, store
from raybrain.config import InputError
from raybrain.stages.predicting import ESTIMATES, RIDGE, TRIALS

if TYPE_CHECKING:
    import xarray


def open_store(path: str | os.PathLike[str]) -> xarray.Dataset:
    """Return what a store holds, labelled; large arrays are read when they are used.

    A subject's store has ``betas`` (trial, voxel) in the dataset's unit, ``pixels``
    (image, y, x, rgb) 0 to 255, ``caption`` (image) and ``in_roi`` (roi, voxel). Trials are
    labelled with ``image_id``, ``session``, ``run``, ``repeat`` and ``split``, voxels with
    ``voxel_x``, ``voxel_y``, ``voxel_z`` (voxels) and ``noise_ceiling`` (a fraction). All trials
    are there: what is chosen by looking should be chosen with ``split`` other than ``test``.

    Features, predictions and reconstructions have an array for each target or row, by ``image``.

    Parameters
    ----------
    path : str or path
        Folder or URL of a ``.zarr`` store that a stage has finished.

    Raises
    ------
    InputError
        If there is no store, or it is not finished.
    """
    import xarray

    # One warning less: a seal lies in every store.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=f".*({seal.SEAL}|{seal.BEGUN}).*")
        return _opened(os.fspath(path).rstrip("/"), xarray=xarray)


def _opened(folder: str, *, xarray) -> xarray.Dataset:  # type: ignore[no-untyped-def]
    store.open_sealed(folder)
    inner = folder.rpartition("/")[0] if folder.endswith(f"/{TRIALS}") else folder
    if seal.read_seal(inner) is None:
        raise InputError(f"{folder} is not finished; the command that makes it continues it")
    if store.has_rows(folder, "betas"):
        return _subject(folder, xarray=xarray)
    return _rows(folder, xarray=xarray)


def _subject(folder: str, *, xarray) -> xarray.Dataset:  # type: ignore[no-untyped-def]
    opened = store.open_store(folder, splits="all")
    raw = xarray.open_zarr(folder, chunks=None, consolidated=False, decode_cf=False)
    betas = raw["betas"]
    # What xarray knows by another name in stores that were made earlier.
    betas.attrs["scale_factor"] = np.float32(store.scale_of(betas.attrs))
    betas.attrs.pop("scale", None)
    pixels = xarray.open_zarr(folder, group="image", chunks=None, consolidated=False)["pixels"]
    trials, voxels, images = opened.trials, opened.voxels, opened.images
    found = xarray.decode_cf(raw[["betas"]]).assign(
        pixels=pixels.drop_vars(list(pixels.coords)),
        caption=("image", [texts[0] if texts else "" for texts in images["captions"]]),
        group=("image", images["group"].to_numpy(dtype=str)),
        in_roi=(("roi", "voxel"), np.stack(list(opened.rois.values()))),
    )
    labels = {str(name): ("trial", _plain(trials[name].to_numpy())) for name in trials}
    for name in voxels:  # y and x alone are axes of the images
        label = name if name == "noise_ceiling" else f"voxel_{name}"
        labels[label] = ("voxel", voxels[name].to_numpy())
    if opened.hemisphere is not None:
        labels["hemisphere"] = ("voxel", np.array(["left", "right"])[opened.hemisphere])
    return found.assign_coords(
        image=images.index.to_numpy(dtype=str), roi=list(opened.rois), **labels
    ).assign_attrs({**opened.attributes, "source": Path(folder).name})


def _rows(folder: str, *, xarray) -> xarray.Dataset:  # type: ignore[no-untyped-def]
    try:
        found = xarray.open_zarr(folder, chunks=None, consolidated=False)
    except (KeyError, ValueError):  # made before arrays named their dimensions
        found = _unnamed(folder, xarray=xarray)
    [dimension] = found["image_id"].dims if "image_id" in found else ["image"]
    for group in (ESTIMATES, RIDGE):
        for name in store.row_arrays(folder, group=group):
            values = store.read_rows(folder, name)
            axes = found[name.rpartition("/")[2]].dims
            found[name.replace("/", "_")] = (axes, values)
    ids = np.array(store.row_ids(folder))
    label = "image" if dimension == "image" else "image_id"
    return found.drop_vars("image_id", errors="ignore").assign_coords({label: (dimension, ids)})


def _unnamed(folder: str, *, xarray) -> xarray.Dataset:  # type: ignore[no-untyped-def]
    arrays = {}
    for name in store.row_arrays(folder):
        values = store.read_rows(folder, name)
        arrays[name] = (("image", *store.axes_of(name, rank=values.ndim - 1)), values)
    return xarray.Dataset(arrays)


def _plain(values: np.ndarray) -> np.ndarray:
    """Return words as fixed-width text, which xarray shows and compares by value."""
    return values.astype(str) if values.dtype == object else values
