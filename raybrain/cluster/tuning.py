"""A search for better settings: candidates run as Ray tasks, or as groups of Ray Train."""

from __future__ import annotations

import contextlib
import functools
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any

from raybrain import config, places
from raybrain.cluster.candidates import Loop, complete, group_loop, run_alone, run_candidate, told
from raybrain.cluster.progress import Progress
from raybrain.cluster.session import (
    beside_driver,
    connect,
    groups_at_once,
)
from raybrain.cluster.space import grid
from raybrain.cluster.study import Candidate, Event, Keeper, Outcome
from raybrain.cluster.tasks import map_tasks, task_options
from raybrain.cluster.train import train
from raybrain.config import InputError

POLL_SECONDS = 0.2
FAILURES_AT_START = 3
"""When so many candidates have failed and none has not, the fault is not the candidates'."""


def search(
    loop: Loop,
    *,
    tuning: config.Tuning,
    default: Mapping[str, Any],
    name: str,
    storage: str,
    folder: str,
    seed: int,
    workers: config.Workers,
    on_events: Callable[[list[Event]], None] | None = None,
) -> list[Outcome]:
    """Return what came of every candidate of the study, best first.

    The study is continued if it exists: candidates finished before are not run again, and those
    that were running start from their last checkpoint. Settings are drawn when a worker is free,
    not before, so each candidate knows all results there are.

    Parameters
    ----------
    loop : callable
        Candidate -> its metrics, the objectives among them. It may call
        `raybrain.cluster.report` every epoch with the first objective among the metrics; there
        a candidate without prospects ends. Runs in a task, or on every worker of a group when
        ``tuning.workers`` is above 1; rank 0's metrics count.
    tuning : config.Tuning
        Space, sampler, pruner, objectives, number of candidates.
    default : mapping
        The experiment's own values; the first candidate, where they lie in the space.
    name, storage : str
        Of the study; see `raybrain.cluster.study.storage_of`.
    folder : str
        For checkpoints of running candidates; removed when they finish.
    seed : int
        Of the sampler and of every candidate.
    workers : config.Workers
        At most ``max`` candidates at once; what each worker of a candidate holds.
    on_events : callable, optional
        Called in this process, a few times a second, with the starts, epochs and ends of
        candidates since the last call.

    Raises
    ------
    raybrain.config.InputError
        If the study exists with another space, or a candidate returns no objective.
    RuntimeError
        If the first three candidates fail; its note holds the traceback of one.
    """
    import ray

    with connect():
        # The database, too, may be a file on the driver's disk.
        keeper: Any = (
            ray.remote(Keeper)
            .options(**beside_driver())
            .remote(tuning, name=name, storage=storage, seed=seed)
        )
        told(keeper.open.remote(default))
        outcomes: list[Outcome] = told(keeper.outcomes.remote())
        total = tuning.candidates
        if tuning.sampler == "grid":
            total = min(total, sum(1 for _ in grid(tuning)))
        run = _run_groups if tuning.workers > 1 else _run_tasks
        left = range(len(outcomes), total)
        with (
            Progress(
                total=total, description="tune", unit="candidates", workers=workers
            ) as progress,
            contextlib.closing(
                run(loop, keeper, left, tuning=tuning, folder=folder, workers=workers)
            ) as running,
        ):
            progress.advance(len(outcomes))
            for _ in running:
                events: list[Event] = told(keeper.events.remote())
                if events and on_events is not None:
                    on_events(events)
                for event in events:
                    if event.outcome is not None:
                        outcomes.append(event.outcome)
                        progress.advance(note=_best_so_far(outcomes, tuning))
                        _refuse_hopeless(outcomes)
        return ranked(outcomes, tuning=tuning)


def ranked(outcomes: Sequence[Outcome], *, tuning: config.Tuning) -> list[Outcome]:
    """Return outcomes best first: complete ones by objective, then stopped ones, then failures.

    With several objectives, candidates that no other one beats in all of them come first, and
    within each such front the first objective decides.
    """
    signs = [1 if one.direction == "minimize" else -1 for one in tuning.objectives]

    def losses(outcome: Outcome) -> tuple[float, ...]:
        return tuple(sign * value for sign, value in zip(signs, outcome.values, strict=False))

    complete = [outcome for outcome in outcomes if outcome.state == "complete"]
    order: list[Outcome] = []
    while complete:
        front = [
            one
            for one in complete
            if not any(_beats(losses(other), losses(one)) for other in complete)
        ]
        order += sorted(front, key=losses)
        complete = [one for one in complete if one not in front]
    stopped = [outcome for outcome in outcomes if outcome.state == "pruned"]
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    return order + sorted(stopped, key=losses) + failed


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


@dataclass(frozen=True)
class Refit:
    """A candidate fitted again with other seeds."""

    candidate: Candidate
    metrics: tuple[Mapping[str, float], ...]
    """One per seed."""
    seeds: tuple[int, ...]
    """Of the fits, in the order of the metrics."""


def refit(
    loop: Loop,
    outcomes: Sequence[Outcome],
    *,
    tuning: config.Tuning,
    folder: str,
    workers: config.Workers,
) -> list[Refit]:
    """Return the best ``tuning.top`` candidates fitted with ``tuning.seeds`` other seeds.

    Parameters
    ----------
    loop, tuning, folder, workers
        As in `search`.
    outcomes : sequence of Outcome
        From `search`, best first.
    """
    best = [one.candidate for one in outcomes if one.state == "complete"][: tuning.top]
    again = [
        replace(candidate, seed=candidate.seed + 1 + number)
        for candidate in best
        for number in range(tuning.seeds)
    ]
    if tuning.workers > 1:
        metrics = [
            train(
                group_loop,
                settings={"loop": loop, "candidate": candidate, "keeper": None},
                name=f"candidate_{candidate.number:05d}_seed_{candidate.seed}",
                storage=folder,
                workers=_group(tuning, workers),
            )
            for candidate in again
        ]
    else:
        metrics = map_tasks(
            functools.partial(run_alone, loop=loop),
            again,
            workers=workers,
            description="tune, other seeds",
            unit="fits",
        )
    refits = []
    for place, candidate in enumerate(best):
        rows = slice(place * tuning.seeds, (place + 1) * tuning.seeds)
        seeds = tuple(one.seed for one in again[rows])
        refits.append(Refit(candidate, tuple(metrics[rows]), seeds))
    return refits


def _run_tasks(
    loop: Loop,
    keeper: Any,
    left: range,
    *,
    tuning: config.Tuning,
    folder: str,
    workers: config.Workers,
) -> Generator[None]:
    """Run the candidates that are left, one task each, and yield now and then."""
    import ray

    run = ray.remote(run_candidate).options(**task_options(workers))
    shared = ray.put(loop)
    waiting = [f"slot-{number}" for number in reversed(left)]
    running: dict[Any, str] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers.max:
                slot = waiting.pop()
                running[run.remote(shared, keeper, slot, folder)] = slot
            finished, _ = ray.wait(list(running), num_returns=1, timeout=POLL_SECONDS)
            for task in finished:
                slot = running.pop(task)
                try:
                    told(task)
                except ray.exceptions.RayError as error:
                    told(keeper.abandon.remote(slot, f"the worker died: {error}"))
            yield
    finally:
        for task in running:
            ray.cancel(task, force=True)


def _run_groups(
    loop: Loop,
    keeper: Any,
    left: range,
    *,
    tuning: config.Tuning,
    folder: str,
    workers: config.Workers,
) -> Generator[None]:
    """Run the candidates that are left, a group of Ray Train each, and yield now and then."""
    waiting = [f"slot-{number}" for number in reversed(left)]
    running: set[Future[None]] = set()
    pool = ThreadPoolExecutor(max_workers=workers.max)
    try:
        while waiting or running:
            # No more than can have a place, so that settings are drawn late.
            at_once = groups_at_once(workers.max, size=tuning.workers, workers=workers)
            while waiting and len(running) < at_once:
                slot = waiting.pop()
                running.add(
                    pool.submit(
                        _run_group,
                        loop,
                        keeper,
                        slot,
                        tuning=tuning,
                        folder=folder,
                        workers=workers,
                    )
                )
            finished, running = wait(running, POLL_SECONDS, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
            yield
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _run_group(
    loop: Loop,
    keeper: Any,
    slot: str,
    *,
    tuning: config.Tuning,
    folder: str,
    workers: config.Workers,
) -> None:
    """Run one candidate on a group of workers and record what came of it."""
    candidate: Candidate | None = told(keeper.ask.remote(slot))
    if candidate is None:
        return
    name = f"candidate_{candidate.number:05d}"
    try:
        metrics = train(
            group_loop,
            settings={"loop": loop, "candidate": candidate, "keeper": keeper},
            name=name,
            storage=folder,
            workers=_group(tuning, workers),
        )
    except Exception:
        told(keeper.fail.remote(candidate.number, traceback.format_exc()))
    else:
        if metrics is None:
            told(keeper.prune.remote(candidate.number))
        else:
            complete(keeper, candidate, metrics)
    places.remove(f"{folder}/{name}")


def _group(tuning: config.Tuning, workers: config.Workers) -> config.Workers:
    return workers.model_copy(update={"min": tuning.workers, "max": tuning.workers})


def _best_so_far(outcomes: Sequence[Outcome], tuning: config.Tuning) -> str:
    best = ranked(outcomes, tuning=tuning)[0]
    named = zip(tuning.objectives, best.values, strict=False)
    shown = ", ".join(f"{objective.metric} {value:.4g}" for objective, value in named)
    return f"best {shown}" if shown else ""


def _refuse_hopeless(outcomes: Sequence[Outcome]) -> None:
    if len(outcomes) == FAILURES_AT_START and all(one.state == "failed" for one in outcomes):
        error = outcomes[-1].error
        last = error.strip().splitlines()[-1] if error.strip() else "no reason given"
        refusal = InputError if "InputError" in last else RuntimeError
        raised = refusal(f"the first {FAILURES_AT_START} candidates failed: {last}")
        raised.add_note(error)
        raise raised
