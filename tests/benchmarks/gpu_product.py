"""The product's own commands on the card, with a worker killed midway: what a lab would see."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from raybrain import config, outputs, store
from tests.benchmarks.gpu_drawing import HOW, IMAGES, SAMPLES, write_checkpoint
from tests.benchmarks.gpu_machine import Size
from tests.processes import children
from tests.small_run import SIMULATED

TEST_IMAGES = 80
STIMULI_AT_A_TIME = 64


def measure(size: Size, folder: Path) -> Iterator[tuple[str, Any]]:
    """Run simulate to evaluate, and yield what was said, when, and how fast units came."""
    checkpoint = write_checkpoint(folder / "generator", size=size)
    file = folder / "card.yaml"
    file.write_text(yaml.safe_dump(experiment(size, checkpoint=checkpoint, folder=folder)))
    chosen = config.load(file, (), schema=config.Experiment)
    said, code, killed = run(file, chosen, size=size)
    yield "said", said
    yield "exit status", code
    yield "worker killed after", killed
    yield "features", of_units(outputs.features(chosen).folder, "latents", rows=STIMULI_AT_A_TIME)
    drawn = outputs.reconstructions(chosen).folder
    yield "drawn through the pool", of_units(drawn, "system", rows=IMAGES * SAMPLES)
    yield "compiled", store.attributes_of(drawn).get("compiled")


def experiment(size: Size, *, checkpoint: Path, folder: Path) -> dict[str, Any]:
    gpus = int(size.device.type == "cuda")
    simulation: Any = {"test_images": TEST_IMAGES, "image_size": 425}
    return {
        **SIMULATED,
        "name": "card",
        "workspace": str(folder / "workspace"),
        "simulation": size.of(simulation, SIMULATED["simulation"]),
        "generator": {"checkpoint": str(checkpoint), "compile": True},
        "features": {"tokens": 4},
        "decode": {
            "latents": {"rois": ["early"], "decoder": {"kind": "ridge"}},
            "prompt_embeds": {
                "rois": ["early", "ventral"],
                "decoder": {"kind": "residual_mlp", "width": size.of(1024, 16)},
            },
        },
        "training": {"epochs": size.of(20, 2), "batch_size": size.of(256, 16)},
        "reconstruct": {
            "steps": size.of(HOW.steps, 4),
            "strength": HOW.strength,
            "guidance": HOW.guidance,
            "samples": SAMPLES,
            "images_per_unit": IMAGES,
            "references": [],
        },
        "evaluate": {"bootstrap": 200},
        "resources": {
            # Ridge is solved on the card as well: a plain task holds a little of it.
            "tasks": {"max": max(1, (os.cpu_count() or 2) - 2 * gpus), "gpus": 0.05 * gpus},
            "train": {"gpus": 0.9 * gpus},
            "generate": {"gpus": 0.9 * gpus, "cpus": size.of(4, 1)},
        },
        "tracking": {"pictures": 0},
    }


def run(
    file: Path, chosen: config.Experiment, *, size: Size
) -> tuple[list[tuple[float, str]], int, int]:
    """Return the command's lines with their seconds, its status, and the units before the kill."""
    process = subprocess.Popen(
        [sys.executable, "-m", "raybrain.cli", "run", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    started = time.perf_counter()
    killed: list[int] = []
    after = size.of(8, 1)
    watch = threading.Thread(
        target=_kill_a_worker, args=(process, chosen, after, killed), daemon=True
    )
    watch.start()
    assert process.stdout is not None
    said = []
    try:
        for line in process.stdout:
            said.append((round(time.perf_counter() - started, 1), line.rstrip()[-200:]))
            print(*said[-1], flush=True)
        return said, process.wait(), killed[0] if killed else 0
    finally:
        if process.poll() is None:  # it would go on without this script
            os.killpg(process.pid, signal.SIGKILL)


def _kill_a_worker(
    process: subprocess.Popen[str], chosen: config.Experiment, after: int, killed: list[int]
) -> None:
    folder = Path(outputs.reconstructions(chosen).folder)
    while process.poll() is None:
        time.sleep(0.05)
        written = len(list(folder.glob("system/c/*/0/0/0/0")))
        if written < after:
            continue
        for worker in children(process, begins="ray::MapWorker"):
            killed.append(written)
            worker.kill()
            return


def of_units(folder: str, name: str, *, rows: int) -> dict[str, Any]:
    """Return how fast units of so many rows were written, by the times of their files.

    The median leaves out the wait for a worker that was killed, and the last unit, which may be
    smaller.
    """
    files = sorted(path for path in Path(folder, name, "c").rglob("*") if path.is_file())
    times = sorted(path.stat().st_mtime for path in files)
    waits = np.diff(times)
    if not len(waits):
        return {"units": len(times)}
    return {
        "units": len(times),
        "median seconds of a unit": float(np.median(waits)),
        "longest wait": float(waits.max()),
        "rows a second": rows * len(waits[:-1]) / float(times[-2] - times[0])
        if len(waits) > 1
        else None,
        "rows a second, by the median": rows / float(np.median(waits)),
    }
