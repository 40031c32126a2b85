"""Independent items, one Ray task each, and work whose result stays where it was made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from raybrain import config
from raybrain.cluster.capacity import cpus_of
from raybrain.cluster.errors import Failure, failure_of
from raybrain.cluster.progress import Progress
from raybrain.cluster.session import connect, worker_environment
from raybrain.cluster.share import Shared

Item = TypeVar("Item")
Result = TypeVar("Result")

WORKER_DEATHS = 3
"""How often an item is tried again after the process that worked on it died."""


def map_tasks(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: config.Workers,
    description: str,
    unit: str = "tasks",
) -> list[Result]:
    """Return ``function(item)`` for every item, in the order of the items.

    At most ``workers.max`` items are in flight. An item whose worker process dies is tried again;
    an exception that ``function`` raises is raised here at once, with its own type, and what is
    still running is cancelled, as it is on Ctrl-C.

    Parameters
    ----------
    function : callable
        Sent to the workers once; it should repeat without harm.
    items : sequence
        Each is sent with its own task.
    workers : config.Workers
        How many tasks run at once and what each one holds.
    description, unit : str
        Shown beside the progress bar.

    Raises
    ------
    RuntimeError
        If the worker of one item died more than three times.
    """
    import ray

    if not items:
        return []
    results: dict[int, Result] = {}
    with (
        connect(),
        Progress(total=len(items), description=description, unit=unit, workers=workers) as progress,
    ):
        run = ray.remote(_run).options(**task_options(workers))
        shared = ray.put(function)
        waiting = list(enumerate(items))[::-1]
        running: dict[Any, int] = {}
        try:
            while waiting or running:
                while waiting and len(running) < workers.max:
                    index, item = waiting.pop()
                    running[run.remote(shared, item)] = index
                (done,), _ = ray.wait(list(running), num_returns=1)
                # Out of the list first: cancelling a finished task has brought Ray's node down.
                index = running.pop(done)
                results[index] = _result(done, item=items[index])
                progress.advance()
        finally:
            for task in running:
                ray.cancel(task, force=True)
    return [results[index] for index in range(len(items))]


def on_worker(
    make: Callable[[], Result], *, workers: config.Workers, description: str
) -> Shared[Result]:
    """Return a handle of what ``make()`` returns on a worker; it stays on the worker's node.

    For what takes memory or time, which the driver's node may have little of. ``make`` may itself
    call `map_tasks`: a task that waits for others lends them its CPUs. If the node is lost, whoever
    reads the handle has it made again.

    Parameters
    ----------
    make : callable
        It should repeat without harm.
    workers : config.Workers
        What the worker holds.
    description : str
        Shown beside the progress bar.

    Raises
    ------
    RuntimeError
        If the worker died more than three times.
    Exception
        What ``make`` raises, with its own type.
    """
    import ray

    with (
        connect(),
        Progress(total=1, description=description, unit="tasks", workers=workers) as progress,
    ):
        made = ray.remote(_make).options(num_returns=2, **task_options(workers))
        value, failure = made.remote(make)
        try:
            _result(failure, item=description)
        except (KeyboardInterrupt, SystemExit):
            ray.cancel(failure, force=True)
            raise
        progress.advance()
        return Shared(value)


def task_options(workers: config.Workers) -> dict[str, Any]:
    """Return what a Ray task that holds so much is started with, while connected.

    Its CPUs are a wish: on smaller nodes it has fewer, and as many threads all the same, so that
    its result is the same.
    """
    return {
        "num_cpus": cpus_of(workers),
        "num_gpus": workers.gpus,
        "max_retries": WORKER_DEATHS,
        "runtime_env": worker_environment(workers),
    }


def _make(make: Callable[[], Any]) -> tuple[Any, Failure | None]:
    try:
        return make(), None
    except Exception as error:
        return None, failure_of(error)


def _run(function: Callable[[Any], Any], item: Any) -> Any:
    try:
        return function(item)
    except Exception as error:
        return failure_of(error)


def _result(task: Any, *, item: Any) -> Any:
    import ray

    try:
        result = ray.get(task)
    except ray.exceptions.RayError as error:
        cause = str(error).strip().splitlines()[0]
        raise RuntimeError(
            f"the worker died {WORKER_DEATHS + 1} times on {str(item)[:200]}: {cause}"
        ) from None
    if isinstance(result, Failure):
        raise result.exception() from None
    return result
