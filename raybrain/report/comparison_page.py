"""One self-contained HTML file that sets the runs of a sweep side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raybrain.report.charts import Curve, chart
from raybrain.report.page import write_page
from raybrain.report.pictures import Thumbnails


def write_comparison(
    path: Path,
    *,
    title: str,
    lead: str,
    metrics: Sequence[Mapping[str, Any]],
    heads: Sequence[str],
    scores: Sequence[Mapping[str, Any]],
    gains: Sequence[Mapping[str, Any]],
    grids: Sequence[Mapping[str, Any]],
    correction: str,
    curves: Mapping[str, Mapping[str, Curve]],
    brains: Sequence[Mapping[str, Any]],
) -> Path:
    """Write the page and return its path.

    Parameters
    ----------
    path
        Of the HTML file.
    title, lead
        At the top.
    metrics
        ``name``, ``label``, ``percent``, ``higher`` and ``about`` of each.
    heads
        Of the labels that tell lines apart.
    scores, gains
        Lines: ``labels``, whether they are a ``mean`` over subjects, ``n``, and ``values``: label
        of the metric to [value, low, high, corrected p].
    grids
        Further tables: ``title``, ``heads``, of which the first ``named`` are labels, ``rows`` of
        texts and ``notes``.
    correction
        For how many comparisons p was corrected, by its name.
    curves
        Title to name to (x, y) pairs.
    brains
        ``name``, ``ids``, ``captions``, ``seen`` (image, y, x, rgb) and ``runs``: name to
        (image, y, x, rgb), all of the same images.
    """
    tiles = sum(len(brain["ids"]) * (1 + len(brain["runs"])) for brain in brains)
    edge = max((images.shape[1] for brain in brains for images in _all(brain)), default=64)
    thumbnails = Thumbnails(expected=tiles, edge=edge)
    shown = [
        {
            "name": brain["name"],
            "columns": ["seen", *brain["runs"]],
            "images": [
                {
                    "id": image_id,
                    "caption": caption,
                    "tiles": [thumbnails.add(images[k]) for images in _all(brain)],
                }
                for k, (image_id, caption) in enumerate(
                    zip(brain["ids"], brain["captions"], strict=True)
                )
            ],
        }
        for brain in brains
    ]
    return write_page(
        path,
        template="comparison.html.j2",
        script="comparison.js",
        styles=("comparison.css",),
        content={
            "metrics": list(metrics),
            "heads": list(heads),
            "scores": list(scores),
            "gains": list(gains),
            "brains": shown,
            "format": thumbnails.format,
            "pictures": thumbnails.encoded,
        },
        title=title,
        lead=lead,
        metrics=metrics,
        heads=heads,
        scores=scores,
        gains=gains,
        grids=grids,
        correction=correction,
        charts=[chart(name, lines=lines) for name, lines in curves.items() if lines],
        brains=[brain["name"] for brain in shown],
    )


def _all(brain: Mapping[str, Any]) -> list[Any]:
    return [brain["seen"], *brain["runs"].values()]
