"""Ridge beside himalaya on the same card, and networks fed from the host and from the card."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raybrain import config
from raybrain.decoders.build import build_network
from raybrain.decoders.ridge import fit_ridge
from raybrain.decoders.wiring import propagation
from raybrain.training import fit, resident
from tests.benchmarks.gpu_machine import Size, fastest, most_memory, seconds
from tests.benchmarks.ridge_contestant import kernel_ridge_cv, problem

EPOCHS = 3
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
    "cnn_image": (config.CnnImage(), 1024, 10631, 6400, 256),
    "gcn": (config.Gcn(), 4096, 3 * 4308, 6400, 64),
}
"""Section, rows, voxels, outputs and rows of a batch."""
SMALL = ("residual_mlp", "gcn")
"""Those whose width is not fixed."""


def measure_ridge(size: Size, _folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield seconds and test R² of ridge, and how far the card's predictions are from the CPU's."""
    images, voxels, outputs = (size.of(full, full // 40) for full in (4000, 8000, 6400))
    betas, values, test_betas, test_values = problem(images=images, voxels=voxels, targets=outputs)
    alphas = np.logspace(-3, 3, 13)

    def scored(fit: Callable[[], Any], *, rounds: int) -> tuple[dict[str, float], Any]:
        fitted: list[Any] = []
        spent = [seconds(lambda: fitted.append(fit()), device=size.device) for _ in range(rounds)]
        predicted = fitted[-1].predict(test_betas)
        return {"seconds": min(spent), "r2": r2(predicted, test_values)}, predicted

    def ours(x: Any, y: Any, *, device: str | None) -> Any:
        return fit_ridge(x, targets=y, alphas=alphas, device=device)

    yield (
        "ours on the CPU",
        (found := scored(lambda: ours(betas, values, device=None), rounds=1))[0],
    )
    reference = found[1]
    on = str(size.device)
    held = [torch.from_numpy(one).to(size.device) for one in (betas, values)]
    for where, given in (("host", (betas, values)), ("card", held)):
        figures, predicted = scored(lambda given=given: ours(*given, device=on), rounds=4)
        far = np.linalg.norm(predicted - reference) / np.linalg.norm(reference)
        yield f"ours, data on the {where}", {**figures, "distance from the CPU's": float(far)}
    yield "himalaya KernelRidgeCV", of_himalaya(held, test_betas, test_values, size=size)
    many = torch.randn(images, size.of(59136, 600), device=size.device)
    spent = fastest(lambda: ours(held[0], many, device=on), device=size.device, rounds=1)
    yield (
        f"ours, {many.shape[1]} targets",
        {"seconds": spent, "gigabytes": most_memory(size.device)},
    )


def r2(predicted: np.ndarray, values: np.ndarray) -> float:
    """Return the mean over targets."""
    error = ((predicted - values) ** 2).mean(axis=0)
    return float((1 - error / values.var(axis=0)).mean())


def of_himalaya(
    held: list[Any], test_betas: np.ndarray, test_values: np.ndarray, *, size: Size
) -> dict[str, float]:
    """Return seconds and test R² of the field's ridge by kernels on the same device."""
    from himalaya.backend import set_backend

    backend = set_backend("torch_cuda" if size.device.type == "cuda" else "torch")
    try:
        alphas = np.logspace(-3, 3, 13)
        spent = fastest(lambda: kernel_ridge_cv(*held, alphas), device=size.device)
        fitted = kernel_ridge_cv(*held, alphas)
        predicted = backend.to_numpy(fitted.predict(torch.from_numpy(test_betas).to(size.device)))
    finally:
        set_backend("numpy")
    return {"seconds": spent, "r2": r2(predicted, test_values)}


def measure_training(size: Size, _folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield rows a second of every network, every way."""
    for name in size.of(tuple(NETWORKS), SMALL):
        section, *sizes = NETWORKS[name]
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
