"""Everything that is said of GPUs, measured on one card in at most eight minutes.

``python -m tests.benchmarks.gpu RESULT.json`` from the root of the project. The figures are written
one by one; a part that fails says why, and the next one begins. ``--parts`` chooses some of
them, ``--small`` takes small sizes, for which a CPU does: the script is tested that way.

``--parts settings`` is not among them unless asked for, as it takes some six minutes more: the
settings that draw faster, each beside the default.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks import gpu_drawing, gpu_fitting, gpu_product
from tests.benchmarks.gpu_machine import Size, about, peak

Part = Callable[[Size, Path], Iterator[tuple[str, Any]]]


def of_machine(size: Size, _folder: Path) -> Iterator[tuple[str, Any]]:
    yield "about", about(size.device)
    yield "peak", peak(size)


PARTS: dict[str, Part] = {
    "machine": of_machine,
    "drawing": lambda size, folder: gpu_drawing.measure(size, folder / "generator"),
    "ridge": gpu_fitting.measure_ridge,
    "training": gpu_fitting.measure_training,
    "product": gpu_product.measure,
    "settings": lambda size, folder: gpu_drawing.settings(size, folder / "generator"),
}
UNASKED = [name for name in PARTS if name != "settings"]


def main(words: list[str] | None = None) -> int:
    """Measure, write and print; return the number of parts that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=UNASKED)
    parser.add_argument("--folder", type=Path, help="for checkpoint and workspace; kept")
    chosen = parser.parse_args(words)
    size = Size(
        small=chosen.small, device=torch.device("cuda" if torch.cuda.is_available() else "cpu")
    )
    if size.device.type == "cpu" and not chosen.small:
        parser.error("torch finds no GPU here: give --small to try the script on a CPU")
    found: dict[str, dict[str, Any]] = {}
    failed = 0
    with tempfile.TemporaryDirectory(prefix="rb") as own:
        folder = chosen.folder or Path(own)
        folder.mkdir(parents=True, exist_ok=True)
        for name in chosen.parts:
            figures = found.setdefault(name, {})
            started = time.perf_counter()
            try:
                for what, figure in PARTS[name](size, folder):
                    figures[what] = figure
                    write(found, chosen.result)
                    print(f"{name}: {what}: {json.dumps(figure)[:300]}", flush=True)
            except Exception:
                failed += 1
                figures["failed"] = traceback.format_exc()[-3000:]
                print(figures["failed"], flush=True)
            figures["seconds"] = round(time.perf_counter() - started, 1)
            write(found, chosen.result)
    return failed


def write(found: dict[str, Any], file: Path) -> None:
    """Write the figures so far: what ends the script halfway takes none of them along."""
    file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
