"""What the gallery writes beside its pictures, as plain values for the template."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raybrain.report.pictures import Thumbnails

if TYPE_CHECKING:
    from raybrain.evaluation.declarations import Metric
    from raybrain.evaluation.published import Published
    from raybrain.evaluation.strata import Stratum
    from raybrain.evaluation.table import Table

PANEL = 3
"""Images in each of best, median and worst."""
DASH = "–"  # noqa: RUF001


def headline(table: Table, *, system: str) -> dict[str, Any] | None:
    """Return the cards at the top: chance, floors, system and ceiling on the ranking metric."""
    metric = table.protocol.metric(table.protocol.ranking[0])
    figures = []
    if metric.chance is not None:
        figures.append({"kind": "floor", "label": "chance", "value": metric.text(metric.chance)})
    for row in ("shuffled brain", "nearest training", system, "ceiling"):
        if row in table.rows:
            score = table.score(row=row, metric=metric.name)
            figures.append(
                {
                    "kind": kind_of(row, system=system),
                    "label": row,
                    "value": metric.text(score.value),
                    "note": _range(score.low, score.high, metric),
                }
            )
    direction = "higher" if metric.higher_is_better else "lower"
    unit = "percent, " if metric.percent else ""
    about = f"{metric.description[:1].upper()}{metric.description[1:]}"
    return {"label": f"{about}; {unit}{direction} is better", "figures": figures}


def lead(table: Table, *, system: str) -> str:
    """Return a sentence under the title."""
    samples = table.cells[system, table.protocol.metrics[0].name].shape[0]
    times = f"{samples} samples each" if samples > 1 else "one sample each"
    return f"{len(table.image_ids)} images reconstructed from brain activity, {times}."


def panels(
    table: Table,
    *,
    content: dict[str, Any],
    rank: NDArray[np.int64],
    thumbnails: Thumbnails,
    system: str,
) -> list[dict[str, Any]]:
    """Return the pictures of the best, median and worst images by rank; none if there are few."""
    count = len(rank)
    if count < 3 * PANEL:
        return []
    order = np.argsort(rank)
    middle = (count - PANEL) // 2
    metric = table.protocol.metric(table.protocol.ranking[0])
    before = [column["kind"] for column in content["columns"]].index("system")
    drawn = sum(column["samples"] for column in content["columns"][:before])
    panels = []
    for label, start in (("Best", 0), ("Median", middle), ("Worst", count - PANEL)):
        pairs = []
        for k in order[start : start + PANEL]:
            image = content["images"][k]
            pairs.append(
                {
                    "caption": image["caption"],
                    "rank": image["rank"],
                    "seen": thumbnails.uri(image["tiles"][0]) if image["tiles"][0] >= 0 else "",
                    "drawn": thumbnails.uri(image["tiles"][drawn]),
                    "score": metric.text(table.per_image(row=system, metric=metric.name)[k]),
                }
            )
        ranks = f"ranks {start + 1}{DASH}{start + PANEL} of {count}"
        panels.append({"label": label, "ranks": ranks, "pairs": pairs})
    return panels


def panels_note(table: Table, *, samples: int) -> str:
    """Return how the pictures of the panels were chosen."""
    metrics = [table.protocol.metric(name) for name in table.protocol.ranking]
    by = f"{metrics[0].group} {metrics[0].label}"
    ties = f", ties by {metrics[1].group} {metrics[1].label}" if len(metrics) > 1 else ""
    which = f" Shown is the first of {samples} samples, whichever it is." if samples > 1 else ""
    return f"Chosen by rank, never by hand: {by}{ties}, averaged over samples.{which}"


def scores_note(table: Table) -> str:
    """Return what has to be known to read the scores."""
    return (
        f"Protocol {table.protocol.name} ({table.protocol.about}); n = {len(table.image_ids)} "
        f"images; 95 % intervals from {table.bootstrap:,} bootstrap resamples of the images; "
        f"p from {table.permutations:,} random pairings of reconstructions and images. Every "
        f"column has its own axis; the dashed line is chance. PixCorr and SSIM reward blur: read "
        f"them beside the mean image, which knows nothing of the brain."
    )


def metric_head(metric: Metric, *, table: Table, system: str) -> dict[str, Any]:
    """Return the head of a column."""
    return {
        "name": metric.name,
        "label": metric.label,
        "group": metric.group,
        "description": metric.description,
        "higher": metric.higher_is_better,
        "chance": DASH if metric.chance is None else metric.text(metric.chance),
        "sortable": math.isfinite(table.score(row=system, metric=metric.name).value),
    }


def score_lines(table: Table, *, system: str) -> list[dict[str, Any]]:
    """Return the rows of the score table with their intervals in percent of the axis."""
    axes = {m.name: _axis(m, table=table) for m in table.protocol.metrics}
    lines = []
    for row in table.rows:
        cells: list[dict[str, Any]] = []
        for metric in table.protocol.metrics:
            score = table.score(row=row, metric=metric.name)
            if not math.isfinite(score.value):
                cells.append({"value": ""})
                continue
            low, high = axes[metric.name]

            def at(value: float, low: float = low, high: float = high) -> float:
                return round(100.0 * (value - low) / (high - low), 2)

            cells.append(
                {
                    "value": metric.text(score.value),
                    "range": _range(score.low, score.high, metric),
                    "low": at(score.low),
                    "high": at(score.high),
                    "at": at(score.value),
                    "chance": None if metric.chance is None else at(metric.chance),
                }
            )
        kind = kind_of(row, system=system)
        lines.append({"name": row, "kind": kind, "cells": cells, "about": table.about.get(row, "")})
    return lines


def _axis(metric: Metric, *, table: Table) -> tuple[float, float]:
    ends = [e for s in table.scores if s.metric == metric.name for e in (s.low, s.high)]
    ends = [e for e in ends if math.isfinite(e)]
    if metric.chance is not None:
        ends.append(metric.chance)
    if not ends:
        return 0.0, 1.0
    pad = 0.04 * (max(ends) - min(ends)) or 0.5
    return min(ends) - pad, max(ends) + pad


def difference_lines(table: Table, *, system: str) -> list[dict[str, Any]]:
    """Return what the system adds to every other row, paired over images."""
    others = [row for row in table.rows if row not in (system, "ceiling")]
    found = {(d.than, d.metric): d for d in table.differences(better=system, than=others)}
    lines = []
    for row in others:
        cells = []
        for metric in table.protocol.metrics:
            gain = found[row, metric.name]
            if not math.isfinite(gain.value):
                cells.append({"text": DASH, "range": "", "kind": ""})
                continue
            cells.append(
                {
                    "text": metric.gain_text(gain.value),
                    "range": _range(gain.low, gain.high, metric),
                    "kind": "clear" if gain.low > 0 or gain.high < 0 else "",
                }
            )
        lines.append({"name": row, "cells": cells})
    return lines


def stratum_lines(name: str, *, strata: Sequence[Stratum], table: Table) -> dict[str, Any]:
    """Return the scores of groups of images, drawn on one axis."""
    metric = table.protocol.metric(strata[0].metric)
    whole = table.score(row=strata[0].row, metric=metric.name).value
    ends = [end for s in strata for end in (s.low, s.high)] + [whole]
    if metric.chance is not None:
        ends.append(metric.chance)
    low, high = min(ends), max(ends)
    span = (high - low) or 1.0

    def at(value: float) -> float:
        return round(2.0 + 96.0 * (value - low) / span, 2)

    return {
        "title": name,
        "about": f"{strata[0].row}, {metric.group} {metric.label}",
        "chance": None if metric.chance is None else at(metric.chance),
        "whole": at(whole),
        "lines": [
            {
                "label": s.label,
                "n": s.n,
                "value": metric.text(s.value),
                "range": _range(s.low, s.high, metric),
                "low": at(s.low),
                "high": at(s.high),
                "at": at(s.value),
            }
            for s in strata
        ],
    }


_LATENT_NAMES = {
    "pearson_mean": "Pearson r, mean",
    "r2_mean": "R², mean",
    "r2_median": "R², median",
    "r2_ceiling_mean": "R² ceiling, mean",
    "mse": "MSE",
    "mse_of_ridge": "MSE of ridge",
    "mse_of_mean": "MSE of the mean",
    "skill": "1 - MSE / MSE of the mean",
    "two_way": "two-way (chance .5)",
    "n": "images",
}


def latent_columns(latents: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the heads of the table of decoded targets."""
    present = {name for numbers in latents.values() for name in numbers}
    return [text for name, text in _LATENT_NAMES.items() if name in present]


def latent_lines(latents: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Return the rows of the table of decoded targets."""
    present = {name for numbers in latents.values() for name in numbers}
    shown = [name for name in _LATENT_NAMES if name in present]
    return [
        {
            "name": target,
            "cells": [f"{numbers[name]:.4g}" if name in numbers else DASH for name in shown],
        }
        for target, numbers in latents.items()
    ]


def scoring_facts(table: Table) -> dict[str, Any]:
    """Return how the scores were made, by name."""
    facts: dict[str, Any] = {"protocol": table.protocol.name, "images": len(table.image_ids)}
    return facts | {
        **{f"sha256 of {name}": digest for name, digest in table.weights.items()},
        "bootstrap resamples": table.bootstrap,
        "permutations": table.permutations,
        "seed": table.seed,
    }


def kind_of(row: str, *, system: str) -> str:
    """Return whether a row is the system, the ceiling or a floor."""
    return "system" if row == system else "ceiling" if row == "ceiling" else "floor"


def _range(low: float, high: float, metric: Metric) -> str:
    return f"{metric.text(low)} to {metric.text(high)}"


def p_text(p: float) -> str:
    """Return a p value as people write it."""
    if not math.isfinite(p):
        return DASH
    return "< .001" if p < 0.001 else f"{p:.3f}".replace("0.", ".", 1)


def plain(value: Any) -> str:
    """Return any setting as one line of text."""
    if isinstance(value, Mapping):
        return "; ".join(f"{k}: {plain(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(plain(v) for v in value)
    return DASH if value is None else str(value)


def published_lines(published: Sequence[Published], *, table: Table) -> list[dict[str, Any]]:
    """Return the rows of the table of published scores."""
    return [
        {
            "name": one.system,
            "source": one.source,
            "cells": [
                m.text(one.scores[m.name]) if m.name in one.scores else DASH
                for m in table.protocol.metrics
            ],
        }
        for one in published
    ]
