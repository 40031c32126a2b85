"""Ridge beside himalaya on the same card, and networks fed from the host and from the card."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.gpu_machine import Size


def measure_ridge(size: Size, _folder: Path) -> Iterator[tuple[str, Any]]:
    yield from ()


def measure_training(size: Size, _folder: Path) -> Iterator[tuple[str, Any]]:
    yield from ()
