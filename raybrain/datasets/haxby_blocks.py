"""Blocks of Haxby's experiment: which volumes they are, and their mean response."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from raybrain.config import InputError
from raybrain.datasets.files import Root
from raybrain.datasets.tables import decode_text, whole_numbers
from raybrain.datasets.volumes import read_series

REST = "rest"
SHIFTS = range(-2, 5)
"""Candidate delays in volumes, 5 s before to 10 s after the labels."""


def read_labels(place: Root, path: str) -> pd.DataFrame:
    """Return label and run (from 1) of every volume; a header line is optional."""
    name = place.at(path)
    text = decode_text(place.read(path), name=name)
    rows = [line.split() for line in text.splitlines() if line.strip()]
    if rows and rows[0] == ["labels", "chunks"]:
        rows = rows[1:]
    for number, row in enumerate(rows, start=1):
        if len(row) != 2:
            raise InputError(
                f"{name} has '{' '.join(row)}' in row {number}; each row is a label and the number "
                f"of its run"
            )
    table = pd.DataFrame(rows, columns=["label", "run"], dtype=str)
    table["run"] = whole_numbers(table, "run", name=name)
    if table.empty or (np.diff(table["run"]) < 0).any():
        raise InputError(f"{name} must list the volumes run after run; download it again")
    table["run"] += 1 - table["run"].min()
    return table


def find_blocks(labels: pd.DataFrame, *, name: str) -> pd.DataFrame:
    """Return run, category, start and stop of every run of equal labels that is not rest."""
    changes = (labels != labels.shift()).any(axis=1).cumsum()
    grouped = labels.reset_index().groupby(changes.to_numpy())
    blocks = grouped.agg(
        run=("run", "first"),
        category=("label", "first"),
        start=("index", "min"),
        stop=("index", "max"),
    )
    blocks = blocks[blocks["category"] != REST].reset_index(drop=True)
    blocks["stop"] += 1
    if blocks.empty:
        raise InputError(f"{name} has no label but '{REST}'; download it again")
    return blocks


def clean(series: np.ndarray, *, run: np.ndarray) -> np.ndarray:
    """Return float32 (volume, voxel) without each run's line, and with unit variance in each run.

    A voxel that is constant in a run becomes 0 there.
    """
    cleaned = np.empty(series.shape, dtype=np.float32)
    for one in np.unique(run):
        rows = np.flatnonzero(run == one)
        time = np.linspace(-1.0, 1.0, len(rows))[:, None]
        design = np.hstack([np.ones_like(time), time])
        values = series[rows].astype(np.float64)
        values -= design @ np.linalg.lstsq(design, values, rcond=None)[0]
        spread = values.std(axis=0)
        # A constant voxel leaves rounding errors, which must not be blown up to unit variance.
        flat = spread <= 1e-9 * np.maximum(np.abs(series[rows]).max(axis=0), 1.0)
        cleaned[rows] = np.where(flat, 0.0, values / np.where(flat, 1.0, spread))
    return cleaned


def find_delay(cleaned: np.ndarray, *, labels: pd.DataFrame) -> int:
    """Return the shift in volumes at which voxels follow stimulation against rest most closely.

    Categories are not used. In the published labels the delay is partly included already: in the
    sample of subject 1 responses rise with the label, not 5 s after it.
    """
    run = labels["run"].to_numpy()
    on = (labels["label"] != REST).to_numpy(dtype=np.float32)
    strength = {}
    for shift in SHIFTS:
        moved = np.concatenate([_moved(on[run == one], shift) for one in np.unique(run)])
        moved = (moved - moved.mean()) / max(moved.std(), 1e-9)
        strength[shift] = float(np.abs(moved @ cleaned).mean())
    return max(strength, key=lambda shift: strength[shift])


def _moved(values: np.ndarray, shift: int) -> np.ndarray:
    moved = np.roll(values, shift)
    if shift > 0:
        moved[:shift] = 0.0
    elif shift < 0:
        moved[shift:] = 0.0
    return moved


def responding(start: int, stop: int, *, runs: np.ndarray, shift: int) -> np.ndarray:
    """Return the volumes of a block's response: those of the block, later by ``shift``, in its run.

    None are left of a block that its run ends with before the response begins.
    """
    inside = np.flatnonzero(runs == runs[start])
    rows = np.arange(start + shift, stop + shift)
    return rows[(rows >= inside[0]) & (rows <= inside[-1])]


def check_responses(blocks: pd.DataFrame, *, labels: pd.DataFrame, shift: int, name: str) -> None:
    """Raise `InputError` if a block has no volume of response."""
    runs = labels["run"].to_numpy()
    columns = (blocks[name].tolist() for name in ("start", "stop", "run", "category"))
    for start, stop, run, category in zip(*columns, strict=True):
        if not len(responding(start, stop, runs=runs, shift=shift)):
            raise InputError(
                f"{name} has '{category}' in row {start + 1}, where run {run} "
                f"{'ends' if shift > 0 else 'begins'} without a volume of the response, which is "
                f"{shift} volumes from its label; label it {REST}, or set layout.delay"
            )


def read_blocks(
    session: int,
    *,
    root: Root,
    bold: str,
    voxels: np.ndarray,
    grid: tuple[int, int, int],
    runs: np.ndarray,
    blocks: Sequence[tuple[int, int]],
    shift: int,
) -> np.ndarray:
    """Return the mean of every block's volumes, in standard deviations of the run."""
    if session != 1:
        raise InputError(f"there is one session of {bold}, not {session}")
    series = read_series(root, bold, voxels=voxels, grid=grid, volumes=len(runs))
    cleaned = clean(series, run=runs)
    means = np.empty((len(blocks), len(voxels)), dtype=np.float32)
    for row, (start, stop) in zip(means, blocks, strict=True):
        row[:] = cleaned[responding(start, stop, runs=runs, shift=shift)].mean(axis=0)
    return means
