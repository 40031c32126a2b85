"""The published networks beside the loops that their authors, or anyone, would write."""

import time

import numpy as np
import pytest
import torch
from torch import nn

from raybrain import config
from raybrain.decoders.build import build_network
from raybrain.decoders.wiring import propagation
from raybrain.training import fit, resident

pytestmark = pytest.mark.benchmark
EPOCHS = 3


class PlainGcn(nn.Module):
    """The graph decoder over torch_geometric's batches of one graph per trial."""

    def __init__(self, *, width, outputs):
        from torch_geometric.nn import ChebConv

        super().__init__()
        self.first, self.second = ChebConv(width, 512, K=4), ChebConv(512, 512, K=3)
        self.normalise = nn.BatchNorm1d(512)
        self.enter = nn.Sequential(nn.Conv1d(1, 16, 1), nn.LeakyReLU())
        self.block = nn.Sequential(nn.Conv1d(16, 16, 3, padding=1), nn.LeakyReLU())
        self.leave = nn.Conv1d(16, 1, 1)
        self.perceptron = nn.Sequential(
            nn.Linear(512, 1024), nn.LeakyReLU(), nn.Linear(1024, outputs)
        )

    def forward(self, data):
        from torch_geometric.nn import global_mean_pool

        hidden = torch.relu(self.first(data.x, data.edge_index, data.edge_attr))
        change = self.normalise(self.second(hidden, data.edge_index, data.edge_attr))
        hidden = global_mean_pool(hidden + nn.functional.leaky_relu(change), data.batch)
        hidden = self.enter(hidden[:, None])
        for _ in range(2):
            hidden = hidden + self.block(hidden)
        return self.perceptron(self.leave(hidden)[:, 0])

    def load(self, ours):
        state = ours.state_dict()
        for name, layer in (("first", self.first), ("second", self.second)):
            terms = state.pop(f"{name}.weight").chunk(len(layer.lins), dim=1)
            for number, term in enumerate(terms):
                state[f"{name}.lins.{number}.weight"] = term.T
        self.load_state_dict(state)


def arrays(*, rows, voxels, outputs):
    draw = np.random.default_rng(0)
    betas = draw.standard_normal((rows, voxels), np.float32)
    mix = draw.standard_normal((voxels, outputs), np.float32) / np.sqrt(voxels, dtype=np.float32)
    return betas, betas @ mix


SETTINGS = config.Training(
    epochs=EPOCHS, patience=EPOCHS, batch_size=64, lr=1e-3, weight_decay=0.0,
    schedule="constant", gradient_clip=None,
)  # fmt: skip


def ours(network, betas, targets, *, settings=SETTINGS, seed=0):
    """Return seconds of the fastest epoch and the last validation loss on the training rows."""
    feed = resident(betas, targets=targets)
    seconds, loss = [], None
    for epoch in fit(network, train=feed, validation=feed, settings=settings, seed=seed):
        seconds.append(len(betas) / epoch.rows_per_second)
        loss = epoch.validation_loss
    return min(seconds), loss


def test_graphs_without_collation_are_faster(scale):
    from torch_geometric.data import Data
    from torch_geometric.loader import DataLoader

    width, outputs, rows = scale(4308), scale(6400), scale(1920, least=128)
    betas, targets = arrays(rows=rows, voxels=3 * width, outputs=outputs)
    edges, weight = np.array([[0, 0, 1], [1, 2, 2]]), np.array([0.9, 0.7, 0.8])
    wiring = {
        "nodes": np.arange(3 * width).reshape(3, width),
        "propagation": propagation(edges, weight=weight, nodes=3),
    }
    build = {"voxels": 3 * width, "outputs": outputs, "wiring": wiring, "seed": 0}
    network = build_network(config.Gcn(), **build)
    plain = PlainGcn(width=width, outputs=outputs)
    plain.load(network)

    graphs = [
        Data(
            x=torch.from_numpy(row.reshape(3, width)),
            edge_index=torch.from_numpy(edges),
            edge_attr=torch.from_numpy(weight).float(),
            y=torch.from_numpy(target),
        )
        for row, target in zip(betas, targets, strict=True)
    ]
    torch.manual_seed(0)
    loader = DataLoader(graphs, batch_size=64, shuffle=True)
    optimiser = torch.optim.Adam(plain.parameters(), lr=1e-3)
    seconds, collating = [], []
    for _ in range(EPOCHS):
        plain.train()
        start = time.perf_counter()
        for batch in loader:
            wanted = batch.y.view(-1, outputs)
            loss = ((plain(batch) - wanted) ** 2).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
        for _ in loader:
            pass
        collating.append(time.perf_counter() - start)
    plain.eval()
    with torch.no_grad():
        errors = [
            ((plain(b) - b.y.view(-1, outputs)) ** 2).mean().item() * b.num_graphs
            for b in DataLoader(graphs, batch_size=64)
        ]
    reference = sum(errors) / rows

    exact, loss = ours(network, betas, targets)
    rough_settings = SETTINGS.model_copy(update={"precision": "bfloat16"})
    rough, rough_loss = ours(
        build_network(config.Gcn(), **build), betas, targets, settings=rough_settings
    )
    print(
        f"\nepoch of {rows} trials: torch_geometric {min(seconds):.2f} s (of which collation "
        f"{min(collating):.2f} s), float32 {exact:.2f} s, bfloat16 {rough:.2f} s; "
        f"loss {reference:.4f}, {loss:.4f}, {rough_loss:.4f}"
    )
    print(
        f"left to gain where the network itself takes no time, as on a GPU: collation of "
        f"{1000 * min(collating) / rows:.2f} ms a trial would be all of its epoch"
    )
    scale.claim(min(seconds) / exact >= 1.3, f"{min(seconds) / exact:.2f} times as fast in float32")
    scale.claim(min(seconds) / rough >= 2.0, f"{min(seconds) / rough:.2f} times in bfloat16")
    scale.claim(abs(loss / reference - 1) < 0.05, "the same validation loss in float32")
    scale.claim(abs(rough_loss / reference - 1) < 0.05, "the same validation loss in bfloat16")


@pytest.mark.parametrize(
    ("section", "rows", "voxels", "outputs", "batch"),
    [
        (config.CnnText(), 64, 7604, 10752, 16),
        (config.CnnImage(), 256, 10631, 6400, 256),
        (config.Vae(), 1024, 10631, 6400, 256),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_the_loop_costs_no_more_than_a_plain_one(scale, section, rows, voxels, outputs, batch):
    rows, voxels, outputs = scale(rows, least=32), scale(voxels), scale(outputs)
    wiring = {"order": np.arange(voxels)}
    build = {"voxels": voxels, "outputs": outputs, "wiring": wiring, "seed": 0}
    betas, targets = arrays(rows=rows, voxels=voxels, outputs=outputs)
    plain = build_network(section, **build)
    optimiser = torch.optim.Adam(plain.parameters(), lr=1e-3)
    inputs, wanted = torch.from_numpy(betas), torch.from_numpy(targets)
    seconds = []
    for _ in range(EPOCHS):
        plain.train()
        start = time.perf_counter()
        for chosen in torch.randperm(rows).split(batch):
            output = plain(inputs[chosen])
            sample, further = output if isinstance(output, tuple) else (output, torch.zeros(()))
            loss = ((sample - wanted[chosen]) ** 2).mean() + further.mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        seconds.append(time.perf_counter() - start)
    settings = SETTINGS.model_copy(update={"batch_size": batch})
    mine, _ = ours(build_network(section, **build), betas, targets, settings=settings)
    ratio = min(seconds) / mine
    print(f"\n{section.kind}: plain {min(seconds):.2f} s, here {mine:.2f} s an epoch")
    scale.claim(ratio >= 0.97, f"{ratio:.2f} times as fast as a plain loop (3 % for the clock)")
