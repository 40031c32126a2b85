"""The runs of a sweep side by side: scores, gains, floors and pictures, in every form."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raybrain import outputs, places, report, seal, store, tracking
from raybrain.config import InputError, flatten
from raybrain.evaluation import (
    CORRECTION,
    EVERYONE,
    Across,
    Cell,
    Gain,
    Grid,
    Scored,
    across_runs,
    beside_grid,
    coordinates,
    gain_grid,
    label_of,
    load_table,
    mean_of_few,
    score_grid,
)
from raybrain.outputs import Output
from raybrain.seal import Seal
from raybrain.stages import decoded, describing
from raybrain.stages.drawing import SYSTEM
from raybrain.stages.scoring import DECODERS, ERRORS, SCORES

if TYPE_CHECKING:
    from raybrain.config import Curve, Experiment
    from raybrain.stages.decoded import Decoded
    from raybrain.sweeps import Runs, SweepRun

TEXT, MARKDOWN, LATEX, PAGE = (
    "comparison.txt", "comparison.md", "comparison.tex", "comparison.html",
)  # fmt: skip


NO_TAG = r"[^\w.: /-]"
"""What MLflow does not take in the name of a tag."""


@dataclass(frozen=True)
class Finished:
    """A run with what its report holds."""

    run: SweepRun
    scored: Scored
    decoded: Mapping[str, Mapping[str, float]]
    """Target -> named numbers."""
    errors: Mapping[str, np.ndarray]
    """``target/what`` -> (image,) squared errors."""

    @property
    def experiment(self) -> Experiment:
        """Return the experiment."""
        return self.run.experiment


def contrast(runs: Runs, *, whole: Sequence[str], recorded: tracking.Work) -> str:
    """Set the runs that are whole side by side; return the text and where the files are.

    What was written of the same reports is left as it is, and nothing is recorded.

    Parameters
    ----------
    runs : Runs
    whole : sequence of str
        Names of the runs that are.
    recorded : tracking.Work
        The sweep's.
    """
    chosen = [run for run in runs.runs if run.experiment.name in whole]
    output = output_of(runs, chosen)
    if seal.status(output.folder, wanted=output.seal).state != "sealed":
        seal.begin(output.folder, wanted=output.seal, on_change="replace")
        with places.writing(output.folder) as folder:
            finished = [_finished(run, runs=runs) for run in chosen]
            _write(runs, finished, folder=folder)
            _log(finished, recorded=recorded, sweep=runs.sweep.name, folder=folder)
        seal.finish(output.folder, seal=output.seal)
    document = runs.sweep.compare.document
    if document is not None:
        places.write_text(document, places.read_text(f"{output.folder}/{MARKDOWN}"))
    text = places.read_text(f"{output.folder}/{TEXT}")
    written = f"written  {document}\n" if document is not None else ""
    return f"{text}\n{written}page     {output.folder}/{PAGE}"


def description(runs: Runs, *, status: str) -> str:
    """Return what the sweep's run in MLflow says: its axes and, once there, its tables."""
    axes = ", ".join(f"{axis} ({len(labels)})" for axis, labels in runs.axes.items())
    told = f"{len(runs.runs)} runs over {axes}."
    page = Path(runs.folder, "comparison", MARKDOWN)
    if status != "FINISHED" or places.is_remote(runs.folder) or not page.is_file():
        return told
    _title, _, tables = page.read_text().partition("\n\n")
    return f"{told}\n\n{tables}"


def output_of(runs: Runs, chosen: Sequence[SweepRun]) -> Output:
    """Return the comparison of some runs of a sweep."""
    settings = {
        "compare": runs.sweep.compare.model_dump(mode="json"),
        "labels": {run.experiment.name: dict(run.labels) for run in chosen},
    }
    inputs = {run.experiment.name: outputs.report(run.experiment).seal.digest for run in chosen}
    return Output("sweep", f"{runs.folder}/comparison", Seal("sweep", settings, inputs))


def _finished(run: SweepRun, *, runs: Runs) -> Finished:
    experiment = run.experiment
    key = tuple(label for axis, label in run.labels.items() if axis not in runs.of_subjects)
    with places.reading(outputs.report(experiment).folder) as folder:
        errors: dict[str, np.ndarray] = {}
        if (folder / ERRORS).is_file():
            with np.load(folder / ERRORS, allow_pickle=False) as file:
                errors = {name: file[name] for name in file.files}
        return Finished(
            run,
            Scored(
                experiment.name,
                key,
                Path(experiment.dataset).stem,
                experiment.subject,
                load_table(folder / SCORES),
            ),
            json.loads((folder / DECODERS).read_text()),
            errors,
        )


def axes_of(runs: Runs) -> tuple[str, ...]:
    """Return the axes along which the subject stays the same."""
    return tuple(axis for axis in runs.axes if axis not in runs.of_subjects)


def _baselines(runs: Runs, finished: Sequence[Finished]) -> dict[str, tuple[str, ...]]:
    """Return dataset -> key of what its other runs are compared with."""
    wanted = tuple(
        runs.sweep.compare.baseline.get(axis, next(iter(runs.axes[axis]))) for axis in axes_of(runs)
    )
    found = {}
    for one in finished:
        alike = [other for other in finished if other.scored.dataset == one.scored.dataset]
        keys = [other.scored.key for other in alike]
        if wanted in keys:
            found[one.scored.dataset] = wanted
        elif not runs.sweep.compare.baseline:
            found[one.scored.dataset] = keys[0]
    return found


def _write(runs: Runs, finished: Sequence[Finished], *, folder: Path) -> None:
    compare, axes = runs.sweep.compare, axes_of(runs)
    across = across_runs(
        [one.scored for one in finished],
        baselines=_baselines(runs, finished),
        row=compare.row,
        metrics=compare.metrics,
        beside=compare.beside,
        resamples=finished[0].experiment.evaluate.bootstrap,
        seed=finished[0].experiment.seed,
    )
    lines = decoded.decoded_lines(finished)
    grids = grids_of(runs, across, lines=lines)
    curves = [_curve(curve, across, finished, axes=axes) for curve in compare.curves]
    texts = [grid.to_text() for grid in grids]
    if across.unpaired:
        texts.append(
            f"not compared with their baseline, for they were scored on other images: "
            f"{', '.join(across.unpaired)}"
        )
    (folder / TEXT).write_text("\n\n".join(texts) + "\n")
    (folder / LATEX).write_text("\n".join(grid.to_latex() for grid in grids))
    for name, found in (("scores", across.cells), ("differences", across.gains)):
        _csv(folder / f"{name}.csv", [_numbers(one, axes=axes) for one in found])
    _csv(folder / "beside.csv", [asdict(one) for one in across.beside])
    _csv(folder / "decoded.csv", [asdict(line) for line in lines])
    for curve, drawn in zip(compare.curves, curves, strict=True):
        name = re.sub(r"\W+", "_", f"curve_{curve.metric}")
        report.curve_figure(
            drawn.lines, title=drawn.title, x=drawn.x, y=drawn.y, folder=folder, name=name
        )
    document = _document(runs, finished, across, grids=grids, lines=lines)
    (folder / MARKDOWN).write_text(document)
    report.write_comparison(
        folder / PAGE,
        title=runs.sweep.name,
        lead=_lead(finished, across),
        metrics=[
            {
                "name": metric.name,
                "label": label_of(metric),
                "percent": metric.percent,
                "higher": metric.higher_is_better,
                "about": metric.description,
            }
            for metric in across.metrics
        ],
        heads=["dataset", *axes, "subject"],
        scores=_page_lines(across.cells, axes=axes, across=across),
        gains=_page_lines(across.gains, axes=axes, across=across),
        grids=[_page_grid(grid) for grid in grids[2:]],
        correction=CORRECTION,
        curves={drawn.title: drawn.points for drawn in curves},
        brains=list(_pictures(finished, count=compare.images)),
    )


def grids_of(runs: Runs, across: Across, *, lines: Sequence[Decoded]) -> list[Grid]:
    """Return the tables: scores, gains, floors and ceiling, decoded targets."""
    compare, axes = runs.sweep.compare, axes_of(runs)
    placed: dict[str, Any] = {"axes": axes, "rows": compare.rows, "columns": compare.columns}
    grids = [score_grid(across, **placed)]
    gains = gain_grid(across, **placed, correction=CORRECTION) if across.gains else None
    grids.append(gains or Grid("Gains: there is one kind of run", ("dataset",), (), ()))
    return [*grids, beside_grid(across), decoded.decoded_grid(lines)]


def _csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    import pandas

    # Without an order of its own a frame has the order of the runs, so equal runs are equal bytes.
    path.write_text(pandas.DataFrame(list(rows)).to_csv(index=False) if rows else "\n")


def _numbers(one: Cell | Gain, *, axes: Sequence[str]) -> dict[str, Any]:
    """Return a line of a file: where a number stands, as tables say it, and all that it is."""
    values = {
        name: ", ".join(value) if name == "than" else value
        for name, value in asdict(one).items()
        if name not in ("key", "dataset", "subject", "metric")
    }
    return {**coordinates(one, axes=axes), **values}


def _page_lines(
    found: Sequence[Any], *, axes: Sequence[str], across: Across
) -> list[dict[str, Any]]:
    """Return one line per kind of run and subject: its labels and [value, low, high, p]."""
    metrics = {metric.name: metric for metric in across.metrics}
    lines: dict[tuple[str, ...], dict[str, Any]] = {}
    for one in found:
        where = coordinates(one, axes=axes, metric=metrics[one.metric])
        metric = where.pop("metric")
        line = lines.setdefault(
            tuple(where.values()),
            {
                "labels": list(where.values()),
                "mean": one.subject == EVERYONE,
                "n": one.n,
                "values": {},
            },
        )
        numbers = [one.value, one.low, one.high, getattr(one, "adjusted", None)]
        line["values"][metric] = [
            None if value is None or not np.isfinite(value) else round(float(value), 6)
            for value in numbers
        ]
    return list(lines.values())


def _page_grid(grid: Grid) -> dict[str, Any]:
    return {
        "title": grid.title,
        "heads": [*grid.heads, *grid.columns],
        "named": len(grid.heads),
        "rows": [[*labels, *cells] for labels, cells in grid.rows],
        "notes": " ".join(grid.notes),
    }


def _lead(finished: Sequence[Finished], across: Across) -> str:
    brains = {(one.scored.dataset, one.scored.subject) for one in finished}
    kinds = {one.scored.key for one in finished}
    return (
        f"{len(finished)} runs: {len(kinds)} kinds on {len(brains)} brains, scored under "
        f"{across.protocol.name}."
    )


@dataclass(frozen=True)
class DrawnCurve:
    """Points of a plot, with intervals."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float, float, float]]]
    """Name -> (x, value, low, high), intervals NaN where there are none."""

    @property
    def points(self) -> dict[str, list[tuple[float, float]]]:
        """Return name -> (x, value)."""
        return {name: [point[:2] for point in points] for name, points in self.lines.items()}


def _curve(
    curve: Curve, across: Across, finished: Sequence[Finished], *, axes: Sequence[str]
) -> DrawnCurve:
    """Return a score over an axis: of each subject alone if it is one, else the mean over them."""
    for axis in filter(None, (curve.x, curve.lines)):
        if axis not in axes:
            raise InputError(
                f"compare.curves names the axis '{axis}', along which the subject changes; name "
                f"one of {', '.join(axes)}"
            )
    values: dict[tuple[str, str, str], dict[str, float]] = {}
    for one in finished:
        labels = dict(zip(axes, one.scored.key, strict=True))
        where = (one.scored.dataset, labels.get(curve.lines or "", ""), labels[curve.x])
        values.setdefault(where, {})[one.scored.subject] = _value(curve.metric, one)
    several = len({dataset for dataset, _, _ in values}) > 1
    positions = _positions(list(dict.fromkeys(label for _, _, label in values)))
    lines: dict[str, list[tuple[float, float, float, float]]] = {}
    for (dataset, line, label), by_subject in values.items():
        mean = mean_of_few(np.array(list(by_subject.values())))
        name = ", ".join(filter(None, (dataset if several else "", line))) or curve.metric
        lines.setdefault(name, []).append((positions[label], mean.value, mean.low, mean.high))
    subjects = max(len(by_subject) for by_subject in values.values())
    over = f", mean of {subjects} subjects" if subjects > 1 else ""
    return DrawnCurve(
        f"{curve.metric} by {curve.x}{over}", curve.x, curve.metric,
        {name: sorted(points) for name, points in lines.items()},
    )  # fmt: skip


def _value(metric: str, one: Finished) -> float:
    target, dot, number = metric.rpartition(".")
    if dot and number in one.decoded.get(target, {}):
        return one.decoded[target][number]
    known = [m.name for m in one.scored.table.protocol.metrics]
    if metric not in known:
        targets = [f"{name}.two_way" for name in one.decoded]
        raise InputError(
            f"compare.curves names '{metric}', but there are {', '.join([*known, *targets])} and "
            f"other numbers of decoded targets; name one of these"
        )
    return one.scored.table.score(row=SYSTEM, metric=metric).value


def _positions(labels: Sequence[str]) -> dict[str, float]:
    """Return where labels stand on an axis: at their first number, or after the last number."""
    found = {label: re.search(r"\d+(\.\d+)?", label) for label in labels}
    numbers = {label: float(match.group()) for label, match in found.items() if match}
    last = max(numbers.values(), default=0.0)
    for label in labels:
        if label not in numbers:
            last += 1
            numbers[label] = last
    return numbers


def _pictures(finished: Sequence[Finished], *, count: int) -> Iterator[dict[str, Any]]:
    """Yield for each brain the same images of every run, at equal steps through its test set."""
    brains: dict[tuple[str, str], list[Finished]] = {}
    for one in finished:
        brains.setdefault((one.scored.dataset, one.scored.subject), []).append(one)
    for (dataset, subject), members in brains.items():
        ids = [
            image
            for image in members[0].scored.table.image_ids
            if all(image in one.scored.table.image_ids for one in members)
        ]
        if not ids:
            continue
        chosen = [ids[k] for k in np.linspace(0, len(ids) - 1, min(count, len(ids))).astype(int)]
        opened = store.open_store(
            outputs.subject_store(members[0].experiment).folder, splits="test"
        )
        captions = opened.images.loc[chosen, "captions"]
        yield {
            "name": f"{dataset} {subject}",
            "ids": chosen,
            "captions": [texts[0] if texts else image for image, texts in captions.items()],
            "seen": opened.pixels(chosen),
            "runs": {
                ", ".join(one.scored.key) or one.scored.run: store.read_rows(
                    outputs.reconstructions(one.experiment).folder, SYSTEM, image_ids=chosen
                )[:, 0]
                for one in members
            },
        }


def _document(
    runs: Runs,
    finished: Sequence[Finished],
    across: Across,
    *,
    grids: Sequence[Grid],
    lines: Sequence[Decoded],
) -> str:
    text = io.StringIO()
    text.write(
        f"# {runs.sweep.name}\n\nWritten by `raybrain sweep`; what is changed here is lost when it "
        f"runs again. {_lead(finished, across)}\n\n"
    )
    if runs.sweep.compare.published == "hou2023":
        from raybrain.stages import claims

        text.write(claims.section(finished, across=across, lines=lines))
    for grid in grids:
        text.write(f"{grid.to_markdown()}\n")
    return text.getvalue()


def _log(
    finished: Sequence[Finished], *, recorded: tracking.Work, sweep: str, folder: Path
) -> None:
    """Record the comparison in the sweep's run in MLflow, and below it a run per run."""
    tracker, parent = recorded.begin()
    shown = all(describing.may_show(one.experiment) for one in finished)
    files = [
        file for file in sorted(folder.iterdir())
        if file.is_file() and file.name not in (seal.BEGUN, *(() if shown else (PAGE,)))
    ]  # fmt: skip
    tracking.log_sweep(
        tracker,
        parent,
        sweep=sweep,
        files=files,
        children=[
            tracking.SweepChild(
                name=one.experiment.name,
                experiment=one.experiment,
                seal=outputs.report(one.experiment).seal.digest,
                settings=flatten(one.experiment),
                tags={
                    f"axis.{re.sub(NO_TAG, '_', axis)}": label
                    for axis, label in one.run.labels.items()
                },
                metrics=dict(_headline(one)),
            )
            for one in finished
        ],
    )


def _headline(one: Finished) -> Iterator[tuple[str, float]]:
    table = one.scored.table
    value = partial(table.score, row=SYSTEM)
    for metric in table.protocol.metrics:
        yield metric.name, value(metric=metric.name).value
    for target, numbers in one.decoded.items():
        for name in ("mse", "r2_mean", "two_way"):
            if name in numbers:
                yield f"{target.replace(' ', '_')}.{name}", numbers[name]
