"""Work that depends on other work, side by side in threads of the driver as resources allow."""

from __future__ import annotations

import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from raybrain import config
from raybrain.cluster.address import starts_its_own
from raybrain.cluster.progress import Progress, tell_no_parts
from raybrain.cluster.session import connect

LOOK_SECONDS = 1.0
"""Between looks at whether the cluster has grown."""
AHEAD = 0.25
"""Of a joined cluster's room is asked for beyond what it has, so that it can grow and no worker
waits while the driver prepares what is next."""
LEAST_AHEAD = 4
DRIVER_MEMORY = 4e9
"""Bytes that work in the driver's own process may take, each."""

State = Literal["running", "done", "failed", "blocked"]


@dataclass(frozen=True)
class Step:
    """One piece of work; what it makes must be there before what comes after it begins."""

    key: str
    make: Callable[[config.Workers], None]
    """Called in a thread with how many workers it may use."""
    workers: config.Workers
    """How many it can use at least and at most, and what each holds."""
    after: frozenset[str] = frozenset()
    """Keys of what it needs; those that are no step are there already."""
    first: bool = False
    """Whether it goes before others that could begin as well."""
    in_driver: bool = False
    """Whether much of it is done in the driver's own process."""


def run_steps(
    steps: Sequence[Step],
    *,
    description: str,
    on_change: Callable[[str, State, BaseException | None], None] = lambda *_: None,
) -> dict[str, BaseException]:
    """Do all steps in an order that respects what they need; return what failed, by key.

    A step that fails holds up those that need it, which are told as blocked, and no others. Among
    steps that could begin, those with the longest chain behind them go first. On a machine of
    one's own the room is divided among them; a cluster that was joined is asked for all that a
    step can use, and for somewhat more than it has.

    Parameters
    ----------
    steps : sequence of Step
    description : str
        Shown beside the progress bar.
    on_change : callable
        Called in this thread with key, state and, for a failure, its exception.

    Raises
    ------
    ValueError
        If steps need each other.
    """
    found = _Steps(steps)
    if not steps:
        return {}
    with connect(), Progress(total=len(steps), description=description, unit="units") as progress:
        while not found.ended:
            for step, workers in found.startable():
                on_change(step.key, "running", None)
                found.start(step, workers=workers)
            for key, error in found.finished():
                on_change(key, "failed" if error else "done", error)
                progress.advance(note=f"{found.running} under way")
                for blocked in found.end(key, error=error):
                    on_change(blocked, "blocked", None)
                    progress.advance()
    return found.failures


@dataclass(frozen=True)
class Room:
    """Resources, in Ray's units."""

    cpus: float
    gpus: float

    def minus(self, other: Room) -> Room:
        """Return what is left."""
        return Room(self.cpus - other.cpus, self.gpus - other.gpus)

    def holds(self, workers: config.Workers) -> int:
        """Return how many of these workers find room."""
        fits = self.cpus / workers.cpus
        if workers.gpus:
            fits = min(fits, self.gpus / workers.gpus)
        return max(0, int(fits + 1e-9))


def width_of(workers: config.Workers, *, free: Room, sharing: int) -> int:
    """Return how many workers a step gets of what is free, which so many steps share; 0 for none.

    At least ``workers.min``, at most ``workers.max``, and else a fair part.
    """
    fits = free.holds(workers)
    if fits < workers.min:
        return 0
    return max(workers.min, min(workers.max, fits // max(sharing, 1)))


class _Steps:
    """What is waiting, under way and done."""

    def __init__(self, steps: Sequence[Step]) -> None:
        known = {step.key for step in steps}
        self._steps = {step.key: step for step in steps}
        self._needs = {step.key: set(step.after & known) for step in steps}
        self._order = _by_urgency(steps, needs=self._needs)
        self._waiting = list(self._order)
        self._granted: dict[str, config.Workers] = {}
        self._ends: queue.SimpleQueue[tuple[str, BaseException | None]] = queue.SimpleQueue()
        self._in_driver = _at_once_in_driver()
        self.failures: dict[str, BaseException] = {}

    @property
    def ended(self) -> bool:
        return not self._waiting and not self._granted

    @property
    def running(self) -> int:
        return len(self._granted)

    def startable(self) -> Iterable[tuple[Step, config.Workers]]:
        """Yield the steps for which there is room now, each with what it gets."""
        ready = [self._steps[key] for key in self._waiting if not self._needs[key]]
        own = starts_its_own()
        room = _room(own=own)
        for step in ready:
            if step.in_driver and self._busy_in_driver() >= self._in_driver:
                continue
            free = room.minus(self._used())
            wanted = _shrunk(step.workers, room=room) if own else step.workers
            left = sum(self._needs[key] == set() for key in self._waiting)
            # A joined cluster may grow to all that is asked for.
            sharing = left if own else 1
            count = width_of(wanted, free=free, sharing=sharing)
            if not count and len(self._granted) < (1 if own else LEAST_AHEAD):
                # Something has to run, or to wait where a cluster sees what it lacks.
                count = wanted.min if own else wanted.max
            if count:
                # CPUs stay as they were asked for: threads go by them, and bytes by threads.
                granted = {"min": min(step.workers.min, count), "max": count}
                yield step, step.workers.model_copy(update=granted)

    def start(self, step: Step, *, workers: config.Workers) -> None:
        self._waiting.remove(step.key)
        self._granted[step.key] = workers

        def work() -> None:
            tell_no_parts()
            error: BaseException | None = None
            try:
                step.make(workers)
            except BaseException as raised:
                error = raised
            self._ends.put((step.key, error))

        threading.Thread(target=work, name=step.key, daemon=True).start()

    def finished(self) -> Iterable[tuple[str, BaseException | None]]:
        """Yield what has ended, after a short wait."""
        deadline = time.monotonic() + LOOK_SECONDS
        try:
            yield self._ends.get(timeout=max(0.0, deadline - time.monotonic()))
            while True:
                yield self._ends.get_nowait()
        except queue.Empty:
            return

    def end(self, key: str, *, error: BaseException | None) -> list[str]:
        """Take note of a step that ended; return what can never begin because of it."""
        del self._granted[key]
        if error is None:
            for needs in self._needs.values():
                needs.discard(key)
            return []
        self.failures[key] = error
        blocked: list[str] = []
        lost = {key}
        for other in [one for one in self._order if one in self._waiting]:
            if self._needs[other] & lost:
                lost.add(other)
                blocked.append(other)
        self._waiting = [one for one in self._waiting if one not in lost]
        return blocked

    def _used(self) -> Room:
        held = self._granted.values()
        return Room(
            sum(one.max * one.cpus for one in held), sum(one.max * one.gpus for one in held)
        )

    def _busy_in_driver(self) -> int:
        return sum(self._steps[key].in_driver for key in self._granted)


def _by_urgency(steps: Sequence[Step], *, needs: Mapping[str, set[str]]) -> list[str]:
    """Return the keys, each after what it needs, the longest chains first."""
    behind: dict[str, list[str]] = {step.key: [] for step in steps}
    for key, wanted in needs.items():
        for one in wanted:
            behind[one].append(key)
    depth: dict[str, int] = {}
    left = {key: len(after) for key, after in behind.items()}
    ends = [key for key, count in left.items() if not count]
    while ends:
        key = ends.pop()
        depth[key] = 1 + max((depth[one] for one in behind[key]), default=0)
        for one in needs[key]:
            left[one] -= 1
            if not left[one]:
                ends.append(one)
    if len(depth) < len(steps):
        raise ValueError(f"these need each other: {', '.join(set(needs) - set(depth))}")
    first = {step.key: not step.first for step in steps}
    place = {step.key: k for k, step in enumerate(steps)}
    return sorted(depth, key=lambda key: (first[key], -depth[key], place[key]))


def _room(*, own: bool) -> Room:
    import ray

    held = ray.cluster_resources()
    room = Room(held.get("CPU", 0.0), held.get("GPU", 0.0))
    if own:
        return room
    return Room(
        room.cpus + max(LEAST_AHEAD, AHEAD * room.cpus),
        room.gpus + max(LEAST_AHEAD, AHEAD * room.gpus),
    )


def _shrunk(workers: config.Workers, *, room: Room) -> config.Workers:
    """Return the workers with no more CPUs than there are: a wish may shrink."""
    if not room.cpus or workers.cpus <= room.cpus:
        return workers
    return workers.model_copy(update={"cpus": room.cpus})


def _at_once_in_driver() -> int:
    import psutil

    memory = psutil.virtual_memory().total
    return max(1, min(os.cpu_count() or 1, math.floor(memory / 2 / DRIVER_MEMORY)))
