"""A candidate where it runs: in a task, or on a group of workers of Ray Train."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybrain import places
from raybrain.cluster.study import Candidate
from raybrain.cluster.worker import Save, TrainSeat, gpu, seated

if TYPE_CHECKING:
    import torch

Loop = Callable[[Candidate], Mapping[str, float]]
SECONDS_BETWEEN_CHECKPOINTS = 5.0
"""A candidate of a few seconds need not write any."""
LATEST = "latest"
"""File that names the folder of the last whole checkpoint."""


def run_candidate(loop: Loop, keeper: Any, slot: str, folder: str) -> None:
    """Run one candidate in this task and record what came of it."""
    candidate: Candidate | None = told(keeper.ask.remote(slot))
    if candidate is None:
        return
    seat = TaskSeat(keeper, candidate, folder)
    try:
        with seated(seat):
            metrics = loop(candidate)
    except StoppedEarly:
        told(keeper.prune.remote(candidate.number))
    except Exception:
        told(keeper.fail.remote(candidate.number, traceback.format_exc()))
    else:
        complete(keeper, candidate, metrics)
    seat.clear()


def group_loop(settings: dict[str, Any]) -> Mapping[str, float] | None:
    """Run one candidate on this worker of a group; None when it was stopped early."""
    candidate: Candidate = settings["candidate"]
    try:
        with seated(GroupSeat(settings["keeper"], candidate)):
            return settings["loop"](candidate)
    except StoppedEarly:
        return None


def run_alone(candidate: Candidate, *, loop: Loop) -> Mapping[str, float]:
    """Run one candidate in this task to its end, without a study."""
    with seated(TaskSeat(None, candidate, "")):
        return loop(candidate)


def complete(keeper: Any, candidate: Candidate, metrics: Mapping[str, float]) -> None:
    """Record the metrics of a candidate that ran to its end."""
    told(keeper.complete.remote(candidate.number, dict(metrics)))


class StoppedEarly(BaseException):
    """Ends the loop of a candidate without prospects; no ``except Exception`` holds it up."""


class TaskSeat:
    """A candidate in a task of its own: the whole group of one."""

    def __init__(self, keeper: Any, candidate: Candidate, folder: str) -> None:
        self._keeper, self._candidate = keeper, candidate
        self._folder = f"{folder}/candidate_{candidate.number:05d}" if folder else ""
        self._saved = time.monotonic()

    def report(self, metrics: Mapping[str, Any], save: Save | None) -> None:
        """Tell the keeper, which decides whether the candidate goes on."""
        if self._keeper is None:
            return
        if told(self._keeper.report.remote(self._candidate.number, dict(metrics))):
            raise StoppedEarly
        due = time.monotonic() - self._saved > SECONDS_BETWEEN_CHECKPOINTS
        if save is not None and self._folder and due:
            self._save(save, epoch=int(metrics["epoch"]))
            self._saved = time.monotonic()

    def _save(self, save: Save, *, epoch: int) -> None:
        before, name = self._latest(), f"epoch_{epoch:05d}"
        if before == name:
            return
        with places.writing(f"{self._folder}/{name}") as folder:
            save(folder)
        # Named once it is whole, wherever it lies: a bucket has no rename.
        places.write_text(f"{self._folder}/{LATEST}", name)
        if before is not None:
            places.remove(f"{self._folder}/{before}")

    def _latest(self) -> str | None:
        try:
            return places.read_text(f"{self._folder}/{LATEST}") if self._folder else None
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def latest_checkpoint(self) -> Iterator[Path | None]:
        """Yield the last checkpoint of the candidate, from a worker or a driver that died."""
        latest = self._latest()
        if latest is None:
            yield None
            return
        with places.reading(f"{self._folder}/{latest}") as folder:
            yield folder

    def clear(self) -> None:
        """Remove the checkpoints of a candidate that is finished."""
        if self._folder:
            places.remove(self._folder)

    def rank(self) -> int:
        """Return 0."""
        return 0

    def world_size(self) -> int:
        """Return 1."""
        return 1

    def device(self) -> torch.device:
        """Return the GPU that the task was given, or the CPU."""
        import torch

        return torch.device(gpu() or "cpu")


class GroupSeat(TrainSeat):
    """A candidate on a worker of Ray Train; rank 0 speaks to the keeper and all hear the answer."""

    def __init__(self, keeper: Any, candidate: Candidate) -> None:
        self._keeper, self._candidate = keeper, candidate

    def report(self, metrics: Mapping[str, Any], save: Save | None) -> None:
        """Report through Ray Train; stop on all workers together if the keeper says so."""
        from ray.train.collective import broadcast_from_rank_zero

        stop = False
        if self._keeper is not None and self.rank() == 0:
            stop = told(self._keeper.report.remote(self._candidate.number, dict(metrics)))
        super().report(metrics, save)
        if broadcast_from_rank_zero(stop):
            raise StoppedEarly


def told(reference: Any) -> Any:
    """Return what a task or the keeper answers; its exceptions are raised as they were."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
