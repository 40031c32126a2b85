"""Which voxels are neighbours, and what a graph convolution sends between them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def within(edges: NDArray[np.integer] | None, keep: NDArray[np.bool_]) -> NDArray[np.int64] | None:
    """Return the edges between voxels that are kept, numbered among them; None where none is known.

    Parameters
    ----------
    edges : ndarray of int, shape (edge, 2), or None
        Numbers of voxels.
    keep : ndarray of bool, shape (voxel,)

    Returns
    -------
    ndarray of int64, shape (kept edge, 2), or None
    """
    if edges is None:
        return None
    place = np.where(keep, np.cumsum(keep) - 1, -1)
    found = place[np.asarray(edges, np.int64).reshape(-1, 2)]
    return found[(found >= 0).all(axis=1)]


def sent(
    edges: NDArray[np.integer], *, voxels: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return one Chebyshev step along edges, -D^-1/2 A D^-1/2, by receiver.

    The scaled Laplacian 2 L / 2 - I of Defferrard et al. 2016, as `raybrain.decoders.wiring` has it
    of nodes. A voxel without neighbours receives nothing.

    Parameters
    ----------
    edges : ndarray of int, shape (edge, 2)
        Each joins both ends.
    voxels : int

    Returns
    -------
    start : ndarray of int64, shape (voxel,)
        Where each receiver's senders begin.
    sender : ndarray of int64, shape (2 edges,)
    weight : ndarray of float32, shape (2 edges,)
    """
    receiver, sender = np.concatenate([edges, edges[:, ::-1]]).T.astype(np.int64)
    order = np.lexsort((sender, receiver))
    receiver, sender = receiver[order], sender[order]
    degree = np.bincount(receiver, minlength=voxels)
    weight = -1.0 / np.sqrt(degree[receiver] * degree[sender])
    start = np.concatenate([[0], np.cumsum(degree)[:-1]]).astype(np.int64)
    return start, sender, weight.astype(np.float32)
