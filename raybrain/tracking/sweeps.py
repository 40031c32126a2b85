"""A sweep in MLflow: one parent with the comparison, and below it a run for every run."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybrain.config import Tracking
from raybrain.tracking.tags import SEAL, STAGE, SWEPT

if TYPE_CHECKING:
    from raybrain.tracking.runs import Named, Run, Tracker

SWEEP = "sweep"
"""Name of the MLflow experiment that holds sweeps, whichever datasets their runs are about: runs
are compared within an experiment."""
CHILD = "run of a sweep"


@dataclass(frozen=True)
class SweepChild:
    """One run of a sweep."""

    name: str
    experiment: Named
    """Whose own run says when the work was done."""
    seal: str
    """Digest of its report; a child that says the same is not logged again."""
    settings: Mapping[str, Any]
    metrics: Mapping[str, float]
    """Values by name, each in its own unit."""
    tags: Mapping[str, str]


@dataclass(frozen=True)
class SweepTracked:
    """A sweep, as its run is found and recorded."""

    name: str
    workspace: str
    tracking: Tracking
    dataset: str = SWEEP
    subject: str = "all"


def log_sweep(
    tracker: Tracker,
    parent: Run,
    *,
    sweep: str,
    children: Sequence[SweepChild],
    files: Sequence[Path],
) -> None:
    """Record the runs of a sweep and its comparison; what was recorded of the same reports stays.

    Parameters
    ----------
    tracker : Tracker
    parent : Run
        Of the sweep.
    sweep : str
        Its name.
    children : sequence of SweepChild
    files : sequence of Path
        The comparison, as artifacts of the parent.
    """
    for child in children:
        identity = {SWEPT: sweep, SEAL: child.seal}
        if _logged(tracker, parent, identity):
            continue
        began, ended = _times(tracker, child.experiment)
        with tracker.stage(
            parent,
            CHILD,
            settings=child.settings,
            title=child.name,
            started=began,
            ended=ended,
            identity=identity,
        ) as run:
            run.log_metrics({k: v for k, v in child.metrics.items() if isfinite(v)})
            run.set_tags(child.tags)
    for file in files:
        parent.log_artifact(file, "comparison")
    parent.set_tags({STAGE: "experiment", "runs": len(children)})


def _logged(tracker: Tracker, parent: Run, identity: Mapping[str, str]) -> bool:
    """Return whether a child was recorded; not while MLflow is silent, which keeps one of each."""
    from mlflow.exceptions import MlflowException

    where = " and ".join(f"tags.`{name}` = '{value}'" for name, value in identity.items())
    with contextlib.suppress(MlflowException):
        same = tracker.client.search_runs([parent.mlflow_experiment], where)
        return any(run.info.status == "FINISHED" for run in same)
    return False


def _times(tracker: Tracker, experiment: Named) -> tuple[float | None, float | None]:
    """Return the seconds since 1970 between which an experiment's own run was worked on."""
    from mlflow.exceptions import MlflowException

    with contextlib.suppress(MlflowException):
        found = tracker.run_of(experiment)
        if found is not None and found.info.end_time is not None:
            return found.info.start_time / 1000, found.info.end_time / 1000
    return None, None
