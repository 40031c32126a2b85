"""Runs compared image by image, and told apart from what another seed would have changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raybrain.config import InputError
from raybrain.evaluation.declarations import Metric
from raybrain.evaluation.statistics import bootstrap
from raybrain.evaluation.table import Table

if TYPE_CHECKING:
    import pandas

RESEEDING = {"identification": 0.006, "pixcorr": 0.006}
"""By how much another seed alone moves a score (spread over seeds of published systems)."""


@dataclass(frozen=True)
class Comparison:
    """What one run gains on another, on the same images."""

    metric: str
    better: str
    than: str
    value: float
    """Positive when `better` is better, whatever the direction of the metric."""
    low: float
    """95 % interval from a paired bootstrap over images."""
    high: float
    """Upper end of the interval."""
    noise: float
    """Differences up to here could come from reseeding alone."""
    n: int
    """Images."""

    @property
    def real(self) -> bool:
        """Whether the interval leaves out zero and the difference exceeds reseeding noise."""
        return (self.low > 0 or self.high < 0) and abs(self.value) > self.noise


def compare_tables(
    tables: Mapping[str, Table], *, row: str = "system", resamples: int = 10_000, seed: int = 0
) -> tuple[Comparison, ...]:
    """Return the paired differences of every later run from the first, on every metric.

    Parameters
    ----------
    tables
        Run name to its table; the first is what the others are compared with.
    row
        Which row of each table.
    resamples
        Of the images, shared by all comparisons.
    seed
        Of the resamples.

    Raises
    ------
    InputError
        If there are fewer than two runs, or their protocols or images differ.
    """
    if len(tables) < 2:
        raise InputError(f"comparing takes at least two runs; found {', '.join(tables) or 'none'}")
    (first, base), *others = tables.items()
    found = []
    gains: list[NDArray[np.float64]] = []
    for name, table in others:
        if table.protocol.name != base.protocol.name:
            raise InputError(
                f"scores of different protocols cannot be compared: {first} has "
                f"{base.protocol.name}, {name} has {table.protocol.name}"
            )
        order = _alignment(base, table, names=(first, name))
        for metric in base.protocol.metrics:
            gain = table.per_image(row=row, metric=metric.name)[order] - base.per_image(
                row=row, metric=metric.name
            )
            gains.append(gain if metric.higher_is_better else -gain)
            found.append((name, metric, _noise(metric, base, table, row=row)))
    interval = bootstrap(np.stack(gains, axis=1), resamples=resamples, seed=seed)
    return tuple(
        Comparison(
            metric=metric.name,
            better=name,
            than=first,
            value=float(gains[k].mean()),
            low=float(interval.low[k]),
            high=float(interval.high[k]),
            noise=noise,
            n=len(gains[k]),
        )
        for k, (name, metric, noise) in enumerate(found)
    )


def comparison_frame(comparisons: tuple[Comparison, ...]) -> pandas.DataFrame:
    """Return one line per comparison."""
    import pandas

    return pandas.DataFrame(
        [
            {
                "run": c.better,
                "minus": c.than,
                "metric": c.metric,
                "difference": c.value,
                "low": c.low,
                "high": c.high,
                "reseeding_noise": c.noise,
                "real": c.real,
                "n": c.n,
            }
            for c in comparisons
        ]
    )


def comparison_text(comparisons: tuple[Comparison, ...], *, table: Table) -> str:
    """Return the comparisons for a console, each with a verdict."""
    head = comparisons[0]
    named = max(24, *(len(c.better) + 2 for c in comparisons))
    measured = max(18, *(len(c.metric) + 2 for c in comparisons))
    lines = [
        f"{table.protocol.name}, {head.n} images, paired; positive means better than {head.than}",
        f"{'run':<{named}}{'metric':<{measured}}{'difference':>11}{'95 % interval':>20}"
        f"  larger than reseeding?",
    ]
    for c in comparisons:
        percent = table.protocol.metric(c.metric).percent
        scale, digits = (100.0, 2) if percent else (1.0, 4)
        value, low, high = (f"{scale * v:+.{digits}f}" for v in (c.value, c.low, c.high))
        verdict = "yes" if c.real else f"no (noise {scale * c.noise:.{digits}f})"
        interval = f"{low} to {high}"
        lines.append(
            f"{c.better:<{named}}{c.metric:<{measured}}{value:>11}{interval:>20}  {verdict}"
        )
    return "\n".join(lines)


def _alignment(base: Table, table: Table, *, names: tuple[str, str]) -> list[int]:
    place = {image: k for k, image in enumerate(table.image_ids)}
    only = set(base.image_ids) ^ set(table.image_ids)
    if only:
        raise InputError(
            f"runs are compared image by image, but {names[0]} and {names[1]} were not scored on "
            f"the same images ({len(base.image_ids)} and {len(table.image_ids)}, {len(only)} of "
            f"them in one only, such as {min(only)})"
        )
    return [place[image] for image in base.image_ids]


def _noise(metric: Metric, *tables: Table, row: str) -> float:
    """Return what reseeding may change: published, or twice the error of the mean over samples."""
    variance = 0.0
    for table in tables:
        cells = table.cells[row, metric.name]
        if len(cells) > 1:
            variance += float(cells.mean(axis=1).var(ddof=1)) / len(cells)
    return max(RESEEDING.get(metric.kind, 0.0), 1.96 * variance**0.5)
