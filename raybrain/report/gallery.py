"""One self-contained HTML file in which a person judges the reconstructions and their scores."""

from __future__ import annotations

import base64
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raybrain.report.charts import Curve, chart
from raybrain.report.pictures import Images, Thumbnails

if TYPE_CHECKING:
    from raybrain.evaluation.protocols import Metric
    from raybrain.evaluation.strata import Stratum
    from raybrain.evaluation.table import Table

SHOWN = ("nearest training", "category oracle", "system", "ceiling")
"""Rows whose pictures the gallery shows, where they are given, in this order."""
STIMULI = frozenset({"seen", "nearest training", "random training", "ceiling"})
"""Pictures that are stimuli, or the stimuli passed through the generator's own encoder."""
PANEL = 3
"""Images in each of best, median and worst."""
DASH = "–"  # noqa: RUF001


@dataclass(frozen=True)
class Subject:
    """The images of a gallery, aligned by their first axis."""

    seen: Images
    """(image, y, x, rgb)."""
    rows: Mapping[str, Images]
    """Row name to (image, sample, y, x, rgb)."""
    captions: Sequence[str]
    groups: Sequence[str]
    """Category of each image; empty texts where there are none."""


def write_gallery(
    path: Path,
    *,
    title: str,
    table: Table,
    seen: Images,
    rows: Mapping[str, Images],
    captions: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    lead: str | None = None,
    system: str = "system",
    strata: Mapping[str, Sequence[Stratum]] | None = None,
    latents: Mapping[str, Mapping[str, float]] | None = None,
    curves: Mapping[str, Mapping[str, Curve]] | None = None,
    figures: Mapping[str, Path] | None = None,
    provenance: Mapping[str, Mapping[str, Any]] | None = None,
    withheld: str | None = None,
) -> Path:
    """Write the gallery and return its path; the file asks nothing of any network.

    Parameters
    ----------
    path
        Of the HTML file.
    title
        Usually the experiment's name.
    table
        From `evaluation.score_rows`; its `image_ids` name the images.
    seen
        (image, y, x, rgb), 0..255.
    rows
        Row name to (image, sample, y, x, rgb); those in `SHOWN` are pictured, the system with all
        its samples and the others with their first.
    captions, groups
        Of each image; ids and no categories when not given.
    lead
        One or two sentences under the title; made from the table when not given.
    system
        The row that ranks the images.
    strata
        Heading to the scores of groups of images (`evaluation.scores_by`).
    latents
        Target to named numbers (`LatentScores.summary`).
    curves
        Chart title to line name to (step, value) pairs.
    figures
        Caption to a PNG file, such as maps of the noise ceiling.
    provenance
        Heading to names and values.
    withheld
        Why stimuli may not be shown; given, they and what is made from them directly are left out.

    Raises
    ------
    ValueError
        If the images, captions and scores do not fit together.
    """
    count = len(table.image_ids)
    names = [str(c) for c in captions] if captions is not None else list(table.image_ids)
    categories = [str(g) for g in groups] if groups is not None else [""] * count
    pictured = {
        # One sample of what the system is compared with is enough to see what it is.
        name: rows[name] if name == system else rows[name][:, :1]
        for name in SHOWN
        if name in rows
    }
    lengths = {
        "scores": count,
        "seen": len(seen),
        "captions": len(names),
        "groups": len(categories),
        **{name: len(images) for name, images in pictured.items()},
    }
    if len(set(lengths.values())) != 1 or system not in pictured:
        raise ValueError(
            f"a gallery needs the row '{system}' and one entry per image everywhere; "
            f"found {lengths}"
        )
    subject = Subject(seen=seen, rows=pictured, captions=names, groups=categories)
    rank = ranking(table, row=system)
    tiles = count * (1 + sum(images.shape[1] for images in pictured.values()))
    thumbnails = Thumbnails(expected=tiles, edge=max(seen.shape[1], *_edges(pictured)))
    content = _data(
        table, subject=subject, rank=rank, system=system, thumbnails=thumbnails, withheld=withheld
    )
    page = _page(
        css=_asset("gallery.css"),
        js=_asset("gallery.js"),
        # Inside a script element only "<" could end it; JSON has another way to write it.
        data=json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        title=title,
        lead=lead if lead is not None else _lead(table, system=system),
        headline=_headline(table, system=system),
        panels=_panels(table, content=content, rank=rank, thumbnails=thumbnails, system=system),
        panels_note=_panels_note(table, samples=pictured[system].shape[1]),
        scores_note=_scores_note(table),
        score_groups=[
            {"name": name, "span": len(list(members))}
            for name, members in groupby(table.protocol.metrics, key=lambda m: m.group)
        ],
        metrics=[
            {"position": position, **_metric(m, table=table, system=system)}
            for position, m in enumerate(table.protocol.metrics)
        ],
        score_rows=_score_rows(table, system=system),
        p_values=[_p(table.score(row=system, metric=m.name).p) for m in table.protocol.metrics],
        differences=_differences(table, system=system),
        system=system,
        withheld=f"Stimuli are not shown: {withheld}" if withheld else "",
        n=count,
        tile=_tile_size(sum(images.shape[1] for images in pictured.values())),
        groups=[{"name": g, "count": k} for g, k in sorted(Counter(categories).items()) if g],
        columns=[
            {"position": position, "label": column["label"]}
            for position, column in enumerate(content["columns"])
            if column["kind"] != "seen"
        ],
        strata=[_strata(name, strata=lines, table=table) for name, lines in (strata or {}).items()],
        latents=_latent_lines(latents or {}),
        latent_columns=_latent_columns(latents or {}),
        charts=[chart(name, lines=lines) for name, lines in (curves or {}).items() if lines],
        figures=[
            {"caption": name, "source": _png_uri(file)} for name, file in (figures or {}).items()
        ],
        provenance=[
            {"title": name, "lines": [{"name": k, "value": _plain(v)} for k, v in facts.items()]}
            for name, facts in {"scores": _scoring_facts(table), **(provenance or {})}.items()
        ],
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(page, encoding="utf-8")
    part.replace(path)
    return path


def ranking(table: Table, *, row: str) -> NDArray[np.int64]:
    """Return the rank (image,) of each image, 1 for the best, by the protocol's ranking metrics.

    Ties on the first metric are broken by the next, and at last by position.
    """
    keys = []
    for name in table.protocol.ranking:
        sign = -1.0 if table.protocol.metric(name).higher_is_better else 1.0
        keys.append(np.nan_to_num(sign * table.per_image(row=row, metric=name), nan=np.inf))
    order = np.lexsort(keys[::-1])
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(1, len(order) + 1)
    return rank


def _data(
    table: Table,
    *,
    subject: Subject,
    rank: NDArray[np.int64],
    system: str,
    thumbnails: Thumbnails,
    withheld: str | None,
) -> dict[str, Any]:
    metrics = table.protocol.metrics
    columns = [{"label": "seen", "kind": "seen", "samples": 1}]
    columns += [
        {
            "label": "sample" if name == system else name,
            "kind": _kind(name, system=system),
            "samples": int(images.shape[1]),
        }
        for name, images in subject.rows.items()
    ]
    sets = {"seen": subject.seen[:, None], **subject.rows}

    def tiles(k: int) -> list[int]:
        return [
            -1 if withheld and name in STIMULI else thumbnails.add(image)
            for name, images in sets.items()
            for image in images[k]
        ]

    scores = {
        row: np.stack([table.per_image(row=row, metric=m.name) for m in metrics], axis=1)
        for row in table.rows
    }
    listed = [
        {
            "id": table.image_ids[k],
            "caption": subject.captions[k],
            "group": subject.groups[k],
            "rank": int(rank[k]),
            "tiles": tiles(k),
            "scores": _numbers(scores[system][k]),
        }
        for k in range(len(rank))
    ]
    return {
        "format": thumbnails.format,
        "pictures": thumbnails.encoded,
        "ranking": [m.name for m in metrics].index(table.protocol.ranking[0]),
        "metrics": [
            {
                "label": m.label,
                "group": m.group,
                "percent": m.percent,
                "higher": m.higher_is_better,
            }
            for m in metrics
        ],
        "columns": columns,
        "rows": [
            {
                "name": row,
                "system": row == system,
                "scores": [_numbers(line) for line in scores[row]],
            }
            for row in table.rows
        ],
        "images": listed,
    }


def _numbers(values: NDArray[np.float64]) -> list[float | None]:
    return [round(float(v), 5) if math.isfinite(v) else None for v in values]


def _headline(table: Table, *, system: str) -> dict[str, Any] | None:
    metric = table.protocol.metric(table.protocol.ranking[0])
    figures = []
    if metric.chance is not None:
        figures.append({"kind": "floor", "label": "chance", "value": _value(metric.chance, metric)})
    for row in ("shuffled brain", "nearest training", system, "ceiling"):
        if row in table.rows:
            score = table.score(row=row, metric=metric.name)
            figures.append(
                {
                    "kind": _kind(row, system=system),
                    "label": row,
                    "value": _value(score.value, metric),
                    "note": _range(score.low, score.high, metric),
                }
            )
    direction = "higher" if metric.higher_is_better else "lower"
    unit = "percent, " if metric.percent else ""
    about = f"{metric.description[:1].upper()}{metric.description[1:]}"
    return {"label": f"{about}; {unit}{direction} is better", "figures": figures}


def _lead(table: Table, *, system: str) -> str:
    samples = table.cells[system, table.protocol.metrics[0].name].shape[0]
    times = f"{samples} samples each" if samples > 1 else "one sample each"
    return f"{len(table.image_ids)} images reconstructed from brain activity, {times}."


def _panels(
    table: Table,
    *,
    content: dict[str, Any],
    rank: NDArray[np.int64],
    thumbnails: Thumbnails,
    system: str,
) -> list[dict[str, Any]]:
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
                    "score": _value(table.per_image(row=system, metric=metric.name)[k], metric),
                }
            )
        ranks = f"ranks {start + 1}{DASH}{start + PANEL} of {count}"
        panels.append({"label": label, "ranks": ranks, "pairs": pairs})
    return panels


def _panels_note(table: Table, *, samples: int) -> str:
    metrics = [table.protocol.metric(name) for name in table.protocol.ranking]
    by = f"{metrics[0].group} {metrics[0].label}"
    ties = f", ties by {metrics[1].group} {metrics[1].label}" if len(metrics) > 1 else ""
    which = f" Shown is the first of {samples} samples, whichever it is." if samples > 1 else ""
    return f"Chosen by rank, never by hand: {by}{ties}, averaged over samples.{which}"


def _scores_note(table: Table) -> str:
    return (
        f"Protocol {table.protocol.name} ({table.protocol.about}); n = {len(table.image_ids)} "
        f"images; 95 % intervals from {table.bootstrap:,} bootstrap resamples of the images; "
        f"p from {table.permutations:,} random pairings of reconstructions and images. Every "
        f"column has its own axis; the dashed line is chance. PixCorr and SSIM reward blur: read "
        f"them beside the mean image, which knows nothing of the brain."
    )


def _metric(metric: Metric, *, table: Table, system: str) -> dict[str, Any]:
    return {
        "name": metric.name,
        "label": metric.label,
        "group": metric.group,
        "description": metric.description,
        "higher": metric.higher_is_better,
        "chance": DASH if metric.chance is None else _value(metric.chance, metric),
        "sortable": math.isfinite(table.score(row=system, metric=metric.name).value),
    }


def _score_rows(table: Table, *, system: str) -> list[dict[str, Any]]:
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
                    "value": _value(score.value, metric),
                    "range": _range(score.low, score.high, metric),
                    "low": at(score.low),
                    "high": at(score.high),
                    "at": at(score.value),
                    "chance": None if metric.chance is None else at(metric.chance),
                }
            )
        kind = _kind(row, system=system)
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


def _differences(table: Table, *, system: str) -> list[dict[str, Any]]:
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
            sign = "+" if gain.value > 0 else ""
            cells.append(
                {
                    "text": sign + _value(gain.value, metric),
                    "range": _range(gain.low, gain.high, metric),
                    "kind": "clear" if gain.low > 0 or gain.high < 0 else "",
                }
            )
        lines.append({"name": row, "cells": cells})
    return lines


def _strata(name: str, *, strata: Sequence[Stratum], table: Table) -> dict[str, Any]:
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
                "value": _value(s.value, metric),
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
    "mse_of_mean": "MSE of the mean",
    "skill": "1 - MSE / MSE of the mean",
    "two_way": "two-way (chance .5)",
    "n": "images",
}


def _latent_columns(latents: Mapping[str, Mapping[str, float]]) -> list[str]:
    present = {name for numbers in latents.values() for name in numbers}
    return [text for name, text in _LATENT_NAMES.items() if name in present]


def _latent_lines(latents: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    present = {name for numbers in latents.values() for name in numbers}
    shown = [name for name in _LATENT_NAMES if name in present]
    return [
        {
            "name": target,
            "cells": [f"{numbers[name]:.4g}" if name in numbers else DASH for name in shown],
        }
        for target, numbers in latents.items()
    ]


def _scoring_facts(table: Table) -> dict[str, Any]:
    facts: dict[str, Any] = {"protocol": table.protocol.name, "images": len(table.image_ids)}
    return facts | {
        **{f"sha256 of {name}": digest for name, digest in table.weights.items()},
        "bootstrap resamples": table.bootstrap,
        "permutations": table.permutations,
        "seed": table.seed,
    }


def _kind(row: str, *, system: str) -> str:
    return "system" if row == system else "ceiling" if row == "ceiling" else "floor"


def _value(value: float, metric: Metric) -> str:
    if metric.percent:
        return f"{round(100 * value, 1) + 0.0:.1f}"
    text = f"{round(value, 3) + 0.0:.3f}"  # adding zero makes -0.000 a plain zero
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def _range(low: float, high: float, metric: Metric) -> str:
    return f"{_value(low, metric)} to {_value(high, metric)}"


def _p(p: float) -> str:
    if not math.isfinite(p):
        return DASH
    return "< .001" if p < 0.001 else f"{p:.3f}".replace("0.", ".", 1)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{k}: {_plain(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(v) for v in value)
    return DASH if value is None else str(value)


def _edges(rows: Mapping[str, Images]) -> list[int]:
    return [int(images.shape[2]) for images in rows.values()]


def _tile_size(drawn: int) -> int:
    # As large as lets one image's tiles stand on one line of a 1,240-pixel page.
    return int(np.clip((920 // (drawn + 1) - 9) // 4 * 4, 72, 132))


def _png_uri(file: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(Path(file).read_bytes()).decode()


def _asset(name: str) -> str:
    return (files("raybrain") / "assets" / "report" / name).read_text(encoding="utf-8")


def _page(*, css: str, js: str, data: str, **values: Any) -> str:
    from jinja2 import Environment
    from markupsafe import Markup

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_asset("gallery.html.j2"))
    return template.render(css=Markup(css), js=Markup(js), data=Markup(data), **values)
