"""Graph convolutions along the surface, beside torch_geometric's and on a surface that is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raybrain import config
from raybrain.config import InputError
from raybrain.decoders import gradient_task, load_decoder, prepare, within
from raybrain.decoders.build import build_network
from raybrain.decoders.mesh_gcn import MeshCheb
from raybrain.decoders.voxel_graph import sent
from raybrain.decoders.wiring import MESH, wire
from raybrain.training import fit_task

SIDE = 8
VOXELS = 2 * SIDE * SIDE
SECTION = config.MeshGcn(channels=4, width=32, depth=1, dropout=0.1)


def sheets() -> np.ndarray:
    """(edge, 2): two square sheets of triangles, one after the other, that nothing joins."""
    places = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)
    pairs = ((places[:, :-1], places[:, 1:]), (places[:-1], places[1:]))
    pairs += ((places[:-1, :-1], places[1:, 1:]),)
    one = np.concatenate([np.stack([a.ravel(), b.ravel()], axis=1) for a, b in pairs])
    return np.concatenate([one, one + SIDE * SIDE])


def dense(edges: np.ndarray, *, voxels: int) -> np.ndarray:
    start, sender, weight = sent(edges, voxels=voxels)
    matrix = np.zeros((voxels, voxels), np.float32)
    receiver = np.repeat(np.arange(voxels), np.diff([*start, len(sender)]))
    matrix[receiver, sender] = weight
    return matrix


def test_edges_within_chosen_voxels_are_counted_anew() -> None:
    edges, keep = sheets(), np.random.default_rng(0).random(VOXELS) < 0.5
    adjacency = np.zeros((VOXELS, VOXELS), bool)
    adjacency[tuple(edges.T)] = True
    found = np.zeros((keep.sum(), keep.sum()), bool)
    found[tuple(within(edges, keep).T)] = True
    np.testing.assert_array_equal(found, adjacency[keep][:, keep])
    assert within(None, keep) is None
    assert within(edges, np.zeros(VOXELS, bool)).shape == (0, 2)


def test_a_step_is_the_scaled_laplacian_of_the_mesh() -> None:
    edges = np.array([[0, 1], [1, 2], [0, 2], [4, 5]])  # 3 and 6 are isolated
    adjacency = np.zeros((7, 7))
    adjacency[tuple(edges.T)] = adjacency[tuple(edges.T[::-1])] = 1
    degree = adjacency.sum(axis=1)
    root = np.divide(1, np.sqrt(degree), out=np.zeros(7), where=degree > 0)
    np.testing.assert_allclose(dense(edges, voxels=7), -root[:, None] * adjacency * root, rtol=1e-6)
    assert not dense(np.empty((0, 2), int), voxels=3).any()


@pytest.mark.parametrize("reach", [1, 2, 3])
def test_convolution_equals_torch_geometrics(reach: int) -> None:
    from torch_geometric.nn import ChebConv

    edges = within(sheets(), np.random.default_rng(1).random(VOXELS) < 0.7)
    voxels = int(edges.max()) + 2
    ours = MeshCheb(edges=edges, voxels=voxels, channels=5, reach=reach)
    theirs = ChebConv(5, 5, K=reach + 1)
    with torch.no_grad():
        for layer, other in zip(ours.terms, theirs.lins, strict=True):
            other.weight.copy_(layer.weight)
        theirs.bias.copy_(ours.terms[0].bias)
    features = torch.randn(voxels, 5)
    both = torch.from_numpy(np.concatenate([edges, edges[:, ::-1]]).T.copy())
    wanted = theirs(features, both, lambda_max=torch.tensor(2.0))
    torch.testing.assert_close(ours(features[:, None])[:, 0], wanted)


def test_hemispheres_are_never_joined_and_isolated_voxels_count() -> None:
    edges = sheets()
    edges = edges[(edges != 0).all(axis=1)]  # voxel 0 has no neighbour left
    network = build_network(SECTION, voxels=VOXELS, outputs=3, wiring={MESH: edges}, seed=0).eval()
    seen = []
    network.read_out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    betas = torch.randn(1, VOXELS)
    for changed in (None, SIDE * SIDE - 1, 0):
        other = betas.clone()
        if changed is not None:
            other[0, changed] += 1
        network(other)
    left, right = slice(0, SIDE * SIDE), slice(SIDE * SIDE, None)
    torch.testing.assert_close(seen[1][:, right], seen[0][:, right], rtol=0, atol=0)
    moved = (seen[1] - seen[0])[0, left].abs() > 1e-7
    near = {SIDE * SIDE - 1 - step for step in (1, SIDE, SIDE + 1)}
    assert near <= set(torch.nonzero(moved)[:, 0].tolist())
    # Two convolutions of reach 2 go four edges far.
    assert not moved[: SIDE * (SIDE - 5)].any()
    alone = torch.nonzero((seen[2] - seen[0])[0].abs() > 1e-7)[:, 0].tolist()
    assert alone == [0]


def smooth_brain(*, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Betas of two sheets on which a target is a broad patch, in noise of single voxels."""
    draw = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij")
    patches = np.concatenate(
        [np.exp(-((x - a) ** 2 + (y - b) ** 2) / 6).ravel() for a, b in ((1, 1), (5, 5))]
    ).reshape(2, -1)
    encode = np.zeros((2, VOXELS))
    encode[0, : SIDE * SIDE], encode[1, SIDE * SIDE :] = patches
    targets = draw.standard_normal((rows, 2)).astype(np.float32)
    betas = targets @ encode + 1.5 * draw.standard_normal((rows, VOXELS))
    return betas.astype(np.float32), targets


def fitted(edges: np.ndarray | None, *, train: int = 200):  # type: ignore[no-untyped-def]
    betas, targets = smooth_brain(rows=train + 100, seed=0)
    rows, rest = np.arange(train), np.arange(train, train + 100)
    told = {"session": np.ones(train, int), "image_id": rows}
    examples = prepare(betas[rows], edges=edges, **told)
    validation = examples.like(betas[rest], session=np.ones(100, int), image_id=rest)
    task = gradient_task(
        examples,
        targets=targets[rows],
        validation=validation,
        validation_targets=targets[rest],
        section=SECTION,
    )
    model = task.build(seed=0)
    training = config.Training(epochs=15, patience=5, batch_size=32, lr=3e-3)
    for _ in fit_task(model, task=task, settings=training, seed=0):
        pass
    return task.finish(model)


def score(decoder) -> float:  # type: ignore[no-untyped-def]
    betas, targets = smooth_brain(rows=500, seed=7)
    told = {"session": np.ones(500, int), "image_id": np.arange(500)}
    found = decoder.predict(betas, **told).estimates
    return float(1 - ((found - targets) ** 2).mean() / targets.var())


def test_it_learns_and_gains_from_the_true_mesh() -> None:
    edges = sheets()
    shuffled = np.random.default_rng(3).permutation(VOXELS)[edges]
    true, permuted = score(fitted(edges)), score(fitted(shuffled))
    print(f"\\nR2 {true:.3f} with the mesh, {permuted:.3f} with the same mesh of shuffled voxels")
    assert true > 0.5
    assert true > permuted


def test_a_saved_decoder_has_the_same_graph(tmp_path) -> None:  # type: ignore[no-untyped-def]
    decoder = fitted(sheets(), train=40)
    again = load_decoder(decoder.save(tmp_path / "decoder"))
    np.testing.assert_array_equal(again.wiring[MESH], sheets())
    assert again.section == SECTION
    assert score(again) == score(decoder)


def test_without_a_mesh_the_remedy_is_told() -> None:
    with pytest.raises(InputError, match="choose roi_graph for volumes, or get the surface files"):
        wire(SECTION, examples=prepare(np.eye(4), session=np.ones(4, int), image_id=np.arange(4)))
