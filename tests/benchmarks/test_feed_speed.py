"""Training from a store on disk beside training from tensors in memory."""

import numpy as np
import pytest
import torch
import zarr

from raybrain import config
from raybrain.decoders.build import build_network
from raybrain.training import Batch, fit, resident, streamed

pytestmark = pytest.mark.benchmark
EPOCHS = 4


def test_a_streamed_epoch_takes_no_longer_than_a_resident_one(scale, tmp_path):
    chunk, chunks, voxels, outputs = 250, scale(32, least=4), scale(8000), scale(2048)
    rows = chunk * chunks
    draw = np.random.default_rng(0)
    group = zarr.open_group(tmp_path / "store.zarr", mode="w")
    betas = group.create_array(
        "betas", shape=(rows, voxels), chunks=(chunk, voxels), dtype="float16", compressors=None
    )
    targets = group.create_array(
        "targets", shape=(rows, outputs), chunks=(chunk, outputs), dtype="float16", compressors=None
    )
    for start in range(0, rows, chunk):
        betas[start : start + chunk] = draw.standard_normal((chunk, voxels))
        targets[start : start + chunk] = draw.standard_normal((chunk, outputs))

    def read(number):
        part = slice(number * chunk, (number + 1) * chunk)
        return Batch(
            torch.from_numpy(betas[part].astype(np.float32)),
            torch.from_numpy(targets[part].astype(np.float32)),
            torch.ones(chunk),
        )

    memory = resident(betas[:].astype(np.float32), targets=targets[:].astype(np.float32))
    disk = streamed(read, sizes=[chunk] * chunks, row_bytes=4 * (voxels + outputs), memory=2**29)
    section = config.ResidualMLP(width=1024)
    settings = config.Training(epochs=EPOCHS, patience=EPOCHS, batch_size=256)
    speed = {}
    for name, feed in (("memory", memory), ("disk", disk)):
        network = build_network(section, voxels=voxels, outputs=outputs, wiring={}, seed=0)
        few = resident(memory.inputs[:64].numpy(), targets=memory.targets[:64].numpy())
        epochs = fit(network, train=feed, validation=few, settings=settings, seed=0)
        speed[name] = max(epoch.rows_per_second for epoch in epochs)
    ratio = speed["disk"] / speed["memory"]
    print(f"\nrows/s: memory {speed['memory']:.0f}, disk {speed['disk']:.0f}")
    scale.claim(ratio >= 0.95, f"{ratio:.3f} of the speed of resident rows (goal .95)")


def test_a_gpu_trains_faster_from_rows_that_lie_there(scale):
    gpu = torch.cuda.is_available()
    if scale.full and not gpu:
        pytest.skip("compares the ways to a GPU")
    rows, voxels, outputs = scale(8000, least=64), scale(8000), scale(2048)
    draw = np.random.default_rng(0)
    inputs = draw.standard_normal((rows, voxels), np.float32)
    targets = draw.standard_normal((rows, outputs), np.float32)
    feed, few = resident(inputs, targets=targets), resident(inputs[:64], targets=targets[:64])
    settings = config.Training(epochs=EPOCHS, patience=EPOCHS, batch_size=256)
    ways = [(way, "float32", False) for way in ("host", "ahead", "resident")]
    ways += [("resident", "bfloat16", False), ("resident", "float32", True), ("auto", "auto", True)]
    speed = {}
    for way, precision, replay in ways:
        network = build_network(
            config.ResidualMLP(width=1024), voxels=voxels, outputs=outputs, wiring={}, seed=0
        ).to("cuda" if gpu else "cpu")
        chosen = settings.model_copy(update={"precision": precision, "replay": replay})
        epochs = fit(network, train=feed, validation=few, settings=chosen, seed=0, way=way)
        name = f"{way} {precision}{' replayed' if replay else ''}"
        speed[name] = max(epoch.rows_per_second for epoch in epochs)
    print("\nrows/s: " + ", ".join(f"{name} {found:.0f}" for name, found in speed.items()))
    ratio = speed["resident float32"] / speed["host float32"]
    scale.claim(ratio >= 1.7, f"{ratio:.2f} times the speed of a feed on the host (goal 1.7)")
