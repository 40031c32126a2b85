"""Many runs side by side: each subject by itself, the mean over subjects, and what is gained.

Within a subject the unit is the image; across subjects it is the subject, so the two have intervals
of their own. A gain is a paired difference from the baseline run of the same subject.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raybrain.config import InputError
from raybrain.evaluation.declarations import Metric, Protocol
from raybrain.evaluation.statistics import bootstrap, holm, mean_of_few, sign_flip_p
from raybrain.evaluation.table import Table

Key = tuple[str, ...]
"""Labels of a run on the axes along which the subject stays the same."""
EVERYONE = ""
"""Stands for the mean over subjects where a subject is named."""
CORRECTION = "Holm's step-down method (Holm 1979)"


@dataclass(frozen=True)
class Scored:
    """One run with its table."""

    run: str
    key: Key
    dataset: str
    subject: str
    table: Table


@dataclass(frozen=True)
class Cell:
    """A score of one kind of run, for one subject or in the mean over subjects."""

    key: Key
    dataset: str
    subject: str
    metric: str
    value: float
    """In the unit of the metric."""
    low: float
    """95 % interval: bootstrap over images, or Student's t over subjects."""
    high: float
    """Upper end of the interval."""
    n: int
    """Images, or subjects."""


@dataclass(frozen=True)
class Gain:
    """What one kind of run is better by than the baseline, positive whatever the metric's sense."""

    key: Key
    than: Key
    dataset: str
    subject: str
    metric: str
    value: float
    """Mean difference, in the unit of the metric."""
    low: float
    """Lower end of the 95 % interval: paired bootstrap over images, or Student's t over subjects.
    """
    high: float
    """Upper end of the interval."""
    p: float
    """Within a subject by random signs of the images' differences, across subjects by t."""
    adjusted: float
    """Corrected for all differences of the comparison that have the same unit, by Holm's step-down
    method (Holm 1979)."""
    n: int
    """Images, or subjects."""


@dataclass(frozen=True)
class Beside:
    """A floor or the ceiling of one dataset: the mean over its runs, and how far they differ."""

    dataset: str
    row: str
    metric: str
    value: float
    least: float
    most: float
    runs: int


@dataclass(frozen=True)
class Across:
    """Everything that is told of several runs."""

    protocol: Protocol
    metrics: tuple[Metric, ...]
    cells: tuple[Cell, ...]
    gains: tuple[Gain, ...]
    beside: tuple[Beside, ...]
    unpaired: tuple[str, ...]
    """Runs whose images are not those of their baseline, so that no difference was taken."""
    resamples: int
    """Of the images, for the intervals within a subject."""


def across_runs(
    scored: Sequence[Scored],
    *,
    baselines: Mapping[str, Key],
    row: str = "system",
    metrics: Sequence[str] = (),
    beside: Sequence[str] = (),
    resamples: int = 10_000,
    seed: int = 0,
) -> Across:
    """Return the scores of runs by subject and over subjects, and their gains on a baseline.

    Parameters
    ----------
    scored : sequence of Scored
        All under one protocol.
    baselines : mapping
        Dataset -> key of the runs that the others of that dataset are compared with.
    row : str
        Of every table.
    metrics : sequence of str
        Of the protocol; all when empty. Those without a value are left out.
    beside : sequence of str
        Floors and ceilings to tell of, where the tables have them.
    resamples : int
        Of images, and random signs.
    seed : int
        Of both.

    Raises
    ------
    InputError
        If protocols differ, or a metric or the row is not there.
    """
    protocol = _protocol(scored)
    for name in metrics:
        if name not in {one.name for one in protocol.metrics}:
            raise InputError(
                f"compare.metrics names '{name}', but {protocol.name} measures "
                f"{', '.join(one.name for one in protocol.metrics)}; name one of these"
            )
    for one in scored:
        if row not in one.table.rows:
            raise InputError(
                f"compare.row is '{row}', but the run '{one.run}' has {', '.join(one.table.rows)}; "
                f"name one of these"
            )
    chosen = tuple(
        metric
        for metric in protocol.metrics
        if (not metrics or metric.name in metrics)
        and all(np.isfinite(one.table.score(row=row, metric=metric.name).value) for one in scored)
    )
    cells = [
        Cell(
            one.key, one.dataset, one.subject, metric.name, score.value, score.low, score.high,
            score.n,
        )
        for one in scored
        for metric in chosen
        for score in [one.table.score(row=row, metric=metric.name)]
    ]  # fmt: skip
    gains, unpaired = _gains(
        scored, chosen, baselines=baselines, row=row, resamples=resamples, seed=seed
    )
    return Across(
        protocol=protocol,
        metrics=chosen,
        cells=(*cells, *_mean_cells(cells)),
        gains=(*_adjusted(gains), *_adjusted(list(_mean_gains(gains)))),
        beside=tuple(_beside(scored, chosen, rows=beside)),
        unpaired=tuple(unpaired),
        resamples=resamples,
    )


def _protocol(scored: Sequence[Scored]) -> Protocol:
    if not scored:
        raise InputError("there is no finished run to compare")
    first = scored[0]
    for one in scored[1:]:
        if one.table.protocol.name != first.table.protocol.name:
            raise InputError(
                f"scores of different protocols cannot be compared: {first.run} has "
                f"{first.table.protocol.name}, {one.run} has {one.table.protocol.name}"
            )
    return first.table.protocol


def _gains(
    scored: Sequence[Scored],
    metrics: Sequence[Metric],
    *,
    baselines: Mapping[str, Key],
    row: str,
    resamples: int,
    seed: int,
) -> tuple[list[Gain], list[str]]:
    found: list[Gain] = []
    unpaired: list[str] = []
    for base in scored:
        if baselines.get(base.dataset) != base.key or not metrics:
            continue
        others = [
            one
            for one in scored
            if (one.dataset, one.subject) == (base.dataset, base.subject) and one.key != base.key
        ]
        alike = [one for one in others if set(one.table.image_ids) == set(base.table.image_ids)]
        unpaired += [one.run for one in others if one not in alike]
        if not alike:
            continue
        columns = [
            _gain(one.table, than=base.table, row=row, metric=metric)
            for one in alike
            for metric in metrics
        ]
        differences = np.stack(columns, axis=1)
        interval = bootstrap(differences, resamples=resamples, seed=seed)
        ps = sign_flip_p(differences, flips=resamples, seed=seed)
        places = [(one, metric) for one in alike for metric in metrics]
        for k, (one, metric) in enumerate(places):
            found.append(
                Gain(
                    one.key, base.key, one.dataset, one.subject, metric.name,
                    float(differences[:, k].mean()), float(interval.low[k]),
                    float(interval.high[k]), float(ps[k]), np.nan, len(differences),
                )
            )  # fmt: skip
    return found, unpaired


def _gain(table: Table, *, than: Table, row: str, metric: Metric) -> NDArray[np.float64]:
    """Return (image,) differences in the order of the baseline's images."""
    place = {image: k for k, image in enumerate(table.image_ids)}
    order = [place[image] for image in than.image_ids]
    gain = table.per_image(row=row, metric=metric.name)[order] - than.per_image(
        row=row, metric=metric.name
    )
    return gain if metric.higher_is_better else -gain


def _mean_cells(cells: Sequence[Cell]) -> Iterator[Cell]:
    """Yield the mean over subjects of every kind of run that several subjects have."""
    groups: dict[tuple[Key, str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.key, cell.dataset, cell.metric), []).append(cell)
    for (key, dataset, metric), members in groups.items():
        if len({cell.subject for cell in members}) > 1:
            mean = mean_of_few(np.array([cell.value for cell in members]))
            yield Cell(
                key, dataset, EVERYONE, metric, mean.value, mean.low, mean.high, len(members)
            )


def _mean_gains(gains: Sequence[Gain]) -> Iterator[Gain]:
    groups: dict[tuple[Key, Key, str, str], list[Gain]] = {}
    for gain in gains:
        groups.setdefault((gain.key, gain.than, gain.dataset, gain.metric), []).append(gain)
    for members in groups.values():
        if len(members) > 1:
            mean = mean_of_few(np.array([gain.value for gain in members]))
            yield replace(
                members[0], subject=EVERYONE, value=mean.value, low=mean.low, high=mean.high,
                p=mean.p, n=len(members),
            )  # fmt: skip


def _adjusted(gains: list[Gain]) -> list[Gain]:
    adjusted = holm(np.array([gain.p for gain in gains]))
    return [replace(gain, adjusted=float(p)) for gain, p in zip(gains, adjusted, strict=True)]


def _beside(
    scored: Sequence[Scored], metrics: Sequence[Metric], *, rows: Sequence[str]
) -> Iterator[Beside]:
    for dataset in dict.fromkeys(one.dataset for one in scored):
        for row in rows:
            tables = [
                one.table for one in scored if one.dataset == dataset and row in one.table.rows
            ]
            for metric in metrics if tables else ():
                values = np.array([one.score(row=row, metric=metric.name).value for one in tables])
                yield Beside(
                    dataset, row, metric.name, float(values.mean()), float(values.min()),
                    float(values.max()), len(values),
                )  # fmt: skip


Unit = Literal["images", "subjects"]


def unit_of(subject: str) -> Unit:
    """Return over what the interval of a subject's line, or of everyone's, is."""
    return "subjects" if subject == EVERYONE else "images"
