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
CORTEX = ("CIFTI_STRUCTURE_CORTEX_LEFT", "CIFTI_STRUCTURE_CORTEX_RIGHT")


@dataclass(frozen=True)
class Maps:
    """What a file holds of the cortex."""

    values: np.ndarray
    """(map, vertex of the file) float32."""
    names: tuple[str, ...]
    """Of the maps."""
    xyz: np.ndarray
    """(vertex of the file, 3) int32: hemisphere, vertex, 0; ascending."""
    vertices: tuple[int, int]
    """Of each hemisphere, the medial wall included."""
    labels: tuple[Mapping[int, str], ...]
    """Of every map, number -> label; empty where the maps hold no labels."""


def read_maps(root: Root, path: str) -> Maps:
    """Return the maps of a ``dscalar``, ``dlabel`` or ``dtseries`` file over the cortex.

    Raises
    ------
    InputError
        If the file is missing, damaged, or holds a hemisphere not at all or twice.
    """
    return _parsed(root.read(path), root=root, path=path, whole=True)


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


def _parsed(content: bytes, *, root: Root, path: str, whole: bool) -> Maps:
    name = root.at(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of nibabel, about headers that it mends
            image = nibabel.Cifti2Image.from_bytes(content)
            rows, columns = (image.header.get_axis(axis) for axis in (0, 1))
            data = np.asarray(image.dataobj, dtype=np.float32) if whole else None
            # The axis would call a map without a name "None".
            named = getattr(image.header.get_index_map(0), "named_maps", ())
            names = tuple(str(one.map_name or "") for one in named)
            return _maps(data, rows=rows, columns=columns, names=names, root=root, path=path)
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"{name} claims more than memory holds; {root.again}") from None
    except Exception as error:  # nibabel and its XML raise many kinds on a damaged file
        reason = " ".join(str(error).split())
        raise InputError(f"{name} cannot be read as CIFTI-2 ({reason}); {root.again}") from None


def _maps(
    data: np.ndarray | None,
    *,
    rows: Any,
    columns: Any,
    names: tuple[str, ...],
    root: Root,
    path: str,
) -> Maps:
    name, again = root.at(path), root.again
    if not isinstance(columns, nibabel.cifti2.BrainModelAxis):
        raise InputError(f"{name} has no vertices in its columns; {again}")
    found: dict[str, tuple[slice, np.ndarray]] = {}
    for structure, where, model in columns.iter_structures():
        if structure in CORTEX:
            if structure in found:
                raise InputError(f"{name} holds {structure} twice; {again}")
            found[structure] = (where, np.asarray(model.vertex, dtype=np.int64))
    if set(found) != set(CORTEX):
        raise InputError(f"{name} does not hold both hemispheres of the cortex; {again}")
    if data is None:
        data = np.empty((0, len(columns)), dtype=np.float32)
    elif data.ndim != 2 or data.shape != (len(rows), len(columns)):
        raise InputError(f"{name} holds {data.shape} values, not maps by vertices; {again}")
    values, positions, vertices = [], [], []
    for side, structure in enumerate(CORTEX):
        where, vertex = found[structure]
        total = int(columns.nvertices[structure])
        if len(np.unique(vertex)) != len(vertex) or vertex.min() < 0 or vertex.max() >= total:
            raise InputError(f"{name} lists vertices of {structure} twice or outside; {again}")
        order = np.argsort(vertex, kind="stable")
        values.append(data[:, where][:, order])
        place = np.zeros((len(vertex), 3), dtype=np.int32)
        place[:, 0], place[:, 1] = side, vertex[order]
        positions.append(place)
        vertices.append(total)
    labels: tuple[Mapping[int, str], ...] = ()
    if isinstance(rows, nibabel.cifti2.LabelAxis):
        labels = tuple({int(k): str(text) for k, (text, _) in one.items()} for one in rows.label)
    return Maps(
        values=np.ascontiguousarray(np.concatenate(values, axis=1)),
        names=names,
        xyz=np.concatenate(positions),
        vertices=(vertices[0], vertices[1]),
        labels=labels,
    )
