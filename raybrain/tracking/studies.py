"""A search as it goes on: a run per candidate below the run of the search."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from raybrain.tracking.runs import ERROR, Run, Tracker

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
        known = self._tracker.ended_candidates(self._parent, study=self._study)
        for outcome in outcomes:
            candidate = outcome.candidate
            if candidate.number not in known:
                self._runs[candidate.number] = self._run_of(candidate)
                self._end(candidate.number, outcome)

    def _run_of(self, candidate: _Candidate) -> Run:
        return self._tracker.candidate(
            self._parent,
            study=self._study,
            number=candidate.number,
            settings={**candidate.settings, "seed": candidate.seed},
        )

    def _end(self, number: int, outcome: _Outcome) -> None:
        run = self._runs.pop(number)
        values = dict(zip(self._objectives, outcome.values, strict=False))
        final = {f"objective/{name}": value for name, value in values.items()}
        run.log_metrics({**final, "seconds": outcome.seconds, "epochs": outcome.epochs})
        tags = {"state": outcome.state}
        if outcome.error:
            tags[ERROR] = outcome.error.strip().splitlines()[-1]
            run.log_text(outcome.error, "traceback.txt")
        run.set_tags(tags)
        run.end(STATUS[outcome.state])


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
