"""GIFTI surfaces: the triangles of one hemisphere, and which chosen vertices they join.

The sizes that a file claims are held against those of the responses before anything is inflated.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from xml.etree import ElementTree

import numpy as np

from raybrain.config import InputError
from raybrain.datasets.files import Root

MOST_BYTES = 32 * 1024 * 1024
"""Of a file; a surface of 32k vertices has 2 MB, as text 5 MB, and of 164k five times that."""
TRIANGLES, POINTS = "NIFTI_INTENT_TRIANGLE", "NIFTI_INTENT_POINTSET"
SIDES = ("CortexLeft", "CortexRight")
"""What a file calls its hemisphere (AnatomicalStructurePrimary)."""
ORDERS = {"LittleEndian": "<", "BigEndian": ">"}


def read_triangles(root: Root, path: str, *, vertices: int, side: int) -> np.ndarray:
    """Return the triangles (triangle, 3) int64 of a hemisphere, by number of vertex.

    Parameters
    ----------
    root : Root
    path : str
    vertices : int
        That the responses say the hemisphere has, the medial wall included.
    side : int
        0 for the left hemisphere, 1 for the right.

    Raises
    ------
    InputError
        If the file is missing, damaged, of another hemisphere or of another number of vertices.
    """
    name = root.at(path)
    if (root.size(path) or 0) > MOST_BYTES:
        raise InputError(f"{name} is larger than any surface; {root.again}")
    try:
        arrays = list(ElementTree.fromstring(root.read(path)).iter("DataArray"))
        _check_hemisphere(arrays, name=name, side=side)
        counts = [_shape(one)[0] for one in arrays if one.get("Intent") == POINTS]
        triangles = [one for one in arrays if one.get("Intent") == TRIANGLES]
        if len(triangles) != 1 or _shape(triangles[0])[1:] != (3,):
            raise InputError(f"{name} holds no mesh of triangles; take a .surf.gii")
        if any(count != vertices for count in counts):
            raise InputError(
                f"{name} has {counts[0]:,} vertices, but the betas lie on a surface of "
                f"{vertices:,}; take both from the same space"
            )
        # A closed surface has 2 vertices - 4 triangles; more than this is no surface.
        if _shape(triangles[0])[0] > 4 * vertices:
            raise InputError(f"{name} has more triangles than a surface can have; {root.again}")
        found = _numbers(triangles[0])
    except (ElementTree.ParseError, ValueError, TypeError, KeyError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{name} cannot be read as GIFTI ({reason}); {root.again}") from None
    if found.min(initial=0) < 0 or found.max(initial=0) >= vertices:
        raise InputError(
            f"{name} joins vertex {int(found.max()):,}, but the surface of the betas has "
            f"{vertices:,}; take both from the same space"
        )
    return found


def edges_among(triangles: np.ndarray, *, chosen: np.ndarray, vertices: int) -> np.ndarray:
    """Return the edges (edge, 2) int32 between chosen vertices, ascending, the lower end first.

    Parameters
    ----------
    triangles : ndarray of int, shape (triangle, 3)
    chosen : ndarray of int, shape (voxel,)
        Vertices; an end of an edge is a place in this list.
    vertices : int
        Of the hemisphere.
    """
    place = np.full(vertices, -1, dtype=np.int32)
    place[chosen] = np.arange(len(chosen), dtype=np.int32)
    ends = place[np.concatenate([triangles[:, [a, b]] for a, b in ((0, 1), (1, 2), (2, 0))])]
    ends = np.sort(ends[(ends >= 0).all(axis=1)], axis=1)
    return np.unique(ends[ends[:, 0] < ends[:, 1]], axis=0)


def _check_hemisphere(arrays: list[ElementTree.Element], *, name: str, side: int) -> None:
    """Raise `InputError` if a file says it is of the other one; both have as many vertices."""
    for entry in (entry for one in arrays for entry in one.iter("MD")):
        said = (entry.findtext("Value") or "").strip()
        primary = (entry.findtext("Name") or "").strip() == "AnatomicalStructurePrimary"
        if primary and said in SIDES and said != SIDES[side]:
            raise InputError(
                f"{name} says it is {said}, but {SIDES[side]} is wanted; name each hemisphere's own"
            )


def _shape(array: ElementTree.Element) -> tuple[int, ...]:
    rank = int(array.attrib["Dimensionality"])
    if not 1 <= rank <= 2:
        raise ValueError(f"an array of {rank} dimensions")
    return tuple(int(array.attrib[f"Dim{axis}"]) for axis in range(rank))


def _numbers(array: ElementTree.Element) -> np.ndarray:
    """Return the whole numbers of an array, as many as it claims and no more."""
    shape, text = _shape(array), (array.findtext("Data") or "").strip()
    if min(shape) < 1:
        raise ValueError("an array without numbers")
    if array.attrib["DataType"] != "NIFTI_TYPE_INT32":
        raise ValueError(f"triangles of type {array.attrib['DataType']}")
    encoding = array.attrib["Encoding"]
    if encoding == "ASCII":
        values = np.array(text.split(), dtype=np.int64)
    else:
        content = _bytes(text, encoding=encoding, most=4 * int(np.prod(shape)))
        order = ORDERS[array.attrib["Endian"]]
        values = np.frombuffer(content, dtype=f"{order}i4").astype(np.int64)
    by_column = array.get("ArrayIndexingOrder") == "ColumnMajorOrder"
    return values.reshape(shape, order="F" if by_column else "C")


def _bytes(text: str, *, encoding: str, most: int) -> bytes:
    if encoding not in ("Base64Binary", "GZipBase64Binary"):
        raise ValueError(f"numbers encoded as {encoding}")
    try:
        content = base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
    if encoding == "Base64Binary":
        return content
    return zlib.decompressobj().decompress(content, most)
