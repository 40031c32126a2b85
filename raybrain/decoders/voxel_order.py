"""Orders of voxels along one axis, for decoders that convolve over it.

In the stored order (C order of x, y, z) neighbours along the axis are neighbours along z only, and
a row's end touches the next row's start. A Hilbert curve keeps neighbours along the axis neighbours
in the brain; a random permutation is the control that shows whether that matters.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def hilbert_order(xyz: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the voxels in the order in which a Hilbert curve through the volume meets them.

    Parameters
    ----------
    xyz : ndarray of int, shape (voxel, 3)
        Coordinates in the volume.

    Returns
    -------
    ndarray of int64, shape (voxel,)
        Positions in ``xyz``.
    """
    corner = np.asarray(xyz, np.int64) - np.min(xyz, axis=0)
    bits = max(1, int(corner.max()).bit_length())
    axes = _transposed(corner.T.copy(), bits=bits)
    index = np.zeros(len(corner), np.int64)
    for bit in range(bits - 1, -1, -1):
        for axis in axes:
            index = (index << 1) | ((axis >> bit) & 1)
    return np.argsort(index, kind="stable")


def _transposed(axes: NDArray[np.int64], *, bits: int) -> NDArray[np.int64]:
    """Return the Hilbert index of points, its bits spread over the axes (Skilling 2004)."""
    dimensions = len(axes)
    level = 1 << (bits - 1)
    while level > 1:
        below = level - 1
        for at in range(dimensions):
            inverted = (axes[at] & level) > 0
            swapped = np.where(inverted, 0, (axes[0] ^ axes[at]) & below)
            axes[0] ^= np.where(inverted, below, swapped)
            axes[at] ^= swapped
        level >>= 1
    for at in range(1, dimensions):
        axes[at] ^= axes[at - 1]
    parity = np.zeros_like(axes[0])
    level = 1 << (bits - 1)
    while level > 1:
        parity ^= np.where((axes[-1] & level) > 0, level - 1, 0)
        level >>= 1
    return axes ^ parity


def permuted_order(voxels: int) -> NDArray[np.int64]:
    """Return a fixed random order of so many voxels."""
    return np.random.default_rng(0).permutation(voxels).astype(np.int64)
