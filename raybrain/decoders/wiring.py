"""What a network knows about its voxels beside their number: their order, nodes and graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from raybrain import config
from raybrain.config import InputError
from raybrain.decoders.examples import Examples
from raybrain.decoders.normalisation import ROWS_AT_ONCE, Rows
from raybrain.decoders.voxel_order import hilbert_order, permuted_order

Wiring = Mapping[str, NDArray]
"""Arrays by name, saved with the decoder."""

NO_VOXEL = -1
MESH = "mesh"
"""Edges of the surface that a network was fitted on, by number of voxel."""
NO_MESH = (
    "'mesh_gcn' needs to know which voxels are neighbours on the cortical surface, and this store "
    "does not; choose roi_graph for volumes, or get the surface files that 'raybrain plan' names "
    "and ingest again (on_change=replace)"
)


def wire(section: config.Network, *, examples: Examples) -> Wiring:
    """Return the arrays that the network of ``section`` is built from, from training data alone.

    Parameters
    ----------
    section : config section
    examples : Examples
        With ``xyz`` for a Hilbert order, with ``rois`` for a graph of them, with ``edges`` for one
        of vertices.

    Raises
    ------
    InputError
        If an ROI that the network needs was not chosen or is empty, or a mesh is not known.
    """
    if isinstance(section, config.CnnText | config.CnnImage):
        return {"order": _order(section.order, examples)}
    if isinstance(section, config.Gcn):
        nodes = _nodes(section.nodes, examples, kind="gcn")
        correlation = node_correlation(examples.betas, nodes=nodes)
        edges = published_edges(correlation, threshold=section.threshold)
        return {
            "nodes": nodes,
            "edges": edges,
            "propagation": propagation(edges, weight=correlation[tuple(edges)], nodes=len(nodes)),
        }
    if isinstance(section, config.RoiGraph):
        names = tuple((name,) for name in examples.rois)
        if len(names) < 2:
            raise InputError(
                f"'roi_graph' needs two or more ROIs, found {list(examples.rois)}; "
                f"list them singly, as in rois: [V1, V2, V3, hV4]"
            )
        nodes = _nodes(names, examples, kind="roi_graph")
        correlation = node_correlation(examples.betas, nodes=nodes)
        return {"nodes": nodes, "adjacency": normalised(np.abs(correlation))}
    if isinstance(section, config.MeshGcn):
        if examples.edges is None:
            raise InputError(NO_MESH)
        return {MESH: examples.edges}
    if isinstance(section, config.OtherNetwork):
        return section.wire(examples=examples)
    return {}


def _order(name: str, examples: Examples) -> NDArray[np.int64]:
    voxels = examples.betas.shape[1]
    if name == "permuted":
        return permuted_order(voxels)
    if name == "stored":
        return np.arange(voxels)
    if examples.xyz is None:
        raise ValueError("a Hilbert order needs the coordinates of the voxels: prepare(..., xyz=)")
    return hilbert_order(examples.xyz)


def _nodes(names: Sequence[Sequence[str]], examples: Examples, *, kind: str) -> NDArray[np.int64]:
    """Return the voxels of each node, shape (node, widest), the rest filled with -1."""
    missing = [name for group in names for name in group if name not in examples.rois]
    if missing:
        wanted = ", ".join(name for group in names for name in group)
        raise InputError(
            f"'{kind}' needs the ROIs {wanted}; the target's rois are "
            f"{list(examples.rois)}, so {', '.join(missing)} is missing: write rois: [{wanted}]"
        )
    members = [
        np.flatnonzero(np.any([examples.rois[name] for name in group], axis=0)) for group in names
    ]
    for group, voxels in zip(names, members, strict=True):
        if not len(voxels):
            raise InputError(
                f"'{kind}' has no voxels left in {'+'.join(group)}; lower min_noise_ceiling or "
                f"leave that ROI out"
            )
    nodes = np.full((len(members), max(map(len, members))), NO_VOXEL, np.int64)
    for row, voxels in zip(nodes, members, strict=True):
        row[: len(voxels)] = voxels
    return nodes


def node_correlation(betas: Rows, *, nodes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return Pearson's r between the mean signals of nodes, 0 on the diagonal.

    Parameters
    ----------
    betas : ndarray, shape (row, voxel)
        Training rows.
    nodes : ndarray of int, shape (node, widest)
        Voxels of each node, filled with -1.
    """
    members = [row[row >= 0] for row in nodes]
    parts = []
    for start in range(0, betas.shape[0], ROWS_AT_ONCE):
        rows = betas[start : start + ROWS_AT_ONCE]
        parts.append(np.stack([rows[:, node].mean(axis=1, dtype=np.float64) for node in members]))
    signal = np.concatenate(parts, axis=1)
    signal -= signal.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(signal, axis=1, keepdims=True)
    signal = np.divide(signal, norm, out=np.zeros_like(signal), where=norm > 0)
    correlation = signal @ signal.T
    np.fill_diagonal(correlation, 0.0)
    return correlation


def published_edges(correlation: NDArray[np.float64], *, threshold: float) -> NDArray[np.int64]:
    """Return edges (2, edge) from i to j > i wherever the absolute correlation is above threshold.

    Edges in one direction only, as published: the last node receives and never sends.
    """
    return np.stack(np.nonzero(np.triu(np.abs(correlation) > threshold, k=1)))


def propagation(
    edges: NDArray[np.int64], *, weight: NDArray[np.float64], nodes: int
) -> NDArray[np.float32]:
    """Return the matrix of one Chebyshev step, -D^-1/2 A D^-1/2, shape (receiver, sender).

    The scaled Laplacian 2 L / 2 - I of Defferrard et al. 2016 with D the weights a node sends, as
    torch_geometric's ChebConv makes it. A node that sends no positive weight has no degree.
    """
    degree = np.bincount(edges[0], weights=weight, minlength=nodes)
    scale = np.divide(1.0, np.sqrt(np.abs(degree)), out=np.zeros(nodes), where=degree > 0)
    matrix = np.zeros((nodes, nodes), np.float32)
    matrix[edges[1], edges[0]] = -scale[edges[0]] * weight * scale[edges[1]]
    return matrix


def chebyshev(matrix: NDArray[np.float32], *, order: int) -> NDArray[np.float32]:
    """Return the first Chebyshev polynomials of ``matrix``, shape (order, node, node)."""
    terms = [np.eye(len(matrix), dtype=np.float32), matrix]
    while len(terms) < order:
        terms.append(2 * matrix @ terms[-1] - terms[-2])
    return np.stack(terms[:order])


def normalised(weight: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return D^-1/2 A D^-1/2 of symmetric weights (Kipf & Welling 2017), without self-loops."""
    degree = weight.sum(axis=1)
    scale = np.divide(1.0, np.sqrt(degree), out=np.zeros_like(degree), where=degree > 0)
    return (scale[:, None] * weight * scale).astype(np.float32)
