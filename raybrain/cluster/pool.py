"""A pool of workers that each load a model once and then work off units, none of them lost."""

from __future__ import annotations

import contextlib
import pickle
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

from raybrain import config
from raybrain.cluster.errors import Failure, failure_of
from raybrain.cluster.progress import Progress
from raybrain.cluster.session import (
    beside_driver,
    connect,
    data_context,
    worker_environment,
)

WORKER_DEATHS = 3
"""How often a unit is tried again after the worker that drew it died."""
FAILED_UNITS = 3
"""Units that may fail before the rest is given up."""
ON_A_GPU = 3
"""Units that a worker with a GPU has in hand: one is read, one computed and one written."""
_making = threading.Lock()


def units_in_hand(workers: config.Workers) -> int:
    """Return how many units a worker of a generator has in hand at a time.

    On a GPU several, so that it waits for no disk; on CPUs, which all of it shares, one.
    """
    return ON_A_GPU if workers.gpus else 1


def draw_units(
    make_worker: Callable[..., Callable[[Any], Any]],
    units: Sequence[Any],
    *,
    worker_arguments: Mapping[str, Any],
    workers: config.Workers,
    description: str,
    size: Callable[[Any], int] | None = None,
    unit: str = "images",
    overlapping: int = 1,
) -> Iterator[Any]:
    """Yield ``worker(unit)`` for every unit as it is done, in any order.

    Each of ``workers.min`` to ``workers.max`` actors calls ``make_worker(**worker_arguments)``
    once. A unit whose worker dies goes to another one. A unit that raises is set aside while the
    rest goes on, unless the fault is the user's to mend (`raybrain.config.InputError`) or more
    than three units failed. Every unit has been yielded once when the iterator ends without an
    exception.

    Parameters
    ----------
    make_worker : type
        Its instances take a unit and return a small result: large ones belong in a store, written
        so that doing it twice is harmless.
    units : sequence
        Small; fixed by the plan, never by the number of workers.
    worker_arguments : mapping
        Arguments of ``make_worker``.
    workers : config.Workers
        Size of the pool and what each worker holds.
    description, unit : str
        Shown beside the progress bar.
    size : callable, optional
        Unit -> how many to count on the progress bar; 1 when not given.
    overlapping : int
        Units that a worker has in hand at a time. Several are given to it in threads, and it keeps
        for one thread what others must not touch. A unit whose worker died is tried again without
        others beside it: which one it was that killed the worker cannot be told.

    Raises
    ------
    RuntimeError
        If units did not come back; names them.
    Exception
        What the worker raised on a unit, after the others are done.
    """
    if not units:
        return
    failures: dict[int, Failure] = {}
    missing = set(range(len(units)))
    count = size or (lambda _: 1)
    total = sum(count(one) for one in units)
    with (
        connect(),
        Progress(total=total, description=description, unit=unit, workers=workers) as progress,
    ):
        results = _results(
            make_worker,
            units,
            worker_arguments=worker_arguments,
            workers=workers,
            overlapping=overlapping,
        )
        with contextlib.closing(results):
            for index, result in results:
                if isinstance(result, Failure):
                    failures[index] = result
                    error = result.exception()
                    mendable = isinstance(error, config.InputError)
                    if mendable or result.everywhere or len(failures) > FAILED_UNITS:
                        raise error from None
                    continue
                if index not in missing:
                    continue
                missing.discard(index)
                progress.advance(count(units[index]))
                yield result
    if failures:
        index, failure = next(iter(failures.items()))
        error = failure.exception()
        error.add_note(f"{len(failures)} of {len(units)} units failed, the first {units[index]}")
        raise error from None
    if missing:
        named = ", ".join(str(units[index])[:80] for index in sorted(missing)[:5])
        raise RuntimeError(
            f"{len(missing)} of {len(units)} units never came back: {named}; "
            f"run the same command again to draw them"
        )


class UnitWorker:
    """Calls the worker on units and sends back its result of each, or what it raised."""

    def __init__(
        self,
        make_worker: Callable[..., Callable[[Any], Any]],
        arguments: Mapping[str, Any],
        ledger: Any,
        overlapping: int,
    ) -> None:
        self._ledger = ledger
        self._turns = Turns(overlapping)
        self._work: Callable[[Any], Any] | None = None
        try:
            self._work = make_worker(**arguments)
        except Exception as error:
            # Raised here, Ray would start one actor after another.
            self._failure = failure_of(error, everywhere=True)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Return the index of the only unit in ``batch``, and what came of it, pickled."""
        (index,), (pickled,) = batch["index"], batch["unit"]
        return {"index": [index], "result": [pickle.dumps(self._result(int(index), pickled))]}

    def _result(self, index: int, pickled: bytes) -> Any:
        import ray

        if self._work is None:
            return self._failure
        unit = pickle.loads(pickled)
        try:
            again = self._turns.places > 1 and ray.get(self._ledger.begun.remote(index))
            with self._turns.turn(alone=bool(again)):
                begun: int = ray.get(self._ledger.begin.remote(index))
                if begun > WORKER_DEATHS + 1:
                    raise RuntimeError(
                        f"the worker died {WORKER_DEATHS + 1} times on {str(unit)[:200]}; "
                        f"out of memory, perhaps"
                    )
                return self._work(unit)
        except Exception as error:
            return failure_of(error)


class Turns:
    """Lets threads work side by side, and one alone that asks for it.

    Parameters
    ----------
    places : int
        Threads at a time.
    """

    def __init__(self, places: int) -> None:
        self.places = places
        self._free = threading.Semaphore(places)
        self._taking = threading.Lock()

    @contextlib.contextmanager
    def turn(self, *, alone: bool) -> Iterator[None]:
        """Wait for one place, or for all of them, and keep them inside the block."""
        wanted = self.places if alone else 1
        with self._taking:  # two that want all would each wait for the other's places
            for _ in range(wanted):
                self._free.acquire()
        try:
            yield
        finally:
            self._free.release(wanted)


class Ledger:
    """Counts how often each unit was begun.

    Ray Data sends a unit whose worker died to another worker for ever; a unit that kills every
    worker would never end.
    """

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()

    def begin(self, index: int) -> int:
        """Return how often the unit was begun, this time included."""
        self._begun[index] += 1
        return self._begun[index]

    def begun(self, index: int) -> int:
        """Return how often the unit was begun so far."""
        return self._begun[index]


def _results(
    make_worker: Callable[..., Callable[[Any], Any]],
    units: Sequence[Any],
    *,
    worker_arguments: Mapping[str, Any],
    workers: config.Workers,
    overlapping: int,
) -> Generator[tuple[int, Any], None, None]:
    import ray
    import ray.data

    largest = min(workers.max, len(units))
    smallest = min(workers.min, largest)
    context = data_context()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = len(units)  # a block that is lost shows as a missing unit
    context.max_consecutive_actor_init_deaths = WORKER_DEATHS * largest
    ledger = (
        ray.remote(Ledger).options(max_restarts=-1, max_task_retries=-1, **beside_driver()).remote()
    )
    rows = [{"index": index, "unit": pickle.dumps(one)} for index, one in enumerate(units)]
    # The context is one per process, and pools may be made in several threads; a dataset keeps
    # the one that it was made in.
    with _making, ray.data.DataContext.current(context):
        drawn = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            UnitWorker,
            fn_constructor_args=(make_worker, dict(worker_arguments), ledger, overlapping),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                min_size=smallest,
                max_size=largest,
                # Workers that wait for a place are what a cluster on demand adds nodes for, and
                # they stop asking when this process ends; elsewhere they cost nothing.
                initial_size=largest,
                **_side_by_side(overlapping),
            ),
            num_cpus=workers.cpus,
            num_gpus=workers.gpus,
            runtime_env=worker_environment(workers),
        )
    yield from _unpacked(drawn)


def _side_by_side(overlapping: int) -> dict[str, Any]:
    """Return what Ray Data has to be told of actors that work on several units at a time."""
    if overlapping == 1:
        return {}
    return {
        # None waits in an actor: another may be free first.
        "max_tasks_in_flight_per_actor": overlapping,
        "max_concurrent_calls_per_actor": overlapping,
        "enable_true_multi_threading": True,
    }


def _unpacked(drawn: Any) -> Generator[tuple[int, Any], None, None]:
    with contextlib.ExitStack() as stack:
        batches = iter(drawn.iter_batches(batch_size=None, prefetch_batches=0))
        if isinstance(batches, Generator):
            # Left to the garbage collector it may outlive Ray, and fail when it ends.
            stack.callback(batches.close)
        for batch in batches:
            for index, pickled in zip(batch["index"], batch["result"], strict=True):
                yield int(index), pickle.loads(pickled)
