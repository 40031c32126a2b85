"""The four published decoders: shapes, parameters, sharing and graph, against hand values."""

import numpy as np
import pytest
import torch
from torch import nn

from raybrain import config
from raybrain.config import InputError
from raybrain.decoders import prepare
from raybrain.decoders.build import build_network
from raybrain.decoders.published import CnnImage, CnnText, Gcn, Vae
from raybrain.decoders.wiring import chebyshev, propagation, published_edges, wire

EARLY, VENTRAL = 10_631, 7_604  # voxels of NSD subj01 in the paper
LATENTS, TOKENS = 4 * 40 * 40, 14 * 768


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def shapes(network):
    return {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}


def test_cnn_text_is_as_published():
    with torch.device("meta"):
        network = CnnText(order=np.arange(VENTRAL), outputs=TOKENS)
    convolutions = 128 + 3 * (64 * 64 * 7 + 64) + 65
    perceptron = (VENTRAL + 1) * 1024 + 1025 * 2048 + 2049 * TOKENS
    assert parameters(network) == convolutions + perceptron == 32_003_969
    found = shapes(network)
    assert found["enter.weight"] == (64, 1, 1)
    assert [found[f"block.{at}.weight"] for at in (0, 2, 4)] == [(64, 64, 7)] * 3
    assert found["leave.weight"] == (1, 64, 1)
    assert [type(layer) for layer in network.block] == [nn.Conv1d, nn.ReLU] * 2 + [nn.Conv1d]
    assert all(layer.padding == (3,) for layer in network.block[::2])
    assert network.repeats == 3


def test_cnn_image_is_as_published():
    with torch.device("meta"):
        network = CnnImage(order=np.arange(EARLY), outputs=LATENTS)
    convolutions = 128 + 2 * (64 * 64 * 11 + 64) + 65
    perceptron = (EARLY + 1) * 512 + 513 * 512 + 513 * LATENTS
    assert parameters(network) == convolutions + perceptron == 9_079_873
    assert [type(layer) for layer in network.block] == [nn.Conv1d, nn.ReLU] * 2
    assert all(layer.padding == (5,) for layer in network.block[::2])
    assert network.repeats == 2


@pytest.mark.parametrize(("cls", "repeats"), [(CnnText, 3), (CnnImage, 2)])
def test_residual_passes_share_one_block(cls, repeats):
    torch.manual_seed(0)
    network = cls(order=np.arange(50), outputs=5)
    calls = []
    network.block.register_forward_hook(lambda *_: calls.append(1))
    betas = torch.randn(4, 50)
    hidden = network.enter(betas[:, None])
    for _ in range(repeats):
        hidden = hidden + network.block(hidden)
    expected = network.perceptron(network.leave(hidden)[:, 0])
    calls.clear()
    torch.testing.assert_close(network(betas), expected)
    assert len(calls) == repeats


def test_an_order_of_voxels_is_applied_before_the_convolutions():
    torch.manual_seed(0)
    order = np.random.default_rng(0).permutation(50)
    plain, ordered = (CnnText(order=o, outputs=5) for o in (np.arange(50), order))
    ordered.load_state_dict(plain.state_dict())
    betas = torch.randn(4, 50)
    torch.testing.assert_close(ordered(betas), plain(betas[:, order]))
    assert not torch.allclose(ordered(betas), plain(betas))


@pytest.mark.parametrize(("share", "expected"), [(True, 95_435_911), (False, 112_225_415)])
def test_vae_is_as_published(share, expected):
    with torch.device("meta"):
        network = Vae(voxels=EARLY, outputs=LATENTS, share_middle=share)
    encoder = (EARLY + 1) * 512 + 513 * 256 + 2 * 257 * LATENTS
    normalisation = 2 * 4096
    layers = (LATENTS + 1) * 4096 + normalisation
    layers += (1 if share else 2) * (4097 * 4096 + normalisation)
    assert parameters(network) == encoder + layers + 4097 * EARLY == expected
    assert (network.decoder[1] is network.decoder[2]) == share
    kinds = [type(layer) for layer in network.decoder[0]]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.LeakyReLU]


def test_vae_learns_from_a_sample_and_its_betas_and_predicts_the_mean():
    torch.manual_seed(0)
    network = Vae(voxels=12, outputs=5, share_middle=True)
    betas = torch.randn(6, 12)
    torch.manual_seed(1)
    sample, error = network(betas)
    torch.manual_seed(1)
    hidden = network.encoder(betas)
    mean, log_variance = network.mean(hidden), network.log_variance(hidden)
    expected = mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
    torch.testing.assert_close(sample, expected)
    torch.testing.assert_close(error, ((network.decoder(expected) - betas) ** 2).mean(dim=1))
    assert error.shape == (6,)
    network.eval()
    torch.testing.assert_close(network(betas), network.mean(network.encoder(betas)))


def graph(nodes=3, width=20):
    correlation = np.array([[0, 0.9, 0.6], [0.9, 0, 0.7], [0.6, 0.7, 0]])[:nodes, :nodes]
    edges = published_edges(correlation, threshold=0.5)
    members = np.arange(nodes * width).reshape(nodes, width)
    return members, edges, correlation[tuple(edges)]


def test_gcn_is_as_published():
    widest = 4_308
    members, edges, weight = graph(width=widest)
    step = propagation(edges, weight=weight, nodes=3)
    with torch.device("meta"):
        network = Gcn(nodes=members, propagation=step, outputs=LATENTS)
    convolutions = 4 * widest * 512 + 512 + 3 * 512 * 512 + 512 + 2 * 512
    head = 32 + (16 * 16 * 3 + 16) + 17 + 513 * 1024 + 1025 * LATENTS
    assert parameters(network) == convolutions + head == 16_697_409
    assert network.first.basis.shape == (4, 3, 3)
    assert network.second.basis.shape == (3, 3, 3)


def test_edges_join_what_correlates_from_first_to_last_only():
    correlation = np.zeros((4, 4))
    for i, j, r in [(0, 1, 0.51), (0, 3, -0.8), (1, 2, 0.5), (2, 3, 0.49)]:
        correlation[i, j] = correlation[j, i] = r
    edges = published_edges(correlation, threshold=0.5)
    assert edges.tolist() == [[0, 0], [1, 3]]
    assert published_edges(graph()[2].max() * np.eye(3), threshold=0.1).shape == (2, 0)


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("order", [1, 2, 4])
def test_a_chebyshev_layer_is_that_of_torch_geometric(order, at_once):
    from torch_geometric.nn import ChebConv

    from raybrain.decoders.published import DenseCheb

    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    edges = np.stack(np.nonzero(draw.random((5, 5)) < 0.5))
    edges = edges[:, edges[0] != edges[1]]
    weight = draw.random(edges.shape[1]) + 0.1
    reference = ChebConv(7, 6, K=order)
    nn.init.normal_(reference.bias)
    layer = DenseCheb(
        inputs=7, outputs=6, propagation=propagation(edges, weight=weight, nodes=5), order=order
    )
    with torch.no_grad():
        layer.weight.copy_(torch.cat([term.weight.T for term in reference.lins], dim=1))
        layer.bias.copy_(reference.bias)
    layer.mixes_at_once = at_once
    features = torch.randn(3, 5, 7)
    expected = torch.stack(
        [
            reference(one, torch.from_numpy(edges), torch.from_numpy(weight).float())
            for one in features
        ]
    )
    torch.testing.assert_close(layer(features), expected, atol=1e-5, rtol=1e-4)


def test_mixing_nodes_and_terms_in_one_product_changes_nothing_but_rounding():
    members, edges, weight = graph()
    torch.manual_seed(0)
    network = Gcn(
        nodes=members, propagation=propagation(edges, weight=weight, nodes=3), outputs=5
    ).double()
    betas = torch.randn(8, members.size, dtype=torch.float64)
    found = {}
    for at_once in (False, True):
        network.first.mixes_at_once = network.second.mixes_at_once = at_once
        network.zero_grad()
        output = network(betas)
        (output**2).sum().backward()
        gradients = [parameter.grad.clone() for parameter in network.parameters()]
        found[at_once] = [output.detach(), *gradients]
    for one, other in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-12)


def test_chebyshev_polynomials_follow_their_recurrence():
    matrix = np.diag(np.float32([0.3, -0.9, 1.0]))
    terms = chebyshev(matrix, order=4)
    x = np.diag(matrix)
    expected = [x**0, x, 2 * x**2 - 1, 4 * x**3 - 3 * x]
    np.testing.assert_allclose([np.diag(term) for term in terms], expected, atol=1e-6)


def examples(voxels=40, rows=60, rois=("V1", "V2", "V3", "hV4")):
    draw = np.random.default_rng(0)
    common = draw.standard_normal((rows, 1))
    betas = (common + 0.5 * draw.standard_normal((rows, voxels))).astype(np.float32)
    betas[:, 30:] = draw.standard_normal((rows, voxels - 30))  # hV4 goes its own way
    edges = dict(
        zip(["V1", "V2", "V3", "hV4"], [(0, 15), (15, 25), (25, 30), (30, 40)], strict=True)
    )
    masks = {name: np.isin(np.arange(voxels), np.arange(*edges[name])) for name in rois}
    return prepare(
        betas,
        session=np.ones(rows, int),
        image_id=np.arange(rows),
        rois=masks,
        xyz=draw.integers(0, 9, (voxels, 3)),
        edges=np.stack([np.arange(voxels - 1), np.arange(1, voxels)], axis=1),
    )


def test_wiring_pads_nodes_to_the_largest_and_joins_v3_with_v4():
    found = wire(config.Gcn(), examples=examples())
    assert found["nodes"].shape == (3, 15)
    assert found["nodes"][2].tolist() == list(range(25, 40))
    assert found["nodes"][1].tolist() == [*range(15, 25), *[-1] * 5]
    assert found["edges"].tolist()[0][0] == 0
    signals = np.stack([examples().betas[:, row[row >= 0]].mean(axis=1) for row in found["nodes"]])
    r = np.corrcoef(signals)
    joined = {(i, j) for i in range(3) for j in range(i + 1, 3) if abs(r[i, j]) > 0.5}
    assert set(map(tuple, found["edges"].T.tolist())) == joined


def test_padded_voxels_have_no_effect():
    wiring = wire(config.Gcn(), examples=examples())
    network = build_network(config.Gcn(), voxels=40, outputs=3, wiring=wiring, seed=0).eval()
    betas = torch.randn(2, 40)
    features = torch.zeros(2, 3, 15)
    features[:, 0], features[:, 1, :10], features[:, 2] = (
        betas[:, :15],
        betas[:, 15:25],
        betas[:, 25:],
    )
    seen = []
    network.first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(betas)
    torch.testing.assert_close(seen[0], features)


def test_missing_and_empty_rois_say_what_to_write():
    with pytest.raises(InputError, match=r"hV4 is missing: write rois: \[V1, V2, V3, hV4\]"):
        wire(config.Gcn(), examples=examples(rois=("V1", "V2", "V3")))
    with pytest.raises(InputError, match="roi_graph' needs two or more ROIs"):
        wire(config.RoiGraph(), examples=examples(rois=("V1",)))


SECTIONS = [
    config.ResidualMLP(width=16),
    config.CnnText(order="hilbert"),
    config.CnnImage(order="permuted"),
    config.Vae(),
    config.Gcn(),
    config.RoiGraph(width=16),
    config.RoiGraph(width=16, read_out="sum"),
    config.MeshGcn(width=16),
]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.kind)
def test_every_network_learns_every_parameter_and_depends_on_the_seed_alone(section):
    wiring = wire(section, examples=examples())
    build = {"voxels": 40, "outputs": 6, "wiring": wiring}
    network = build_network(section, seed=1, **build)
    same, other = build_network(section, seed=1, **build), build_network(section, seed=2, **build)
    weights = [torch.cat([p.flatten() for p in n.parameters()]) for n in (network, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    output = network(torch.randn(5, 40))
    loss = sum(part.sum() for part in output) if isinstance(output, tuple) else (output**2).sum()
    loss.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert network.eval()(torch.randn(5, 40)).shape == (5, 6)


def test_attention_shares_sum_to_one_and_the_graph_carries_signals():
    from raybrain.decoders.roi_graph import RoiGraph

    nodes = np.array([[0, 1, 2], [3, 4, -1], [5, -1, -1]])
    adjacency = np.float32([[0, 1, 0], [1, 0, 0], [0, 0, 0]])
    build = {"nodes": nodes, "outputs": 2, "width": 8, "depth": 1, "dropout": 0.0}
    network = RoiGraph(adjacency=adjacency, read_out="sum", **build).eval()
    hidden = []
    network.leave.register_forward_pre_hook(lambda _, inputs: None)
    network.convolutions[0].register_forward_hook(lambda _, __, out: hidden.append(out))
    betas = torch.randn(1, 6)
    changed = betas.clone()
    changed[0, 5] += 1.0  # the third ROI, which no edge joins
    network(betas)
    network(changed)
    torch.testing.assert_close(hidden[0][:, :2], hidden[1][:, :2])
    assert not torch.allclose(hidden[0][:, 2], hidden[1][:, 2])
    changed = betas.clone()
    changed[0, 3] += 1.0  # the second, joined to the first
    network(changed)
    assert not torch.allclose(hidden[0][:, 0], hidden[2][:, 0])
