"""The Zarr contract: what a store holds, in which chunks, and who may read the test trials.

    betas                 (trial, voxel)  as the dataset ships them; chunk = one scan session
    trial/image_id, session, run, repeat, split
    voxel/index, xyz, noise_ceiling
    voxel/hemisphere      0 left, 1 right; of vertices of the cortex alone
    mesh/edges            (edge, 2) numbers of voxels that are neighbours; where the mesh is known
    roi/<name>            (voxel,) bool
    image/image_id, group, captions, pixels (image, y, x, rgb) uint8

A chunk is the largest scan session: where sessions are equally long, as in NSD and THINGS-fMRI,
parallel tasks own disjoint sessions. Whole chunks are written atomically, empty ones included, so a
chunk that exists is complete and a killed ingest resumes with the missing ones.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import fsspec
import numpy as np
import pandas as pd
import zarr

from raybrain.config import InputError

if TYPE_CHECKING:
    from raybrain.datasets import Recording, Surface

Splits = Literal["training", "test", "all"]
IMAGES_PER_CHUNK = 64
DAMAGED = (OSError, RuntimeError, ValueError, TypeError, zlib.error)
"""What numpy, HDF5 and Zarr raise on damaged content."""
AXES = {
    ("latents", 3): ("channel", "y", "x"),
    ("prompt_embeds", 2): ("token", "prompt_feature"),
    ("image_embeds", 1): ("image_feature",),
    ("image_embeds", 2): ("image_token", "image_feature"),
    ("image_features", 1): ("layer_feature",),
}
"""Target and number of axes of one image's -> what xarray calls them."""
TRIAL_COLUMNS = ("image_id", "session", "run", "repeat", "split")


@dataclass(frozen=True)
class Block:
    """Consecutive rows of an array that form one chunk."""

    start: int
    """First row."""
    stop: int
    """One after the last row."""


@dataclass(frozen=True)
class SubjectStore:
    """The trials of one subject that the opener may see."""

    group: zarr.Group
    """The whole store, all trials included."""
    trials: pd.DataFrame
    """Index = row in ``betas``; columns image_id, session, run, repeat, split."""
    voxels: pd.DataFrame
    """Columns index, x, y, z, noise_ceiling."""
    rois: Mapping[str, np.ndarray]
    """Name -> (voxel,) bool."""
    images: pd.DataFrame
    """Index = image_id; columns row, captions (list of str), group; every image of the subject."""
    hemisphere: np.ndarray | None = None
    """(voxel,) int8, 0 left and 1 right, of vertices of the cortex; None in a volume."""
    edges: np.ndarray | None = None
    """(edge, 2) int32: numbers of voxels that are neighbours on the surface; None if not known."""

    @property
    def shown(self) -> list[str]:
        """Return the image_ids of the visible trials, each once, in the order of the images."""
        rows = self.images.loc[self.trials["image_id"], "row"].to_numpy()
        return self.images.index[np.unique(rows)].tolist()

    def mask(self, rois: Iterable[str]) -> np.ndarray:
        """Return (voxel,) bool: the voxels in any of ``rois``."""
        return np.any([self.rois[name] for name in rois], axis=0)

    def betas(self, *, voxels: np.ndarray) -> np.ndarray:
        """Return (trial, voxel) float32 betas in the dataset's unit for the visible trials.

        Parameters
        ----------
        voxels : ndarray of bool, shape (voxel,)
            Which voxels of the store to read.
        """
        array = _array(self.group, "betas")
        scale = np.float32(scale_of(dict(array.attrs)))
        rows = self.trials.index.to_numpy()
        betas = np.empty((len(rows), int(voxels.sum())), dtype=np.float32)
        for block in blocks(array.shape[0], size=array.chunks[0]):
            here = (rows >= block.start) & (rows < block.stop)
            if here.any():
                chunk = _rows(array, slice(block.start, block.stop))
                betas[here] = chunk[rows[here] - block.start][:, voxels]
        betas *= scale
        return betas

    def first_betas(self, trials: int, *, voxels: np.ndarray) -> np.ndarray:
        """Return `betas` of the first visible trials alone.

        Parameters
        ----------
        trials : int
            How many of the visible trials.
        voxels : ndarray of bool, shape (voxel,)
            Which voxels of the store to read.

        Returns
        -------
        ndarray of float32, shape (trial, voxel)
        """
        return replace(self, trials=self.trials.iloc[:trials]).betas(voxels=voxels)

    def pixels(self, image_ids: Sequence[str]) -> np.ndarray:
        """Return (image, y, x, rgb) uint8 stimuli."""
        rows = self.images.loc[list(image_ids), "row"].to_numpy()
        wanted: slice | np.ndarray = rows
        if len(rows) and (np.diff(rows) == 1).all():
            # A slice is copied from whole chunks; rows one by one take several times as long.
            wanted = slice(int(rows[0]), int(rows[-1]) + 1)
        return _rows(_array(self.group, "image/pixels"), wanted)

    @property
    def attributes(self) -> dict[str, Any]:
        """Return what ingest recorded about the dataset."""
        return dict(self.group.attrs)


def blocks(rows: int, *, size: int) -> list[Block]:
    """Return the chunks of ``rows`` rows.

    Parameters
    ----------
    rows : int
        Rows of the array.
    size : int
        Rows of one chunk; the last may have fewer.
    """
    return [Block(start, min(start + size, rows)) for start in range(0, rows, size)]


def create_store(path: str, recording: Recording, *, side: int) -> None:
    """Write everything of ``recording`` but betas and pixels, whose empty arrays are prepared.

    Calling it again on an unfinished store rewrites the tables and keeps the chunks.

    Parameters
    ----------
    path : str
        Folder or URL of the store.
    recording : Recording
        What a reader found.
    side : int
        Pixels along each side of the images that will be written.
    """
    group = zarr.open_group(path, mode="a")
    trials, voxels, images = recording.trials, recording.voxels, recording.images
    for name in TRIAL_COLUMNS:
        _write_table(group, f"trial/{name}", trials[name].to_numpy(), dimension="trial")
    about_voxels = {
        "index": (voxels.index, {"long_name": "flat index into the volume, C order of (x, y, z)"}),
        "xyz": (voxels.xyz, {"long_name": "position in the volume", "units": "voxels"}),
        "noise_ceiling": (
            voxels.noise_ceiling,
            {"long_name": "explainable share of the variance of a single trial", "units": "1"},
        ),
    }
    for name, (values, attributes) in about_voxels.items():
        _write_table(group, f"voxel/{name}", values, dimension="voxel", attributes=attributes)
    if recording.surface is not None:
        _write_surface(group, recording.surface)
    for name, mask in recording.rois.items():
        _write_table(group, f"roi/{name}", mask, dimension="voxel")
    captions = np.array([json.dumps(list(texts)) for texts in images["captions"]], dtype=object)
    _write_table(group, "image/image_id", images["image_id"].to_numpy(), dimension="image")
    _write_table(group, "image/group", images["group"].to_numpy(), dimension="image")
    _write_table(group, "image/captions", captions, dimension="image")
    if "betas" not in group:
        rows, columns = len(trials), len(voxels.index)
        longest = int(trials.groupby("session").size().max())
        group.create_array(
            "betas",
            shape=(rows, columns),
            chunks=(longest, columns),
            dtype=recording.dtype,
            dimension_names=("trial", "voxel"),
            attributes={
                # CF names, which xarray and others apply without being told
                "scale_factor": recording.scale,
                "units": recording.units,
                "long_name": "response estimate of a trial",
            },
            compressors=None,  # betas are noise to a compressor; reading is 3 times faster
        )
        group.create_array(
            "image/pixels",
            shape=(len(images), side, side, 3),
            chunks=(IMAGES_PER_CHUNK, side, side, 3),
            dtype="uint8",
            dimension_names=("image", "y", "x", "rgb"),
            attributes={"long_name": "image shown, 0 to 255", "units": "1"},
        )
    group.attrs.update(
        {
            "dataset": recording.dataset,
            "subject": recording.subject,
            "target": recording.target,
            "sources": dict(recording.sources),
            "findings": list(recording.findings),
        }
    )


def _write_surface(group: zarr.Group, surface: Surface) -> None:
    _write_table(
        group,
        "voxel/hemisphere",
        surface.hemisphere,
        dimension="voxel",
        attributes={"flag_values": [0, 1], "flag_meanings": "left right"},
    )
    group["voxel/xyz"].attrs.update({"long_name": "hemisphere, vertex, 0", "units": "1"})
    if surface.edges is not None:
        _write_table(
            group,
            "mesh/edges",
            surface.edges,
            dimension="edge",
            attributes={"long_name": "voxels that are neighbours on the surface"},
        )
    elif "mesh" in group:  # of an unfinished ingest, before the files of the mesh were taken away
        del group["mesh"]


def missing_blocks(path: str, name: str) -> list[Block]:
    """Return the chunks of an array along its first dimension that have not been written yet."""
    array = _array(zarr.open_group(path, mode="r"), name)
    files, root = fsspec.core.url_to_fs(f"{path}/{name}/c")
    written = (
        {entry.rsplit("/", 1)[-1] for entry in files.ls(root, detail=False)}
        if files.exists(root)
        else set()
    )
    size = (array.shards or array.chunks)[0]
    trailing = "/".join("0" * (array.ndim - 1))
    return [
        block
        for number, block in enumerate(blocks(array.shape[0], size=size))
        if str(number) not in written or not files.exists(f"{root}/{number}/{trailing}")
    ]


def write_block(path: str, name: str, values: np.ndarray, *, block: Block) -> None:
    """Write one whole chunk of an array, atomically.

    Parameters
    ----------
    path : str
        Folder or URL of the store.
    name : str
        Of the array.
    values : ndarray, shape (row, ...)
        All rows of the chunk.
    block : Block
        Which rows they are.
    """
    array = _array(zarr.open_group(path, mode="r+"), name)
    # Not kept in the array's metadata: without it a chunk of zeros would look unwritten.
    array.with_config({"write_empty_chunks": True})[block.start : block.stop] = values


def beta_blocks(path: str) -> list[Block]:
    """Return the chunks of betas of a store, written or not."""
    array = _array(zarr.open_group(path, mode="r"), "betas")
    return blocks(array.shape[0], size=array.chunks[0])


def extreme_betas(path: str, block: Block) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest and the largest beta as stored, (voxel,) each, of one chunk."""
    array = _array(zarr.open_group(path, mode="r"), "betas")
    chunk = _rows(array, slice(block.start, block.stop))
    return chunk.min(axis=0), chunk.max(axis=0)


def open_store(path: str, *, splits: Splits) -> SubjectStore:
    """Return the training trials (validation included) or the test trials of a subject.

    Selection must not see the test trials: ``train`` and ``tune`` open ``training`` only, and every
    opening of ``test`` is recorded in its run by the pipeline. ``all`` is for people who look.

    Raises
    ------
    InputError
        If there is no store, or chunks of it are gone.
    """
    group = open_sealed(path)
    for name in ("betas", "image/pixels"):
        _check_whole(path, name)
    trials = pd.DataFrame({name: _table(group, f"trial/{name}") for name in TRIAL_COLUMNS})
    test = trials["split"] == "test"
    xyz = _table(group, "voxel/xyz")
    images = pd.DataFrame(
        {
            "row": np.arange(_array(group, "image/image_id").shape[0]),
            "captions": [json.loads(texts) for texts in _table(group, "image/captions")],
            "group": _table(group, "image/group"),
        },
        index=pd.Index(_table(group, "image/image_id"), name="image_id"),
    )
    rois = group["roi"]
    assert isinstance(rois, zarr.Group)
    return SubjectStore(
        group=group,
        trials=trials if splits == "all" else trials[test if splits == "test" else ~test],
        voxels=pd.DataFrame(
            {
                "index": _table(group, "voxel/index"),
                "x": xyz[:, 0],
                "y": xyz[:, 1],
                "z": xyz[:, 2],
                "noise_ceiling": _table(group, "voxel/noise_ceiling"),
            }
        ),
        rois={name: _table(group, f"roi/{name}") for name in sorted(rois.array_keys())},
        images=images,
        hemisphere=_table(group, "voxel/hemisphere") if "voxel/hemisphere" in group else None,
        edges=_table(group, "mesh/edges") if "mesh/edges" in group else None,
    )


def open_sealed(path: str) -> zarr.Group:
    """Return a store for reading.

    Raises
    ------
    InputError
        If there is no store at ``path``.
    """
    try:
        return zarr.open_group(path, mode="r")
    except FileNotFoundError:
        raise InputError(
            f"there is no store at {path}; type 'raybrain plan' to see what is missing"
        ) from None


def scale_of(attributes: Mapping[str, Any]) -> float:
    """Return what stored betas are multiplied by, from the attributes of their array."""
    # Stores that were made before xarray could read them have their own name for it.
    return float(str(attributes.get("scale_factor", attributes.get("scale", 1.0))))


def create_rows(
    path: str,
    arrays: Mapping[str, tuple[tuple[int, ...], str]],
    *,
    image_ids: Sequence[str],
    rows_per_block: int | Mapping[str, int],
    attributes: Mapping[str, Any],
    rows_per_chunk: int | None = None,
    dimension: str = "image",
) -> None:
    """Prepare arrays whose first dimension is the image, or another thing that rows are of.

    Parameters
    ----------
    path : str
        Folder or URL of the store.
    arrays : mapping
        Name -> shape of a row and dtype.
    image_ids : sequence of str
        Of the rows, in their order.
    rows_per_block : int or mapping of str to int
        Rows of one file, of all arrays or by an array's name; a task writes a whole file.
    attributes : mapping
        Added to those of the store.
    rows_per_chunk : int, optional
        Rows that can be read by themselves: with it the file is a shard of such chunks.
    dimension : str
        What a row is of.
    """
    group = zarr.open_group(path, mode="a")
    _write_table(group, "image_id", np.array(list(image_ids), dtype=object), dimension=dimension)
    for name, (shape, dtype) in arrays.items():
        if name in group:
            continue
        wanted = rows_per_block if isinstance(rows_per_block, int) else rows_per_block[name]
        block = min(wanted, max(len(image_ids), 1))
        chunk = min(rows_per_chunk or block, block)
        group.create_array(
            name,
            shape=(len(image_ids), *shape),
            chunks=(chunk, *shape),
            shards=(block, *shape) if chunk < block else None,
            dtype=dtype,
            dimension_names=(dimension, *axes_of(name, rank=len(shape))),
            attributes={"units": "1"},
        )
    group.attrs.update(dict(attributes))


def attributes_of(path: str) -> dict[str, Any]:
    """Return the attributes of a store made by `create_rows`, finished or not; none without one."""
    try:
        return dict(zarr.open_group(path, mode="r").attrs)
    except FileNotFoundError:
        return {}


def axes_of(name: str, *, rank: int) -> tuple[str, ...]:
    """Return what the axes of one row of an array are called; another size has another name.

    Parameters
    ----------
    name : str
        Of the array.
    rank : int
        Axes of one row.
    """
    of = name.rpartition("/")[2]
    if (of, rank) in AXES:
        return AXES[of, rank]
    if rank == 4:  # pictures, as often as their row of the table was drawn
        return ("sample" if of == "system" else f"{of}_sample", "y", "x", "rgb")
    return tuple(f"{of}_{axis}" for axis in range(1, rank + 1))


def row_arrays(path: str, *, group: str = "") -> list[str]:
    """Return the names of the arrays that `create_rows` made at ``path``, or in a group of it."""
    found = open_sealed(path)
    if group:
        if group not in found:
            return []
        found = found[group]  # type: ignore[assignment]
    prefix = f"{group}/" if group else ""
    return [f"{prefix}{name}" for name in sorted(found.array_keys()) if name != "image_id"]


def read_rows(path: str, name: str, *, image_ids: Sequence[str] | None = None) -> np.ndarray:
    """Return the rows of an array made by `create_rows`, in the order of ``image_ids``.

    Parameters
    ----------
    path : str
        Folder or URL of the store.
    name : str
        Of the array.
    image_ids : sequence of str, optional
        Of the rows that are wanted; all in their order when not given.

    Returns
    -------
    ndarray, shape (image, ...)

    Raises
    ------
    InputError
        If there is no store, or chunks of the array are gone or damaged.
    """
    group = open_sealed(path)
    array = _array(group, name)
    _check_whole(path, name)
    if image_ids is None:
        return _rows(array, slice(None))
    known = {image_id: row for row, image_id in enumerate(_table(group, "image_id"))}
    return _rows(array, np.array([known[image_id] for image_id in image_ids], dtype=np.int64))


@dataclass(frozen=True)
class StoredRows:
    """A matrix on disk whose columns lie in one or several arrays made by `create_rows`."""

    path: str
    names: tuple[str, ...]
    shape: tuple[int, int]
    """Rows and columns."""

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Return a slice of rows, all columns."""
        group = open_sealed(self.path)
        return np.concatenate([_rows(_array(group, name), rows) for name in self.names], axis=1)


def has_rows(path: str, name: str) -> bool:
    """Return whether there is such an array."""
    return name in open_sealed(path)


def row_shape(path: str, name: str) -> tuple[int, ...]:
    """Return the shape of one row of an array made by `create_rows`."""
    return tuple(_array(open_sealed(path), name).shape[1:])


def row_ids(path: str) -> list[str]:
    """Return the image_ids of a store made by `create_rows`."""
    return [str(image_id) for image_id in _table(open_sealed(path), "image_id")]


def open_foreign(path: str, *, storage: Mapping[str, Any]) -> zarr.Array:
    """Return a Zarr array of any shape that raybrain did not write, of either version, for reading.

    Raises
    ------
    InputError
        If there is no array at ``path``.
    """
    options = dict(storage) if "://" in path else None
    try:
        found = zarr.open(path, mode="r", storage_options=options)
    except (*DAMAGED, KeyError, AttributeError) as error:
        raise InputError(f"{path} is not a Zarr array ({error}); write it again") from None
    if not isinstance(found, zarr.Array):
        raise InputError(f"{path} is a Zarr group; give the path of the array within it")
    return found


def _check_whole(path: str, name: str) -> None:
    """Raise `InputError` if chunks of an array are gone: Zarr would read them as zeros."""
    gone = missing_blocks(path, name)
    if gone:
        raise InputError(
            f"{path} lacks {len(gone)} chunks of {name} (the first holds rows {gone[0].start} to "
            f"{gone[0].stop - 1}); delete that folder and run again, it is made anew"
        )


def _rows(array: zarr.Array, rows: slice | np.ndarray) -> np.ndarray:
    """Return rows of an array.

    Raises
    ------
    InputError
        If a chunk is damaged.
    """
    try:
        found = array[rows] if isinstance(rows, slice) else array.oindex[rows]
    except DAMAGED as error:
        raise InputError(
            f"{array.store_path} has a damaged chunk ({error}); delete the folder it lies in and "
            f"run again, it is made anew"
        ) from None
    return np.asarray(found)


def _array(group: zarr.Group, name: str) -> zarr.Array:
    array = group[name]
    assert isinstance(array, zarr.Array)
    return array


def _table(group: zarr.Group, name: str) -> np.ndarray:
    values = np.asarray(_array(group, name)[:])
    # StringDType columns become plain objects, which pandas and JSON know.
    return values.astype(object) if values.dtype.kind == "T" else values


def _write_table(
    group: zarr.Group,
    name: str,
    values: np.ndarray,
    *,
    dimension: str,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    text = values.dtype.kind in "OUT" or not isinstance(values, np.ndarray)
    values = np.asarray(values, dtype=object if text else None)
    array = group.create_array(
        name,
        shape=values.shape,
        chunks=tuple(max(length, 1) for length in values.shape),
        dtype=str if text else values.dtype,
        dimension_names=(dimension, "axis")[: values.ndim],
        attributes=dict(attributes or {}),
        overwrite=True,
    )
    array[...] = values
