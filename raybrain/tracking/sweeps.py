"""A sweep in MLflow: one parent with the comparison, and below it a run for every run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybrain.tracking.tags import PARENT, SEAL, STAGE

if TYPE_CHECKING:
    from raybrain.tracking.runs import Tracker

SWEEP = "sweep"
"""Name of the MLflow experiment that holds sweeps, whichever datasets their runs are about: runs
are compared within an experiment."""
CHILD = "run of a sweep"


@dataclass(frozen=True)
class SweepChild:
    """One run of a sweep."""

    name: str
    seal: str
    """Digest of its report; a child that says the same is not logged again."""
    settings: Mapping[str, Any]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]


@dataclass(frozen=True)
class _Sweep:
    name: str
    dataset: str = SWEEP
    subject: str = "all"


def log_sweep(
    tracker: Tracker, *, name: str, children: Sequence[SweepChild], files: Sequence[Path]
) -> None:
    """Record a sweep and its comparison; what was recorded of the same reports stays.

    Parameters
    ----------
    tracker : Tracker
    name : str
        Of the sweep.
    children : sequence of SweepChild
    files : sequence of Path
        The comparison, as artifacts of the parent.
    """
    parent = tracker.experiment_run(_Sweep(name))
    for child in children:
        wanted = f"tags.`{PARENT}` = '{parent.run_id}' and tags.`{SEAL}` = '{child.seal}'"
        same = tracker.client.search_runs([parent.mlflow_experiment], wanted)
        if any(run.info.status == "FINISHED" for run in same):
            continue
        with tracker.stage(parent, CHILD, settings=child.settings, title=child.name) as run:
            run.log_metrics({k: v for k, v in child.metrics.items() if isfinite(v)})
            run.set_tags({**child.tags, SEAL: child.seal})
    for file in files:
        parent.log_artifact(file, "comparison")
    parent.set_tags({STAGE: "experiment", "runs": len(children)})
