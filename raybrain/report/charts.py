"""Geometry of the learning curves that the gallery draws as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LEFT, RIGHT, TOP, BOTTOM = 46.0, 350.0, 12.0, 160.0
"""Edges of the plot within the 360 x 190 box of the template."""

Curve = Sequence[tuple[float, float]]


def chart(title: str, *, lines: Mapping[str, Curve]) -> dict[str, Any]:
    """Return what the template draws: points and ticks in SVG coordinates, and words for ears.

    Parameters
    ----------
    title
        Above the chart.
    lines
        Name to (step, value) pairs; values that are not finite are left out.
    """
    kept = {name: [p for p in points if math.isfinite(p[1])] for name, points in lines.items()}
    kept = {name: sorted(points) for name, points in kept.items() if points}
    if not kept:
        return {"title": title, "lines": [], "x_ticks": [], "y_ticks": [], "summary": title}
    xs, ys = np.array([point for points in kept.values() for point in points], dtype=float).T
    x_ticks = ticks(xs.min(), xs.max(), count=5)
    y_ticks = ticks(ys.min(), ys.max(), count=4)
    x_low, x_high = xs.min(), max(xs.max(), xs.min() + 1e-9)
    y_low, y_high = min(ys.min(), y_ticks[0]), max(ys.max(), y_ticks[-1])

    def across(x: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (x - x_low) / (x_high - x_low), 1)

    def up(y: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * (y - y_low) / max(y_high - y_low, 1e-30), 1)

    drawn = [
        {
            "name": name,
            "points": " ".join(f"{across(x)},{up(y)}" for x, y in points),
            "single": (across(points[0][0]), up(points[0][1])) if len(points) == 1 else None,
            "last": f"{points[-1][1]:.4g}",
        }
        for name, points in kept.items()
    ]
    return {
        "title": title,
        "lines": drawn,
        "x_ticks": [{"at": across(t), "text": f"{t:g}"} for t in x_ticks if x_low <= t <= x_high],
        "y_ticks": [{"at": up(t), "text": f"{t:g}"} for t in y_ticks],
        "summary": f"{title}: "
        + "; ".join(f"{line['name']} ends at {line['last']}" for line in drawn),
    }


def ticks(low: float, high: float, *, count: int) -> list[float]:
    """Return about `count` round numbers that span from `low` or just below to `high` or above."""
    span = high - low if high > low else abs(high) or 1.0
    raw = span / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1.0, 2.0, 2.5, 5.0, 10.0) if s * power >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, max(last, first + 1) + 1)]
