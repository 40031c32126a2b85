"""Figures for papers: every one as PNG for screens and as PDF with its text and lines kept."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from raybrain.evaluation.table import Table

INK, SOFT, ACCENT, CEILING = "#1c1b1a", "#8b867e", "#0b6e6e", "#8a5a00"
LINES = ("#0b6e6e", "#b4541a", "#5a4fb0", "#7a7a00")
SLICES = 24
"""Most slices of a map."""
_drawing = threading.Lock()
"""Several reports may be written at once, and what lays out text is one per process."""


@dataclass(frozen=True)
class FigureFiles:
    """The same figure twice."""

    png: Path
    pdf: Path


def score_figure(table: Table, *, folder: Path, name: str = "scores") -> FigureFiles:
    """Draw every row's score and 95 % interval, one panel per metric, chance dashed.

    Parameters
    ----------
    table
        From `evaluation.score_rows`.
    folder
        Where ``NAME.png`` and ``NAME.pdf`` go.
    name
        Of the files.
    """
    metrics = [
        m
        for m in table.protocol.metrics
        if any(math.isfinite(table.score(row=row, metric=m.name).value) for row in table.rows)
    ]
    rows = table.rows[::-1]
    figure = _figure(width=1.3 + 1.25 * len(metrics), height=0.75 + 0.28 * len(rows))
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for panel, metric in zip(panels, metrics, strict=True):
        scale = 100.0 if metric.percent else 1.0
        for height, row in enumerate(rows):
            score = table.score(row=row, metric=metric.name)
            if not math.isfinite(score.value):
                continue
            colour = {"system": ACCENT, "ceiling": CEILING}.get(row, INK)
            ends = [scale * score.low, scale * score.high]
            panel.plot(ends, [height, height], color=colour, lw=2.2, solid_capstyle="butt")
            panel.plot(scale * score.value, height, "o", color=colour, ms=4)
        if metric.chance is not None:
            panel.axvline(scale * metric.chance, color=SOFT, lw=0.8, ls=(0, (3, 2)), zorder=0)
        arrow = "higher is better" if metric.higher_is_better else "lower is better"
        unit = " (%)" if metric.percent else ""
        panel.set_title(f"{metric.group}\n{metric.label}{unit}", fontsize=8)
        panel.set_xlabel(arrow, fontsize=6, color=SOFT)
        panel.margins(x=0.12)
        panel.locator_params(axis="x", nbins=3)
        panel.tick_params(axis="x", labelsize=7, length=2)
        panel.tick_params(axis="y", length=0)
        panel.spines[["top", "right", "left"]].set_visible(False)
    panels[0].set_yticks(range(len(rows)), rows, fontsize=8)
    panels[0].set_ylim(-0.6, len(rows) - 0.4)
    figure.supxlabel(
        f"{table.protocol.name}, n = {len(table.image_ids)}, 95 % intervals",
        x=0.995, fontsize=6, color=SOFT, ha="right",
    )  # fmt: skip
    return _save(figure, folder=folder, name=name)


def curve_figure(
    lines: Mapping[str, Sequence[tuple[float, float, float, float]]],
    *,
    title: str,
    x: str,
    y: str,
    folder: Path,
    name: str,
) -> FigureFiles:
    """Draw scores over an axis, a line each, with its 95 % intervals where there are any.

    Parameters
    ----------
    lines
        Name -> (x, value, low, high); NaN for no interval.
    title, x, y
        What it is, and what the axes are.
    folder, name
        Where ``NAME.png`` and ``NAME.pdf`` go.
    """
    figure = _figure(width=4.2, height=3.0)
    panel = figure.subplots()
    for k, (label, points) in enumerate(lines.items()):
        across, value, low, high = np.array(points, dtype=float).T
        colour = LINES[k % len(LINES)]
        panel.plot(across, value, "o-", color=colour, lw=1.6, ms=4, label=label)
        if np.isfinite(low).all():
            panel.fill_between(across, low, high, color=colour, alpha=0.12, lw=0)
    panel.set_title(title, fontsize=8, color=INK)
    panel.set_xlabel(x, fontsize=8)
    panel.set_ylabel(y, fontsize=8)
    panel.tick_params(labelsize=7)
    panel.spines[["top", "right"]].set_visible(False)
    if len(lines) > 1:
        panel.legend(fontsize=7, frameon=False)
    return _save(figure, folder=folder, name=name)


def noise_ceiling_figure(
    *,
    xyz: NDArray[np.integer],
    noise_ceiling: NDArray[np.floating],
    folder: Path,
    name: str = "noise_ceiling",
) -> FigureFiles:
    """Draw the noise ceiling of every voxel on axial slices, from the lowest to the highest.

    Parameters
    ----------
    xyz
        (voxel, 3) positions in the volume.
    noise_ceiling
        (voxel,) share of variance that is signal, 0..1.
    folder
        Where ``NAME.png`` and ``NAME.pdf`` go.
    name
        Of the files.

    Raises
    ------
    ValueError
        If there is no voxel, or not one noise ceiling for each.
    """
    if len(xyz) != len(noise_ceiling) or not len(xyz):
        raise ValueError(
            f"a map needs a value per voxel; found {len(xyz)} and {len(noise_ceiling)}"
        )
    low, high = xyz.min(axis=0), xyz.max(axis=0)
    volume = np.full(tuple(high - low + 1), np.nan)
    volume[tuple((xyz - low).T)] = noise_ceiling
    depth = volume.shape[2]
    slices = np.unique(np.linspace(0, depth - 1, min(SLICES, depth)).round().astype(int))
    across = min(8, len(slices))
    down = -(-len(slices) // across)
    figure = _figure(width=0.9 * across + 0.8, height=1.1 * down + 0.4)
    panels = figure.subplots(down, across, squeeze=False)
    shown: Any = None
    for panel in panels.flat:
        panel.set_axis_off()
    for panel, z in zip(panels.flat, slices, strict=False):
        # x grows to the right and y upwards, as radiologists' axial slices are not.
        shown = panel.imshow(
            volume[:, :, z].T, origin="lower", cmap="viridis", vmin=0.0, vmax=1.0,
            interpolation="nearest",
        )  # fmt: skip
        panel.set_title(f"z = {z + low[2]}", fontsize=6, color=SOFT, pad=2)
    bar = figure.colorbar(shown, ax=panels.ravel().tolist(), shrink=0.8, pad=0.02)
    bar.set_label("noise ceiling", fontsize=7)
    bar.ax.tick_params(labelsize=6, length=2)
    return _save(figure, folder=folder, name=name)


def _figure(*, width: float, height: float) -> Figure:
    # The object interface: pyplot would keep every figure alive and choose a backend by itself.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, *, folder: Path, name: str) -> FigureFiles:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = FigureFiles(png=folder / f"{name}.png", pdf=folder / f"{name}.pdf")
    with _drawing:
        figure.savefig(files.png, dpi=200)
        # Without dates the same scores give the same bytes.
        figure.savefig(files.pdf, metadata={"CreationDate": None, "ModDate": None})
    return files
