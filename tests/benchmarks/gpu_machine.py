"""What a card is, what it can do at most, and how long work on it takes."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

PACKAGES = ("torch", "diffusers", "transformers", "torch-geometric", "ray", "himalaya", "triton")


@dataclass(frozen=True)
class Size:
    """How much is measured: all of it on a card, little of it where only the script is tried."""

    small: bool
    device: torch.device

    def of(self, full: Any, small: Any) -> Any:
        """Return a size."""
        return small if self.small else full


def about(device: torch.device) -> dict[str, Any]:
    """Return what the figures are of."""
    found: dict[str, Any] = {
        "device": "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    if device.type == "cuda":
        found["gigabytes"] = torch.cuda.get_device_properties(device).total_memory / 2**30
    return found


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def peak(size: Size) -> dict[str, float]:
    """Return the rate of a large product of matrices, and of a copy within the card's memory."""
    side = size.of(8192, 256)
    half = torch.float16 if size.device.type == "cuda" else torch.bfloat16
    one, other = (torch.randn(side, side, device=size.device, dtype=half) for _ in range(2))
    seconds = fastest(lambda: one @ other, device=size.device, rounds=10)
    source = torch.randn(size.of(2**30, 2**20), device=size.device)
    target = torch.empty_like(source)
    copied = fastest(lambda: target.copy_(source), device=size.device, rounds=5)
    return {
        "matmul_tflops": 2 * side**3 / seconds / 1e12,
        "copy_terabytes_per_second": 2 * source.nbytes / copied / 1e12,
    }


def fastest(work: Callable[[], object], *, device: torch.device, rounds: int = 3) -> float:
    """Return the least seconds of ``work``, after once that warms up."""
    work()
    return min(seconds(work, device=device) for _ in range(rounds))


def seconds(work: Callable[[], object], *, device: torch.device) -> float:
    """Return the seconds of ``work``, all that it set off on the device included."""
    wait_for(device)
    started = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - started


def wait_for(device: torch.device) -> None:
    """Wait until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def most_memory(device: torch.device) -> float | None:
    """Return the most gigabytes that tensors took since the last call; None on a CPU."""
    if device.type == "cpu":
        return None
    found = torch.cuda.max_memory_allocated(device) / 2**30
    torch.cuda.reset_peak_memory_stats(device)
    return found
