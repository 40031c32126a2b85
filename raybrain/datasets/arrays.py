"""A dataset of one's own: an array of betas, a table of trials, and a folder of pictures.

The folder (``root/SUBJECT`` or ``root``) holds

- ``betas.npy``, ``betas.h5`` or ``betas.zarr``: (trial, voxel), or as GLMsingle has it
  (voxel, trial), (x, y, z, trial) or, written by MATLAB, (trial, z, y, x);
- ``trials.csv``: ``image_id`` and, as far as known, session, run, split, group;
- ``images/``: a picture per image_id, at any depth;
- ``voxels.csv``, not always needed: columns of 0 and 1 (ROIs), noise_ceiling, x, y, z;
- ``captions.csv``, optional: image_id, caption.
"""

from __future__ import annotations

import contextlib
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd

from raybrain import store
from raybrain.config import InputError, Section
from raybrain.datasets import Recording
from raybrain.datasets.arrays_tables import (
    EVERY_VOXEL,
    choose_voxels,
    read_trials,
    split_trials,
)
from raybrain.datasets.axes import Axes, read_trials_of
from raybrain.datasets.contents import picture_folder, zarr_folder
from raybrain.datasets.files import RequiredFile, Root
from raybrain.datasets.pictures import find_pictures, read_pictures, read_sides, stem_of
from raybrain.datasets.tables import composed, read_table
from raybrain.datasets.things_betas import check_finite
from raybrain.seal import digest_of

if TYPE_CHECKING:
    from raybrain.catalog import CatalogEntry
    from raybrain.config import Ingest

BETAS = ("betas.npy", "betas.h5", "betas.hdf5", "betas.zarr")
KEYS = ("betas", "betasmd")
"""Datasets of an HDF5 file that are looked for; GLMsingle writes betasmd."""


class Layout(Section):
    """Choices for arrays of one's own."""

    key: str | None = None
    """Dataset within an HDF5 file."""
    scale: float = 1.0
    """Percent signal change = stored value * scale."""
    axes: Axes | None = None
    """Of the betas; found from the trials and the voxels' positions when not given."""


def open_recording(entry: CatalogEntry, *, root: str, subject: str, settings: Ingest) -> Recording:
    """Return the recording that a folder of arrays describes.

    Raises
    ------
    InputError
        If a file is missing or does not fit another; the message names the file and the remedy.
    """
    layout = entry.layout_as(Layout)
    place = _place(entry, root)
    folder = _folder(place, subject=subject)
    table = read_trials(place, f"{folder}trials.csv")
    betas = _find_betas(place, folder=folder)
    with open_array(place, betas, key=layout.key) as array:
        shape, dtype = tuple(array.shape), np.dtype(array.dtype)
        attributes = dict(getattr(array, "attrs", {}))
    if dtype.kind not in "iuf":
        raise InputError(f"{place.at(betas)} holds {dtype}, not real numbers; write it again")
    chosen = choose_voxels(
        entry,
        place=place,
        folder=folder,
        shape=shape,
        trials=len(table),
        betas=betas,
        axes=layout.axes,
        attributes=attributes,
    )
    # The first sessions in their order, whatever they are called: 101 and 102 are two.
    sessions = sorted(set(table["session"]))[: settings.sessions]
    kept = table[table["session"].isin(sessions)].reset_index(drop=True)
    trials = split_trials(entry, table=kept, name=place.at(f"{folder}trials.csv"))
    names = sorted(set(trials["image_id"]))
    pictures = find_pictures(
        place,
        folder=_pictures(place, folder=folder),
        names=names,
        remedy="its file name without ending must be the image_id",
    )
    captions, caption_notes, caption_files = _captions(
        place, folder=folder, names=names, table=kept
    )
    stored = dtype if dtype.kind in "iu" and dtype.itemsize <= 2 else np.dtype(np.float32)
    groups = dict(zip(kept["image_id"], kept["group"], strict=True))
    return Recording(
        dataset=entry.name,
        subject=subject,
        trials=trials,
        voxels=chosen.voxels,
        rois=chosen.rois,
        images=pd.DataFrame(
            {
                "image_id": names,
                "captions": [captions[name] for name in names],
                "group": [groups[name] for name in names],
            }
        ),
        read_session=partial(
            _read_session,
            root=place,
            path=betas,
            key=layout.key,
            rows={
                session: kept["row"][kept["session"] == session].to_numpy()
                for session in kept["session"].unique().tolist()
            },
            voxels=chosen.voxels.index,
            shape=shape,
            axes=chosen.axes,
            dtype=stored.name,
        ),
        read_images=partial(
            read_pictures, root=place, files=pictures, background=settings.background
        ),
        read_sides=partial(read_sides, root=place, files=pictures),
        scale=layout.scale,
        dtype=stored.name,
        sources={
            path: _fingerprint(place, path)
            for path in (betas, f"{folder}trials.csv", *chosen.files, *caption_files)
        }
        | {path: place.fingerprint(path) for path in sorted(pictures.values())},
        findings=(
            f"{kept['session'].nunique()} sessions, {len(kept)} trials of {len(names)} images; "
            f"{int((trials['split'] == 'test').sum())} trials test",
            *caption_notes,
            *(f"ROI {name}: {int(mask.sum()):,} voxels" for name, mask in chosen.rois.items()),
        ),
    )


def required_files(
    entry: CatalogEntry, *, root: str, subject: str, settings: Ingest
) -> list[RequiredFile]:
    """Return what the folder must hold, present or not."""
    place = _place(entry, root)
    folder = _folder(place, subject=subject)
    betas = f"{folder}{BETAS[0]}"
    with contextlib.suppress(InputError):  # the plan tells what is missing
        betas = _find_betas(place, folder=folder)
    needed = [place.required(f"{folder}trials.csv")]
    every = all(EVERY_VOXEL in roi.columns for roi in entry.rois.values() if roi.columns)
    if not every or place.exists(f"{folder}voxels.csv"):
        needed.append(place.required(f"{folder}voxels.csv"))
    if place.exists(f"{folder}captions.csv"):
        needed.append(place.required(f"{folder}captions.csv"))
    shown = None
    with contextlib.suppress(InputError):  # ingest tells what is wrong with the table
        shown = set(read_trials(place, f"{folder}trials.csv")["image_id"])
    needed.append(zarr_folder(place, betas) if betas.endswith(".zarr") else place.required(betas))
    needed.append(picture_folder(place, _pictures(place, folder=folder), shown=shown))
    return needed


@contextlib.contextmanager
def open_array(root: Root, path: str, *, key: str | None) -> Iterator[Any]:
    """Open betas for slicing without reading them."""
    name = root.at(path)
    if path.endswith(".zarr"):
        yield store.open_foreign(name, storage=root.storage)
    elif path.endswith(".npy"):
        with root.local(path) as file:
            try:
                array = np.load(file, mmap_mode="r", allow_pickle=False)
            except (*store.DAMAGED, EOFError, SyntaxError, tokenize.TokenError) as error:
                raise InputError(
                    f"{name} is not a whole array of numbers ({error}); a dictionary saved by "
                    f"GLMsingle becomes one by numpy.save('betas.npy', results['betasmd'])"
                ) from None
            yield array
    else:
        with root.open(path) as file, contextlib.ExitStack() as stack:
            try:
                content = stack.enter_context(h5py.File(file, "r"))
                dataset = _dataset(content, key=key, name=name)
            except (*store.DAMAGED, KeyError) as error:
                raise InputError(f"{name} cannot be read ({error}); {root.again}") from None
            yield dataset


def _dataset(content: h5py.File, *, key: str | None, name: str) -> h5py.Dataset:
    wanted = KEYS if key is None else (key,)
    found = [one for one in wanted if isinstance(content.get(one), h5py.Dataset)]
    if not found:
        raise InputError(
            f"{name} has no dataset {' or '.join(wanted)} but {', '.join(content)}; "
            f"name it as 'layout: {{key: ...}}' in the catalog entry"
        )
    return content[found[0]]


def _place(entry: CatalogEntry, root: str) -> Root:
    return Root(root, get=entry.get, storage=entry.storage, again="write it again")


def _folder(place: Root, *, subject: str) -> str:
    own = place.exists(f"{subject}/trials.csv") or place.names(subject)
    return f"{subject}/" if own else ""


def _pictures(place: Root, *, folder: str) -> str:
    own = f"{folder}images"
    return own if place.names(own) or not place.names("images") else "images"


def _find_betas(place: Root, *, folder: str) -> str:
    for name in BETAS:
        path = f"{folder}{name}"
        if place.exists(path) or (name.endswith(".zarr") and place.names(path)):
            return path
    raise InputError(f"{place.at(folder)} has none of {', '.join(BETAS)}; save the betas there")


def _captions(
    place: Root, *, folder: str, names: Sequence[str], table: pd.DataFrame
) -> tuple[dict[str, tuple[str, ...]], list[str], list[str]]:
    path = f"{folder}captions.csv"
    if not place.exists(path):
        groups = dict(zip(table["image_id"], table["group"], strict=True))
        note = f"{place.at(path)} is absent: captions are the groups of trials.csv, or empty"
        return {name: (groups[name],) for name in names}, [note], []
    columns = ("image_id", "caption")
    found = read_table(place, path, columns=columns, text=columns)
    texts: dict[str, tuple[str, ...]] = {}
    known = set(names)
    for written, text in zip(found["image_id"].map(composed), found["caption"], strict=True):
        name = written if written in known else stem_of(written)
        if text.strip():
            texts[name] = (*texts.get(name, ()), text.strip())
    bare = [name for name in names if name not in texts]
    if bare:
        raise InputError(f"{place.at(path)} has no caption of image {bare[0]}; add a row for it")
    return texts, [], [path]


def _read_session(
    session: int,
    *,
    root: Root,
    path: str,
    key: str | None,
    rows: Mapping[int, np.ndarray],
    voxels: np.ndarray,
    shape: tuple[int, ...],
    axes: Axes,
    dtype: str,
) -> np.ndarray:
    """Return (trial, voxel) of one session; only the span of its trials is read."""
    wanted = rows[session]
    first, last = int(wanted.min()), int(wanted.max()) + 1
    with open_array(root, path, key=key) as array:
        if tuple(array.shape) != tuple(shape):
            raise InputError(f"{root.at(path)} has changed while it was read; start again")
        try:
            block = read_trials_of(array, axes, first=first, last=last)[:, voxels]
        except store.DAMAGED as error:
            raise InputError(f"{root.at(path)} cannot be read ({error}); {root.again}") from None
        if path.endswith(".zarr"):
            _check_chunks(array, block, axes=axes, first=first, name=root.at(path))
    betas = np.ascontiguousarray(block[wanted - first], dtype=dtype)
    check_finite(betas, name=f"session {session} of {root.at(path)}", again=root.again)
    return betas


def _check_chunks(array: Any, block: np.ndarray, *, axes: Axes, first: int, name: str) -> None:
    """Raise `InputError` if voxels are empty over a whole chunk of trials and chunks are missing.

    Zarr reads a chunk that is not there as its fill value. Chunks outside the brain may be left out
    on purpose, so it matters only where an ROI lies.
    """
    absent = array.nchunks - array.nchunks_initialized
    if not absent:
        return
    size = array.chunks[axes.split().index("trial")]
    empty = array.fill_value
    for start in range(first - first % size, first + len(block), size):
        rows = block[max(start - first, 0) : start + size - first]
        if (rows == empty).all(axis=0).any():
            raise InputError(
                f"{name} lacks {absent} of {array.nchunks} chunks, and trials {start} to "
                f"{start + size - 1} of the ROIs are among what they hold; copy it again"
            )


def _fingerprint(place: Root, path: str) -> str:
    """Return the fingerprint of a file, or of every file of a Zarr folder."""
    if place.exists(path):
        return place.fingerprint(path)
    return digest_of({part: place.fingerprint(part) for part in place.tree(path)})
