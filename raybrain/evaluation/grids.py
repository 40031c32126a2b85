"""Tables of any rows and columns as text, Markdown, LaTeX and lines of a CSV file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raybrain.config import InputError
from raybrain.evaluation.across import EVERYONE, Across, Cell, Gain
from raybrain.evaluation.declarations import Metric
from raybrain.evaluation.table import latex_text

DATASET, SUBJECT, METRIC = "dataset", "subject", "metric"
SIGNIFICANT = 0.05
DASH = "–"  # noqa: RUF001


@dataclass(frozen=True)
class Grid:
    """A table whose cells are texts."""

    title: str
    heads: tuple[str, ...]
    """Of the columns that tell rows apart."""
    columns: tuple[str, ...]
    rows: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    """Labels and cells of every row."""
    notes: tuple[str, ...] = ()

    def to_text(self) -> str:
        """Return the table for a console."""
        lines = [
            [*self.heads, *self.columns],
            *([*labels, *cells] for labels, cells in self.rows),
        ]
        widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
        named = len(self.heads)
        placed = [
            "  ".join(
                one.ljust(width) if k < named else one.rjust(width)
                for k, (one, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([self.title, "", *placed, *(["", *self.notes] if self.notes else [])])

    def to_markdown(self) -> str:
        """Return the table for a document, with its title as a heading."""
        named, measured = len(self.heads), len(self.columns)
        lines = [
            _markdown_line([*self.heads, *self.columns]),
            "|" + "---|" * named + "---:|" * measured,
            *(_markdown_line([*labels, *cells]) for labels, cells in self.rows),
        ]
        notes = ["", " ".join(markdown_text(note) for note in self.notes)] if self.notes else []
        return "\n".join([f"### {markdown_text(self.title)}", "", *lines, *notes, ""])

    def to_latex(self) -> str:
        r"""Return a ``tabular`` that needs only ``booktabs``."""
        lines = [
            f"% {' '.join(self.title.split())}",
            r"\begin{tabular}{" + "l" * len(self.heads) + "r" * len(self.columns) + "}",
            r"\toprule",
            _latex_line([*self.heads, *self.columns]),
            r"\midrule",
            *(_latex_line([*labels, *cells]) for labels, cells in self.rows),
            r"\bottomrule",
            r"\end{tabular}",
            *(f"% {note}" for note in self.notes),
        ]
        return "\n".join([*lines, ""])


def score_grid(
    across: Across, *, axes: Sequence[str], rows: Sequence[str], columns: Sequence[str]
) -> Grid:
    """Return the scores of all runs, and their means over subjects.

    Parameters
    ----------
    across : Across
    axes : sequence of str
        Names of the axes in the keys.
    rows, columns : sequence of str
        What tells rows and columns apart: axes, `DATASET`, `SUBJECT`, `METRIC`.

    Raises
    ------
    InputError
        If they leave out something that tells runs apart, or name what is not there.
    """
    metrics = {metric.name: metric for metric in across.metrics}
    cells = [
        (coordinates(cell, axes=axes, metric=metrics[cell.metric]), _score_text(cell, metrics))
        for cell in across.cells
    ]
    return _grid(
        f"Scores under {across.protocol.name}: mean ± half the 95 % interval",
        cells,
        axes=axes,
        rows=rows,
        columns=columns,
        notes=(
            f"One subject: bootstrap over images ({across.resamples:,} resamples). Means over "
            f"subjects: Student's t over subjects, so that few subjects have wide intervals.",
            "PixCorr and SSIM reward blur: read them beside the mean image, which knows nothing.",
        ),
    )


def gain_grid(
    across: Across, *, axes: Sequence[str], rows: Sequence[str], columns: Sequence[str],
    correction: str,
) -> Grid:  # fmt: skip
    """Return what every run gains on its baseline, as `score_grid` lays them out."""
    metrics = {metric.name: metric for metric in across.metrics}
    cells = [
        (coordinates(gain, axes=axes, metric=metrics[gain.metric]), _gain_text(gain, metrics))
        for gain in across.gains
    ]
    than = " or ".join(dict.fromkeys(", ".join(gain.than) or "it" for gain in across.gains))
    images = sum(gain.subject != EVERYONE for gain in across.gains)
    return _grid(
        f"Gains on {than}: paired difference and 95 % interval, positive where better",
        cells,
        axes=axes,
        rows=rows,
        columns=columns,
        notes=(
            f"* p < {SIGNIFICANT:g} after {correction} over {images} differences within subjects "
            f"(random signs of the images' differences) and {len(across.gains) - images} over "
            f"subjects (paired t).",
        ),
    )


def beside_grid(across: Across) -> Grid:
    """Return floors and ceiling of every dataset, chance first."""
    metrics = across.metrics
    rows = []
    for dataset in dict.fromkeys(one.dataset for one in across.beside):
        rows.append(
            (
                (dataset, "chance"),
                tuple(DASH if m.chance is None else m.text(m.chance) for m in metrics),
            )
        )
        for row in dict.fromkeys(one.row for one in across.beside if one.dataset == dataset):
            found = {
                one.metric: one for one in across.beside if (one.dataset, one.row) == (dataset, row)
            }
            cells = []
            for metric in metrics:
                one = found[metric.name]
                value, least, most = (metric.text(v) for v in (one.value, one.least, one.most))
                cells.append(value if least == most else f"{value} ({least} to {most})")
            rows.append(((dataset, row), tuple(cells)))
    return Grid(
        "Floors and ceiling: mean over runs (lowest to highest)",
        (DATASET, "row"),
        tuple(map(label_of, metrics)),
        tuple(rows),
        ("The ceiling is drawn from the true targets with the settings of each run.",),
    )


def coordinates(
    one: Cell | Gain, *, axes: Sequence[str], metric: Metric | None = None
) -> dict[str, str]:
    """Return where a cell or a gain stands, by name."""
    everyone = one.subject == EVERYONE
    return {
        DATASET: one.dataset,
        **dict(zip(axes, one.key, strict=True)),
        SUBJECT: f"mean of {one.n}" if everyone else one.subject,
        METRIC: one.metric if metric is None else label_of(metric),
    }


def label_of(metric: Metric) -> str:
    """Return the head of a metric's column, with the direction of better."""
    several = "" if metric.label.lower().startswith(metric.group.lower()) else f"{metric.group} "
    plain = metric.group == "pixels"
    return f"{'' if plain else several}{metric.label} {'↑' if metric.higher_is_better else '↓'}"


def markdown_text(text: str) -> str:
    """Return a text in which nothing is markup, on one line."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*_{}[]<>|#~" else letter for letter in text)
    return " ".join(escaped.replace("&", "&amp;").split())


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(markdown_text(one) for one in cells) + " |"


def _latex_line(cells: Sequence[str]) -> str:
    escaped = (
        latex_text(one).replace("↑", r"$\uparrow$").replace("↓", r"$\downarrow$") for one in cells
    )
    return " & ".join(escaped) + r" \\"


def _grid(
    title: str,
    cells: Sequence[tuple[Mapping[str, str], str]],
    *,
    axes: Sequence[str],
    rows: Sequence[str],
    columns: Sequence[str],
    notes: tuple[str, ...],
) -> Grid:
    known = (DATASET, *axes, SUBJECT, METRIC)
    for name in (*rows, *columns):
        if name not in known:
            raise InputError(
                f"compare.rows or columns has '{name}', but what tells results apart is "
                f"{', '.join(known)}; name these"
            )
    placed = tuple(rows) or tuple(name for name in known if name not in columns)
    for name in known:
        several = len({where[name] for where, _ in cells}) > 1
        if several and name not in (*placed, *columns):
            raise InputError(
                f"compare.rows and columns leave out '{name}', which tells results apart; add it"
            )
    # What is the same everywhere takes no column of its own.
    shown = tuple(n for n in placed if len({where[n] for where, _ in cells}) > 1) or placed[:1]
    texts: dict[tuple[tuple[str, ...], tuple[str, ...]], str] = {}
    for where, text in cells:
        texts[tuple(where[n] for n in shown), tuple(where[n] for n in columns)] = text
    across = list(dict.fromkeys(column for _, column in texts))
    lines = list(dict.fromkeys(line for line, _ in texts))
    order = {name: list(dict.fromkeys(where[name] for where, _ in cells)) for name in known}
    # Subjects first, then their mean, below each kind of run.
    lines.sort(key=lambda line: [order[n].index(one) for n, one in zip(shown, line, strict=True)])
    return Grid(
        title,
        shown,
        tuple(" ".join(column) for column in across),
        tuple((line, tuple(texts.get((line, column), "") for column in across)) for line in lines),
        notes,
    )


def _score_text(cell: Cell, metrics: Mapping[str, Metric]) -> str:
    metric = metrics[cell.metric]
    value = metric.text(cell.value)
    if not math.isfinite(cell.low):
        return value
    return f"{value} ± {metric.text((cell.high - cell.low) / 2)}"


def _gain_text(gain: Gain, metrics: Mapping[str, Metric]) -> str:
    metric = metrics[gain.metric]
    value = metric.gain_text(gain.value)
    if not math.isfinite(gain.low):
        return value
    low, high = (metric.text(v) for v in (gain.low, gain.high))
    star = "*" if gain.adjusted < SIGNIFICANT else ""
    return f"{value}{star} [{low}, {high}]"
