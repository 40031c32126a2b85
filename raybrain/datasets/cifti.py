"""CIFTI-2 files: maps in rows, the vertices of both hemispheres in columns.

The medial wall is left out of a file, so that a column is no vertex: the file's own list tells
which. A position is (hemisphere, vertex, 0), the left hemisphere first, as on NSD's surface.
Columns of other structures (subcortical voxels) are not read.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np

from raybrain.config import InputError
from raybrain.datasets.files import Root

NIFTI2 = 540
"""Bytes of the header."""
MOST_HEAD = 64 * 1024 * 1024
XML = 32
"""The code of CIFTI's own extension of a NIfTI-2 file."""
LABELS = "CIFTI_INDEX_TYPE_LABELS"
NAMED = ("CIFTI_INDEX_TYPE_SCALARS", LABELS)
CORTEX = ("CIFTI_STRUCTURE_CORTEX_LEFT", "CIFTI_STRUCTURE_CORTEX_RIGHT")


@dataclass(frozen=True)
class Maps:
    """What a file holds of the cortex."""

    values: np.ndarray
    """(map, vertex of the file, or chosen vertex) float32."""
    names: tuple[str, ...]
    """Of the maps."""
    xyz: np.ndarray
    """(vertex of the file, 3) int32: hemisphere, vertex, 0; ascending."""
    vertices: tuple[int, int]
    """Of each hemisphere, the medial wall included."""
    labels: tuple[Mapping[int, str], ...]
    """Of every map, number -> label; empty where the maps hold no labels."""


def read_maps(root: Root, path: str, *, chosen: np.ndarray | None = None) -> Maps:
    """Return the maps of a ``dscalar``, ``dlabel`` or ``dtseries`` file over the cortex.

    Parameters
    ----------
    root : Root
    path : str
    chosen : ndarray of int, shape (chosen vertex,), optional
        Places in the file's list of vertices (`Maps.xyz`): values of these alone. A file keeps the
        maps of a vertex together, so that the others cost nothing.

    Raises
    ------
    InputError
        If the file is missing, damaged, or holds a hemisphere not at all or twice.
    """
    return _parsed(root.read(path), root=root, path=path, whole=True, chosen=chosen)


def read_heading(root: Root, path: str) -> Maps:
    """Return what the head of a file says, without values: they are (0, vertex of the file).

    Raises
    ------
    InputError
        As for `read_maps`.
    """
    with root.open(path) as file:
        content = file.read(NIFTI2)
        # The offset of the data; the extension that describes rows and columns ends there.
        offset = int(np.frombuffer(content[168:176].ljust(8, b"\0"), dtype="<i8")[0])
        if NIFTI2 < offset < MOST_HEAD:
            content += file.read(offset - len(content))
        else:  # of another byte order, or compressed
            content += file.read()
    return _parsed(content, root=root, path=path, whole=False)


def _parsed(
    content: bytes, *, root: Root, path: str, whole: bool, chosen: np.ndarray | None = None
) -> Maps:
    name = root.at(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of nibabel, about headers that it mends
            # As NIfTI-2 with its extension: nibabel's axes handle every vertex by itself, which
            # takes several times as long as the responses.
            image = nibabel.Nifti2Image.from_bytes(content)
            heads = [one.get_content() for one in image.header.extensions if one.get_code() == XML]
            if len(heads) != 1:
                raise InputError(f"{name} is no CIFTI-2 file; {root.again}")
            data = None
            if whole:
                data = np.asanyarray(image.dataobj)
                data = data.reshape(data.shape[-2:], order="F")
            rows, columns = (heads[0].get_index_map(axis) for axis in (0, 1))
            return _maps(data, chosen, rows=rows, columns=columns, root=root, path=path)
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"{name} claims more than memory holds; {root.again}") from None
    except Exception as error:  # nibabel and its XML raise many kinds on a damaged file
        reason = " ".join(str(error).split())
        raise InputError(f"{name} cannot be read as CIFTI-2 ({reason}); {root.again}") from None


def _maps(
    data: np.ndarray | None,
    chosen: np.ndarray | None,
    *,
    rows: Any,
    columns: Any,
    root: Root,
    path: str,
) -> Maps:
    name, again = root.at(path), root.again
    if columns.indices_map_to_data_type != "CIFTI_INDEX_TYPE_BRAIN_MODELS":
        raise InputError(f"{name} has no vertices in its columns; {again}")
    models = list(columns.brain_models)
    width = max(one.index_offset + one.index_count for one in models)
    named = list(rows.named_maps) if rows.indices_map_to_data_type in NAMED else []
    if data is None:
        data = np.empty((0, width), dtype=np.float32)
    elif data.shape[1] != width or (named and len(named) != len(data)):
        raise InputError(f"{name} holds {data.shape} values, not maps by vertices; {again}")
    places, positions, vertices = [], [], []
    for side, structure in enumerate(CORTEX):
        mine = [one for one in models if one.brain_structure == structure]
        if len(mine) > 1:
            raise InputError(f"{name} holds {structure} twice; {again}")
        if not mine or mine[0].vertex_indices is None:
            raise InputError(f"{name} does not hold both hemispheres of the cortex; {again}")
        vertex = np.array(list(mine[0].vertex_indices), dtype=np.int64)
        total, first = int(mine[0].surface_number_of_vertices), int(mine[0].index_offset)
        if len(vertex) != mine[0].index_count or first < 0:
            raise InputError(f"{name} lists {len(vertex)} vertices of {structure}; {again}")
        if len(np.unique(vertex)) != len(vertex) or vertex.min() < 0 or vertex.max() >= total:
            raise InputError(f"{name} lists vertices of {structure} twice or outside; {again}")
        order = np.argsort(vertex, kind="stable")
        places.append(first + order)
        place = np.zeros((len(vertex), 3), dtype=np.int32)
        place[:, 0], place[:, 1] = side, vertex[order]
        positions.append(place)
        vertices.append(total)
    kept = np.concatenate(places)
    if chosen is not None:
        if chosen.max(initial=-1) >= len(kept):
            raise InputError(f"{name} has changed while it was read; start again")
        kept = kept[chosen]
    labels: tuple[Mapping[int, str], ...] = ()
    if rows.indices_map_to_data_type == LABELS:
        tables = (one.label_table for one in named)
        labels = tuple({int(k): str(one.label) for k, one in table.items()} for table in tables)
    return Maps(
        values=np.ascontiguousarray(data[:, kept], dtype=np.float32),
        names=tuple(str(one.map_name or "") for one in named),
        xyz=np.concatenate(positions),
        vertices=(vertices[0], vertices[1]),
        labels=labels,
    )
