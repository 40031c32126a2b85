"""Ridge beside himalaya on the same card, and networks fed from the host and from the card."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raybrain import config
from raybrain.decoders.build import build_network
from raybrain.decoders.wiring import propagation
from raybrain.training import fit, resident
from tests.benchmarks.gpu_machine import Size, most_memory

EPOCHS = 4
WAYS = (
    ("host", "float32", False),
    ("host", "bfloat16", False),
    ("ahead", "float32", False),
    ("resident", "float32", False),
    ("resident", "bfloat16", False),
    ("resident", "float32", True),
    ("resident", "bfloat16", True),
)
"""Where rows are, precision, and whether a step is replayed; the first is how it was at first."""
NETWORKS: dict[str, tuple[Any, int, int, int, int]] = {
    "residual_mlp": (config.ResidualMLP(width=1024), 8000, 8000, 2048, 256),
    "residual_mlp as by default": (config.ResidualMLP(), 8000, 15000, 6400, 128),
    "vae": (config.Vae(), 8000, 10631, 6400, 256),
    "cnn_image": (config.CnnImage(), 2048, 10631, 6400, 256),
    "gcn": (config.Gcn(), 4096, 3 * 4308, 6400, 64),
}
"""Section, rows, voxels, outputs and rows of a batch."""


def measure_ridge(size: Size, _folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield seconds and R² of ridge on the card."""
    yield from ()


def measure_training(size: Size, _folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield rows a second of every network, every way."""
    for name, (section, *sizes) in NETWORKS.items():
        rows, voxels, outputs, batch = (size.of(one, max(6, one // 200)) for one in sizes)
        voxels -= voxels % 3
        draw = np.random.default_rng(0)
        inputs = draw.standard_normal((rows, voxels), np.float32)
        targets = draw.standard_normal((rows, outputs), np.float32)
        wiring = {
            "order": np.arange(voxels),
            "nodes": np.arange(voxels).reshape(3, -1),
            "propagation": propagation(
                np.array([[0, 0, 1], [1, 2, 2]]), weight=np.array([0.9, 0.7, 0.8]), nodes=3
            ),
        }
        for way, precision, replay in WAYS:
            network = build_network(
                section, voxels=voxels, outputs=outputs, wiring=wiring, seed=0
            ).to(size.device)
            settings = config.Training(
                epochs=EPOCHS, patience=EPOCHS, batch_size=batch, precision=precision, replay=replay
            )
            epochs = list(
                fit(
                    network,
                    train=resident(inputs, targets=targets),
                    validation=resident(inputs[:64], targets=targets[:64]),
                    settings=settings,
                    seed=0,
                    way=way,
                )
            )
            how = f"{name}, {way}, {precision}{', replayed' if replay else ''}"
            yield (
                how,
                {
                    "rows a second": max(epoch.rows_per_second for epoch in epochs),
                    "losses": [round(epoch.train_loss, 6) for epoch in epochs],
                    "gigabytes": most_memory(size.device),
                },
            )
            del network
            if size.device.type == "cuda":
                torch.cuda.empty_cache()
