"""One self-contained HTML file in which a person judges the reconstructions and their scores."""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raybrain.report import sections
from raybrain.report.charts import Curve, chart
from raybrain.report.page import write_page
from raybrain.report.pictures import Images, Thumbnails

if TYPE_CHECKING:
    from raybrain.evaluation.published import Published
    from raybrain.evaluation.strata import Stratum
    from raybrain.evaluation.table import Table

SHOWN = (
    "nearest training",
    "category oracle",
    "latents only",
    "embedding only",
    "system",
    "ceiling",
)
"""Rows whose pictures the gallery shows, where they are given, in this order."""
STIMULI = frozenset({"seen", "nearest training", "random training", "ceiling"})
"""Pictures that are stimuli, or the stimuli passed through the generator's own encoder."""


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
    published: Sequence[Published] = (),
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
    published
        Scores that may stand beside these (`evaluation.published_for`).
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
    return write_page(
        path,
        template="gallery.html.j2",
        script="gallery.js",
        content=content,
        title=title,
        lead=lead if lead is not None else sections.lead(table, system=system),
        headline=sections.headline(table, system=system),
        panels=sections.panels(
            table, content=content, rank=rank, thumbnails=thumbnails, system=system
        ),
        panels_note=sections.panels_note(table, samples=pictured[system].shape[1]),
        scores_note=sections.scores_note(table),
        score_groups=[
            {"name": name, "span": len(list(members))}
            for name, members in groupby(table.protocol.metrics, key=lambda m: m.group)
        ],
        metrics=[
            {"position": position, **sections.metric_head(m, table=table, system=system)}
            for position, m in enumerate(table.protocol.metrics)
        ],
        score_rows=sections.score_lines(table, system=system),
        p_values=[
            sections.p_text(table.score(row=system, metric=m.name).p)
            for m in table.protocol.metrics
        ],
        differences=sections.difference_lines(table, system=system),
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
        published=sections.published_lines(published, table=table),
        strata=[
            sections.stratum_lines(name, strata=lines, table=table)
            for name, lines in (strata or {}).items()
        ],
        latents=sections.latent_lines(latents or {}),
        latent_columns=sections.latent_columns(latents or {}),
        charts=[chart(name, lines=lines) for name, lines in (curves or {}).items() if lines],
        figures=[
            {"caption": name, "source": _png_uri(file)} for name, file in (figures or {}).items()
        ],
        provenance=[
            {
                "title": name,
                "lines": [{"name": k, "value": sections.plain(v)} for k, v in facts.items()],
            }
            for name, facts in {
                "scores": sections.scoring_facts(table),
                **(provenance or {}),
            }.items()
        ],
    )


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
            "kind": sections.kind_of(name, system=system),
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


def _edges(rows: Mapping[str, Images]) -> list[int]:
    return [int(images.shape[2]) for images in rows.values()]


def _tile_size(drawn: int) -> int:
    # As large as lets one image's tiles stand on one line of a 1,240-pixel page.
    return int(np.clip((920 // (drawn + 1) - 9) // 4 * 4, 72, 132))


def _png_uri(file: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(Path(file).read_bytes()).decode()
