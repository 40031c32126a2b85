"""A sweep's file as the runs it stands for: experiments that differ along axes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raybrain.config import (
    NAMING,
    Experiment,
    InputError,
    Sweep,
    load,
    read_assignment,
    read_mapping,
)
from raybrain.spelling import hint

BASE = "experiment"
"""In an axis, the address of another file to start from."""
SUBJECT = "subject"


@dataclass(frozen=True)
class SweepRun:
    """One experiment of a sweep, and where it stands on every axis."""

    labels: Mapping[str, str]
    """Axis to label."""
    experiment: Experiment


@dataclass(frozen=True)
class Runs:
    """All runs of a sweep, in the order of its axes."""

    sweep: Sweep
    runs: tuple[SweepRun, ...]
    workspace: str

    @property
    def folder(self) -> str:
        """Where the sweep keeps what belongs to no single run."""
        return f"{self.workspace}/sweeps/{self.sweep.name}"

    @property
    def axes(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Axis to label to settings."""
        return {axis: _labels(axis, values) for axis, values in self.sweep.axes.items()}

    @property
    def of_subjects(self) -> tuple[str, ...]:
        """Return the axes along which the subject changes."""
        return tuple(
            axis
            for axis, labels in self.axes.items()
            if any(SUBJECT in settings for settings in labels.values())
        )


def is_sweep(path: str) -> bool:
    """Return whether a file describes a sweep rather than an experiment."""
    file = Path(path).expanduser()
    return file.is_file() and "axes" in read_mapping(file, example="name: demo")[0]


def load_sweep(path: str, assignments: tuple[str, ...] = ()) -> Runs:
    """Return the runs of a sweep's file, each checked against the schema.

    Parameters
    ----------
    path : str
        YAML file.
    assignments : tuple of str
        ``address=value``: those of the sweep's own settings change it, all others every run.

    Raises
    ------
    InputError
        One sentence about the first fault: an address, a label or a name that does not fit.
    """
    own = [one for one in assignments if one.partition("=")[0].split(".")[0] in Sweep.model_fields]
    typed = {
        address: value
        for address, value, _ in (read_assignment(one) for one in assignments if one not in own)
    }
    sweep = load(path, tuple(own), schema=Sweep)
    file = Path(path).expanduser()
    axes = {axis: _labels(axis, values, file=str(file)) for axis, values in sweep.axes.items()}
    for axis, values in axes.items():
        _check_axis(axis, values, file=str(file))
    bases: dict[str, Experiment] = {}
    runs: dict[str, SweepRun] = {}
    for labels in _combinations(sweep, axes, file=str(file)):
        settings = _merged(axes, labels, file=str(file))
        base = str(settings.pop(BASE, sweep.experiment))
        if base not in bases:
            # Before the axes, so that these may replace a whole section of it.
            common = _base(base, beside=file.parent).with_(
                sweep.settings, source=f"{file} (settings)"
            )
            bases[base] = common.with_(typed, source="the command line")
        name = "-".join([sweep.name, *map(_as_name, labels.values())])
        if name in runs:
            raise InputError(
                f"{file}: two runs would both be called '{name}'; give their labels different names"
            )
        where = ", ".join(f"{axis}={label}" for axis, label in labels.items())
        experiment = bases[base].with_(
            {**settings, "name": name, "folders": "by_seal"}, source=f"{file} ({where})"
        )
        runs[name] = SweepRun(labels, experiment.with_whole_paths(beside=file.parent))
    if not runs:
        raise InputError(f"{file}: 'without' leaves out every run; shorten it")
    workspaces = {run.experiment.workspace for run in runs.values()}
    if len(workspaces) > 1:
        raise InputError(
            f"{file}: runs of a sweep share one workspace, but their files name "
            f"{', '.join(sorted(workspaces))}; add workspace=FOLDER"
        )
    _check_labels(sweep.compare.baseline, axes, file=str(file), what="compare.baseline")
    for curve in sweep.compare.curves:
        for axis in (curve.x, curve.lines or curve.x):
            _check_labels({axis: ""}, axes, file=str(file), what="compare.curves")
    return Runs(sweep, tuple(runs.values()), workspaces.pop())


def _base(path: str, *, beside: Path) -> Experiment:
    file = Path(path)
    if not file.is_file() and (beside / file).is_file():
        file = beside / file
    return Experiment.load(file)


def _labels(
    axis: str, values: list[Any] | dict[str, dict[str, Any]], *, file: str = "the sweep"
) -> dict[str, dict[str, Any]]:
    """Return label -> address -> value."""
    if isinstance(values, dict):
        return {str(label): dict(settings) for label, settings in values.items()}
    found: dict[str, dict[str, Any]] = {}
    for value in values:
        label = _label(value, axis=axis, file=file)
        if label in found:
            raise InputError(f"{file}: the axis '{axis}' has {label} twice; name each value once")
        found[label] = {axis: value}
    return found


def _label(value: Any, *, axis: str, file: str) -> str:
    if isinstance(value, list):
        return "+".join(_label(one, axis=axis, file=file) for one in value) or "none"
    if isinstance(value, dict):
        raise InputError(
            f"{file}: the axis '{axis}' lists a value of several settings; write "
            f"label: {{address: value}} instead, so that it has a name"
        )
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _as_name(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "_", label)


def _check_axis(axis: str, labels: Mapping[str, Mapping[str, Any]], *, file: str) -> None:
    if not labels:
        raise InputError(f"{file}: the axis '{axis}' has no values; give it some, or leave it out")
    for settings in labels.values():
        for address in settings:
            if address.split(".")[0] in NAMING:
                raise InputError(
                    f"{file}: the axis '{axis}' changes '{address}', which results do not depend "
                    f"on; set it for all runs, under 'settings' or behind the command"
                )


def _combinations(
    sweep: Sweep, axes: Mapping[str, Mapping[str, Any]], *, file: str
) -> Iterator[dict[str, str]]:
    if sweep.runs is None:
        wanted = [
            dict(zip(axes, labels, strict=True)) for labels in itertools.product(*axes.values())
        ]
    else:
        wanted = []
        for listed in sweep.runs:
            _check_labels(listed, axes, file=file, what="runs")
            wanted.append(
                {axis: listed.get(axis, next(iter(labels))) for axis, labels in axes.items()}
            )
    for one in sweep.without:
        _check_labels(one, axes, file=file, what="without")
    for labels in wanted:
        if not any(one and one.items() <= labels.items() for one in sweep.without):
            yield labels


def _check_labels(
    chosen: Mapping[str, str], axes: Mapping[str, Mapping[str, Any]], *, file: str, what: str
) -> None:
    for axis, label in chosen.items():
        if axis not in axes:
            raise InputError(f"{file}: '{what}' names the axis '{axis}', {_close(axis, axes)}")
        if label and label not in axes[axis]:
            raise InputError(
                f"{file}: '{what}' names '{label}' of the axis '{axis}', "
                f"{_close(label, axes[axis])}"
            )


def _close(name: str, known: Mapping[str, Any]) -> str:
    told = hint(name, known, otherwise=f"there are {', '.join(known)}")
    return f"which is not there; {told}"


def _merged(
    axes: Mapping[str, Mapping[str, Mapping[str, Any]]],
    labels: Mapping[str, str],
    *,
    file: str,
) -> dict[str, Any]:
    """Return the settings of one combination; axes may not both change one address."""
    found: dict[str, Any] = {}
    by: dict[str, str] = {}
    for axis, label in labels.items():
        for address, value in axes[axis][label].items():
            if address in by:
                raise InputError(
                    f"{file}: the axes '{by[address]}' and '{axis}' both change '{address}'; let "
                    f"one of them do it"
                )
            by[address], found[address] = axis, value
    return found
