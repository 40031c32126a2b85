"""A search as it goes on: a run per candidate below the run of the search."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from raybrain.tracking.runs import Run, Tracker
from raybrain.tracking.tags import ERROR

STATUS = {"complete": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}


class StudyLog:
    """Records what a search reports; give `record` to it as ``on_events``.

    Parameters
    ----------
    tracker : Tracker
        Where to.
    parent : Run
        The run of the search.
    study : str
        Its name, by which a candidate finds its run again after a restart.
    objectives : sequence of str
        Names of the values of an outcome.
    """

    def __init__(
        self, tracker: Tracker, *, parent: Run, study: str, objectives: Sequence[str]
    ) -> None:
        self._tracker, self._parent, self._study = tracker, parent, study
        self._objectives = tuple(objectives)
        self._runs: dict[int, Run] = {}
        self._ended: set[int] = set()

    def record(self, events: Sequence[_Event]) -> None:
        """Record starts, epochs and outcomes; the epochs of a candidate in one request."""
        curves: dict[int, list[tuple[int, Mapping[str, float]]]] = defaultdict(list)
        for event in events:
            candidate = event.candidate
            if candidate.number not in self._runs:
                self._runs[candidate.number] = self._run_of(candidate)
            if event.metrics is not None:
                metrics = {name: value for name, value in event.metrics.items() if name != "epoch"}
                curves[candidate.number].append((int(event.metrics["epoch"]), metrics))
        for number, points in curves.items():
            self._runs[number].log_curve(points)
        for event in events:
            if event.outcome is not None:
                self._end(event.candidate.number, event.outcome)

    def settle(self, outcomes: Sequence[_Outcome]) -> None:
        """Record outcomes that a driver did not live to record; give all of the study."""
        for outcome in outcomes:
            candidate = outcome.candidate
            if candidate.number not in self._ended:
                self._runs[candidate.number] = self._run_of(candidate, reopen=False)
                self._end(candidate.number, outcome, unless_ended=True)

    def mark_best(self, candidate: _Candidate) -> None:
        """Mark the run of the candidate that was chosen, and no other one of the study."""
        run = self._run_of(candidate, reopen=False)
        run.log_record(
            "best", study=self._study, experiment=run.mlflow_experiment, number=candidate.number
        )

    def _run_of(self, candidate: _Candidate, *, reopen: bool = True) -> Run:
        return self._tracker.candidate(
            self._parent,
            study=self._study,
            number=candidate.number,
            settings={**candidate.settings, "seed": candidate.seed},
            reopen=reopen,
        )

    def _end(self, number: int, outcome: _Outcome, *, unless_ended: bool = False) -> None:
        run = self._runs.pop(number)
        self._ended.add(number)
        values = dict(zip(self._objectives, outcome.values, strict=False))
        final = {f"objective/{name}": value for name, value in values.items()}
        metrics = {**final, "seconds": outcome.seconds, "epochs": outcome.epochs}
        tags = {"state": outcome.state}
        if outcome.error:
            tags[ERROR] = outcome.error.strip().splitlines()[-1]
            run.log_text(outcome.error, "traceback.txt")
        run.end(STATUS[outcome.state], metrics=metrics, tags=tags, unless_ended=unless_ended)


class _Candidate(Protocol):
    @property
    def number(self) -> int: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...
    @property
    def seed(self) -> int: ...


class _Outcome(Protocol):
    @property
    def candidate(self) -> _Candidate: ...
    @property
    def state(self) -> str: ...
    @property
    def values(self) -> tuple[float, ...]: ...
    @property
    def epochs(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def error(self) -> str: ...


class _Event(Protocol):
    @property
    def candidate(self) -> _Candidate: ...
    @property
    def metrics(self) -> Mapping[str, Any] | None: ...
    @property
    def outcome(self) -> _Outcome | None: ...
