"""The table: no score without its chance level, floors, ceiling, n and protocol."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raybrain.config import InputError
from raybrain.evaluation.declarations import Metric, Protocol
from raybrain.evaluation.protocols import protocol_named
from raybrain.evaluation.statistics import bootstrap

if TYPE_CHECKING:
    import pandas

NEAREST_TRAINING = "nearest training"
"""The row to beat: showing a training image needs no generator."""
LABEL_WIDTH = 19
CELL_WIDTH = 10
"""Of a column none of whose cells is longer."""
LINE_WIDTH = 100


@dataclass(frozen=True)
class Score:
    """One cell: the mean over images and samples of one metric for one row."""

    row: str
    metric: str
    value: float
    """In the unit of the metric."""
    low: float
    """Lower end of the 95 % bootstrap interval over images."""
    high: float
    """Upper end of the interval."""
    sd_samples: float
    """Standard deviation of the mean score across samples (for shuffled brains across shuffles)."""
    n: int
    """Images."""
    samples: int
    """Samples of each image that were scored; for shuffled brains, shuffles."""
    chance: float
    """NaN where the metric has none."""
    p: float
    """Under random pairing of reconstructions and images; NaN where it was not computed."""


@dataclass(frozen=True)
class Difference:
    """How much better one row is than another on the same images, as a paired comparison."""

    metric: str
    better: str
    than: str
    value: float
    """In the unit of the metric; positive when `better` is better, whatever its direction."""
    low: float
    """Lower end of the 95 % interval from a paired bootstrap over images."""
    high: float
    """Upper end of the interval."""


@dataclass(frozen=True)
class Table:
    """Scores of every row under one protocol, down to single images and samples."""

    protocol: Protocol
    image_ids: tuple[str, ...]
    rows: tuple[str, ...]
    """From floors to ceiling."""
    scores: tuple[Score, ...]
    cells: Mapping[tuple[str, str], NDArray[np.float64]]
    """(row, metric) to scores (sample, image)."""
    bootstrap: int
    """Resamples of the images that the intervals come from."""
    permutations: int
    """Random pairings of reconstructions and images that p comes from."""
    seed: int
    """Of the resamples and of the pairings."""
    about: Mapping[str, str] = field(default_factory=dict)
    """Row to what it is."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """File of weights to its sha256."""

    def score(self, *, row: str, metric: str) -> Score:
        """Return one cell.

        Raises
        ------
        ValueError
            If there is no such row or metric.
        """
        for score in self.scores:
            if (score.row, score.metric) == (row, metric):
                return score
        raise ValueError(
            f"no score of '{row}' on '{metric}'; rows are {', '.join(self.rows)}, "
            f"metrics {', '.join(m.name for m in self.protocol.metrics)}"
        )

    def per_image(self, *, row: str, metric: str) -> NDArray[np.float64]:
        """Return the score (image,) averaged over samples."""
        self.score(row=row, metric=metric)
        return self.cells[row, metric].mean(axis=0)

    def difference(self, *, metric: str, better: str, than: str) -> Difference:
        """Return the paired difference of two rows with its 95 % bootstrap interval over images."""
        found = self.differences(better=better, than=[than])
        return next(d for d in found if d.metric == metric)

    def differences(self, *, better: str, than: Sequence[str]) -> tuple[Difference, ...]:
        """Return the paired differences of one row from others, on every metric."""
        pairs = [(row, metric) for row in than for metric in self.protocol.metrics]
        if not pairs:
            return ()
        gains = []
        for row, metric in pairs:
            gain = self.per_image(row=better, metric=metric.name) - self.per_image(
                row=row, metric=metric.name
            )
            gains.append(gain if metric.higher_is_better else -gain)
        interval = bootstrap(np.stack(gains, axis=1), resamples=self.bootstrap, seed=self.seed)
        return tuple(
            Difference(
                metric=metric.name,
                better=better,
                than=row,
                value=float(gains[k].mean()),
                low=float(interval.low[k]),
                high=float(interval.high[k]),
            )
            for k, (row, metric) in enumerate(pairs)
        )

    def to_pandas(self) -> pandas.DataFrame:
        """Return one line per row and metric, everything in it."""
        import pandas

        lines = []
        for score in self.scores:
            metric = self.protocol.metric(score.metric)
            lines.append(
                {
                    "row": score.row,
                    "metric": score.metric,
                    "value": score.value,
                    "low": score.low,
                    "high": score.high,
                    "sd_samples": score.sd_samples,
                    "n": score.n,
                    "samples": score.samples,
                    "chance": score.chance,
                    "p": score.p,
                    "higher_is_better": metric.higher_is_better,
                    "protocol": self.protocol.name,
                    "description": metric.description,
                }
            )
        return pandas.DataFrame(lines)

    def per_image_frame(self) -> pandas.DataFrame:
        """Return one line per row, metric, sample and image."""
        import pandas

        parts = []
        for (row, metric), values in self.cells.items():
            samples, images = values.shape
            parts.append(
                pandas.DataFrame(
                    {
                        "row": row,
                        "metric": metric,
                        "sample": np.repeat(np.arange(samples), images),
                        "image_id": np.tile(self.image_ids, samples),
                        "score": values.reshape(-1),
                    }
                )
            )
        return pandas.concat(parts, ignore_index=True)

    def save(self, path: Path) -> None:
        """Write everything to one ``.npz`` file, from which `load_table` makes the same table."""
        fields = {
            name: getattr(self, name)
            for name in ("image_ids", "rows", "bootstrap", "permutations", "seed")
        }
        header = fields | {
            "protocol": self.protocol.name,
            "about": dict(self.about),
            "weights": dict(self.weights),
            "scores": [asdict(score) for score in self.scores],
            "cells": [list(cell) for cell in self.cells],
        }
        # JSON has no NaN, but Python's reads back the one it writes.
        arrays = {"header": np.array(json.dumps(header))}
        arrays |= {f"cell{k}": values for k, values in enumerate(self.cells.values())}
        np.savez_compressed(path, allow_pickle=False, **arrays)

    def to_csv(self, path: Path) -> None:
        """Write `to_pandas` as CSV."""
        self.to_pandas().to_csv(path, index=False)

    def to_text(self) -> str:
        """Return the table for a console, at most 100 columns wide for eight metrics."""
        metrics = self.protocol.metrics
        named = [score for score in self.scores if score.row == "system"] or self.scores
        counted = named[0].samples
        cells = {
            row: [_cell(self.score(row=row, metric=m.name), metric=m) for m in metrics]
            for row in self.rows
        }
        labels = [m.label + (" ↑" if m.higher_is_better else " ↓") for m in metrics]
        gains = self._over_nearest("system")
        widths = _widths([labels, *cells.values(), *([gains] if gains else [])])
        lines = [
            f"{self.protocol.name}: {len(self.image_ids)} images, {counted} "
            f"sample{'s' if counted > 1 else ''} each; mean ± half the 95 % interval "
            f"({self.bootstrap:,} resamples of images)",
            "",
            (" " * LABEL_WIDTH + _spanning(metrics, widths=widths)).rstrip(),
            _line("", labels, widths=widths),
            _line("chance", [_chance(metric) for metric in metrics], widths=widths),
        ]
        for row in self.rows:
            lines.append(_line(row, cells[row], widths=widths))
            ps = [self.score(row=row, metric=m.name).p for m in metrics]
            if row == "system":
                lines.append(_line("  p, pairing", [_p(p) for p in ps], widths=widths))
                lines += [_line("  over nearest", gains, widths=widths)] if gains else []
        lines += [
            "",
            "PixCorr and SSIM reward blur: read them beside the mean image, which knows nothing.",
            *[f"{m.group} {m.label}: {m.description}" for m in metrics if m.layer],
        ]
        return "\n".join(lines)

    def _over_nearest(self, row: str) -> list[str]:
        """Return what a row gains on the nearest training image, image by image, by metric."""
        if not {row, NEAREST_TRAINING} <= set(self.rows):
            return []
        found = self.differences(better=row, than=[NEAREST_TRAINING])
        return [
            _cell(one, metric=metric)
            for one, metric in zip(found, self.protocol.metrics, strict=True)
        ]

    def _repr_html_(self) -> str:
        """Return the table for a notebook: each cell the mean, its interval beneath."""
        metrics = self.protocol.metrics
        heads = "".join(
            f'<th title="{escape(m.description, quote=True)}">{escape(m.group)}<br>'
            f"{escape(m.label)} {'↑' if m.higher_is_better else '↓'}</th>"
            for m in metrics
        )
        chance = "".join(f"<td>{_chance(metric)}</td>" for metric in metrics)
        lines = [
            f'<tr><th title="{escape(self.about.get(row, ""), quote=True)}">{escape(row)}</th>'
            + "".join(_html(self.score(row=row, metric=m.name), metric=m) for m in metrics)
            + "</tr>"
            for row in self.rows
        ]
        caption = (
            f"{self.protocol.name}: {len(self.image_ids)} images; mean, and below it the 95 % "
            f"interval over images ({self.bootstrap:,} resamples)"
        )
        return (
            f"<table><caption>{escape(caption)}</caption><thead><tr><th></th>{heads}</tr></thead>"
            f"<tbody><tr><th>chance</th>{chance}</tr>{''.join(lines)}</tbody></table>"
        )

    def to_latex(self) -> str:
        r"""Return a ``tabular`` that needs only ``booktabs``."""
        metrics = self.protocol.metrics
        heads = [
            f"{m.group} {m.label} " + (r"$\uparrow$" if m.higher_is_better else r"$\downarrow$")
            for m in metrics
        ]
        caption = (
            f"% {self.protocol.name}, n = {len(self.image_ids)} images, 95 % bootstrap interval "
            f"over images ({self.bootstrap} resamples)"
        )
        lines = [
            caption,
            r"\begin{tabular}{l" + "r" * len(metrics) + "}",
            r"\toprule",
            " & ".join(["", *heads]) + r" \\",
            r"\midrule",
            " & ".join(["chance", *[latex_text(_chance(metric)) for metric in metrics]]) + r" \\",
        ]
        for row in self.rows:
            cells = []
            for metric in metrics:
                score = self.score(row=row, metric=metric.name)
                if not math.isfinite(score.value):
                    cells.append("--")
                    continue
                value, low, high = (metric.text(v) for v in (score.value, score.low, score.high))
                cells.append(f"{value} {{\\scriptsize [{low}, {high}]}}")
            lines.append(" & ".join([latex_text(row), *cells]) + r" \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def load_table(path: Path) -> Table:
    """Return the table that `Table.save` wrote.

    Raises
    ------
    InputError
        If there is no such file, or it is of a protocol that is not known any more.
    """
    if not Path(path).is_file():
        raise InputError(f"there are no scores at {path}; run evaluate first")
    with np.load(path, allow_pickle=False) as file:
        header = json.loads(str(file["header"]))
        cells = {(row, metric): file[f"cell{k}"] for k, (row, metric) in enumerate(header["cells"])}
    return Table(
        protocol=protocol_named(header["protocol"]),
        image_ids=tuple(header["image_ids"]),
        rows=tuple(header["rows"]),
        scores=tuple(Score(**score) for score in header["scores"]),
        cells=cells,
        bootstrap=header["bootstrap"],
        permutations=header["permutations"],
        seed=header["seed"],
        about=header["about"],
        weights=header["weights"],
    )


def _widths(lines: Sequence[Sequence[str]]) -> list[int]:
    """Return the width of every column: cells never touch, and a long one takes room elsewhere."""
    needed = [1 + max(map(len, column)) for column in zip(*lines, strict=True)]
    widths = [max(CELL_WIDTH, one) for one in needed]
    for k, one in enumerate(needed):
        over = LABEL_WIDTH + sum(widths) - LINE_WIDTH
        widths[k] -= max(0, min(over, widths[k] - one))
    return widths


def _line(label: str, cells: Sequence[str], *, widths: Sequence[int]) -> str:
    placed = (f"{one:>{width}}" for one, width in zip(cells, widths, strict=True))
    return (f"{label:<{LABEL_WIDTH}}" + "".join(placed)).rstrip()


def _spanning(metrics: tuple[Metric, ...], *, widths: Sequence[int]) -> str:
    text = ""
    pairs = zip(metrics, widths, strict=True)
    for group, members in groupby(pairs, key=lambda pair: pair[0].group):
        total = sum(width for _, width in members)
        text += f" {group} ".center(total - 2, "─").rjust(total)
    return text


def _chance(metric: Metric) -> str:
    return "–" if metric.chance is None else metric.text(metric.chance)  # noqa: RUF001


def _cell(score: Score | Difference, *, metric: Metric) -> str:
    if not math.isfinite(score.value):
        return "–"  # noqa: RUF001
    half = (score.high - score.low) / 2.0
    text = metric.gain_text if isinstance(score, Difference) else metric.text
    return f"{text(score.value)}±{metric.text(half)}"


def _html(score: Score, *, metric: Metric) -> str:
    if not math.isfinite(score.value):
        return "<td>–</td>"  # noqa: RUF001
    value, low, high = (metric.text(number) for number in (score.value, score.low, score.high))
    return f"<td>{value}<br><small>{low} to {high}</small></td>"


def _p(p: float) -> str:
    if not math.isfinite(p):
        return "–"  # noqa: RUF001
    return "<.001" if p < 0.001 else f"{p:.3f}".replace("0.", ".", 1)


LATEX = {
    "\\": r"\textbackslash{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",  # noqa: RUF001
    "±": r"$\pm$",
    "·": r"$\cdot$",
}


def latex_text(text: str) -> str:
    """Return a text in which nothing is a command of LaTeX."""
    return "".join(LATEX.get(letter, letter) for letter in text)
