"""What of the scores goes to MLflow: a few metrics to sort by, and everything as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from raybrain import evaluation, outputs, tracking
from raybrain.evaluation import CEILING, MEAN_IMAGE, NEAREST_TRAINING, RANDOM_TRAINING, SYSTEM
from raybrain.stages import describing

if TYPE_CHECKING:
    from raybrain.config import Experiment
    from raybrain.evaluation import CategoryScore, LatentScores, Metric, Table
    from raybrain.tracking import Run

FLOORS = (MEAN_IMAGE, RANDOM_TRAINING, NEAREST_TRAINING, evaluation.SHUFFLED)
HEADLINE = ("two_way", "fifty_way", "distance", "pixcorr", "ssim")
MOST_HEADLINES = 5
MOST_METRICS = 29
"""Of a run, beside its seconds and what MLflow shows as system metrics."""


def headline(table: Table, *, latents: Mapping[str, LatentScores]) -> dict[str, Any]:
    """Return what is told of a run first: each metric between its floor and its ceiling.

    The floor is the best of the trivial rows. A protocol without a metric of `HEADLINE` is told by
    those that it has.
    """
    known = {metric.name: metric for metric in table.protocol.metrics}
    chosen = [known[name] for name in HEADLINE if name in known]
    chosen += [metric for metric in known.values() if metric not in chosen]
    return {
        "images": len(table.image_ids),
        "metrics": [_between(table, metric) for metric in chosen[:MOST_HEADLINES]],
        "targets": {
            name: scores.summary()
            for name, scores in latents.items()
            if name.replace(" ", "_").isidentifier() and " " not in name
        },
    }


def _between(table: Table, metric: Metric) -> dict[str, Any]:
    best = max if metric.higher_is_better else min
    floors = [_value(table, row, metric.name) for row in FLOORS if row in table.rows]
    known = [value for value in floors if value is not None]
    ceiling = _value(table, CEILING, metric.name) if CEILING in table.rows else None
    return {
        "name": metric.name,
        "label": f"{metric.group}, {metric.label}" if metric.group != "pixels" else metric.label,
        "percent": metric.percent,
        "chance": metric.chance,
        "floor": best(known) if known else None,
        "system": _value(table, SYSTEM, metric.name),
        "ceiling": ceiling,
    }


def _value(table: Table, row: str, metric: str) -> float | None:
    value = table.score(row=row, metric=metric).value
    return float(value) if np.isfinite(value) else None


def headline_metrics(told: Mapping[str, Any]) -> dict[str, float]:
    """Return `headline` as MLflow's metrics."""
    found: dict[str, float | None] = {}
    for one in told["metrics"]:
        name = one["name"]
        found |= {
            name: one["system"],
            f"{name}.floor": one["floor"],
            f"{name}.ceiling": one["ceiling"],
        }
    for target, numbers in told["targets"].items():
        found[f"{target}.r2"] = numbers.get("r2_mean")
        found[f"{target}.r2.ceiling"] = numbers.get("r2_ceiling_mean")
    return {name: value for name, value in found.items() if value is not None}


def target_metrics(
    latents: Mapping[str, LatentScores], *, retrieved: Mapping[str, float]
) -> dict[str, float]:
    """Return of every decoded target how well it identifies and retrieves the image seen."""
    found = {}
    for target, scores in latents.items():
        if " " in target:  # of single trials, which the table has
            continue
        found[f"{target}.two_way"] = scores.summary().get("two_way", float("nan"))
        for name, value in retrieved.items():
            if name.startswith(f"{target}.") and name.endswith("brain_to_image.centred"):
                found[f"{target}.retrieval"] = value
    return found


def category_metrics(categories: Mapping[str, CategoryScore]) -> dict[str, float]:
    """Return how well the categories are told apart."""
    found = {}
    for target, score in categories.items():
        found[f"{target}.category_accuracy"] = score.value
        found[f"{target}.category_accuracy_permuted"] = score.permuted
    return found


def row_metrics(table: Table, *, row: str) -> dict[str, float]:
    """Return all metrics of one row."""
    return {score.metric: score.value for score in table.scores if score.row == row}


def at_most(metrics: Mapping[str, float], *, most: int = MOST_METRICS) -> dict[str, float]:
    """Return the first so many that are finite; the tables have them all."""
    finite = {name: value for name, value in metrics.items() if np.isfinite(value)}
    return dict(list(finite.items())[:most])


def score_columns(table: Table) -> dict[str, list[Any]]:
    """Return the table with its intervals, a line per row and metric."""
    names = ("row", "metric", "value", "low", "high", "sd_samples", "n", "samples", "chance", "p")
    return {name: [_plain(getattr(score, name)) for score in table.scores] for name in names}


def decoded_columns(
    latents: Mapping[str, LatentScores], *, retrieved: Mapping[str, float]
) -> dict[str, list[Any]]:
    """Return everything known of the decoded targets, a line per target and number."""
    lines = [
        (target, name, value)
        for target, scores in latents.items()
        for name, value in scores.summary().items()
    ]
    for name, value in retrieved.items():
        target, _, what = name.partition(".")
        lines.append((target, what, value))
    columns = zip(*lines, strict=True) if lines else ((), (), ())
    return {
        name: [_plain(value) for value in column]
        for name, column in zip(("target", "number", "value"), columns, strict=True)
    }


def _plain(value: Any) -> Any:
    if isinstance(value, str | int):
        return value
    return float(value) if np.isfinite(value) else None


def complete_cards(
    experiment: Experiment, run: Run, *, latents: Mapping[str, LatentScores]
) -> None:
    """Tell on the cards of the registered decoders what the test images said of them."""
    if not experiment.tracking.models:
        return
    (test,) = describing.parts_of_data(experiment, test=True)
    for target, _ in outputs.targets(experiment):
        fitted = describing.fitted(experiment, target)
        if fitted is None or target not in latents:
            continue
        tested = latents[target].summary()
        numbers = {
            f"test_{name}": tested[name]
            for name in ("r2_mean", "r2_ceiling_mean", "two_way")
            if name in tested
        }
        tracking.describe_decoder(
            run,
            name=describing.registered_name(experiment, target),
            seal=outputs.decoder(experiment, target).seal.digest,
            card=describing.decoder_card(experiment, target, tested=tested, **fitted),
            metrics=numbers,
            dataset=test,
        )
