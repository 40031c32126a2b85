"""Miniature surfaces: a strip of triangles per hemisphere, as GIFTI files."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from nibabel import gifti


def strip(vertices: int, *, turn: int = 0) -> np.ndarray:
    """(triangle, 3): every three consecutive vertices of a permutation."""
    order = np.roll(np.arange(vertices), turn)
    return np.stack([order[:-2], order[1:-1], order[2:]], axis=1).astype(np.int32)


def write_surface(
    path: Path,
    triangles: np.ndarray,
    *,
    vertices: int,
    side: str = "CortexLeft",
    encoding: str = "GIFTI_ENCODING_B64GZ",
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    points = np.zeros((vertices, 3), np.float32)
    meta = gifti.GiftiMetaData({"AnatomicalStructurePrimary": side})
    arrays = [
        gifti.GiftiDataArray(points, intent="NIFTI_INTENT_POINTSET", meta=meta, encoding=encoding),
        gifti.GiftiDataArray(triangles, intent="NIFTI_INTENT_TRIANGLE", encoding=encoding),
    ]
    nibabel.save(gifti.GiftiImage(darrays=arrays), path)


def nibabel_edges(files: list[Path], xyz: np.ndarray) -> set[tuple[int, int]]:
    """Edges between voxels, read by nibabel and looked up one by one."""
    number = {tuple(position): voxel for voxel, position in enumerate(xyz[:, :2].tolist())}
    found = set()
    for side, path in enumerate(files):
        for triangle in nibabel.load(path).agg_data("triangle").tolist():
            for k in range(3):
                pair = (triangle[k], triangle[(k + 1) % 3])
                voxels = [number.get((side, vertex)) for vertex in pair]
                if None not in voxels and voxels[0] != voxels[1]:
                    found.add(tuple(sorted(voxels)))
    return found
