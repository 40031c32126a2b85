"""A training loop on Ray Train workers, from its last checkpoint if it was stopped before."""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybrain import config, places
from raybrain.cluster.errors import Failure, failure_of
from raybrain.cluster.session import connect, data_context, worker_environment

if TYPE_CHECKING:
    from ray.train.v2.api.callback import UserCallback

WORKER_DEATHS = 3
"""How often the workers are started again after one of them died."""
CHECKPOINTS_KEPT = 2
POLL_SECONDS = 0.1
REPORTS = "reports.jsonl"


def train(
    loop: Callable[[dict[str, Any]], Any],
    *,
    settings: dict[str, Any],
    name: str,
    storage: str,
    workers: config.Workers,
    on_report: Callable[[dict[str, Any]], None] | None = None,
) -> Any:
    """Return what ``loop(settings)`` returns on the worker of rank 0.

    The same ``storage`` and ``name`` continue a run that was killed: the loop finds its last
    checkpoint in `latest_checkpoint`. So the name must change with whatever changes the result.
    A worker that dies is replaced and the group continues from the last checkpoint; an exception
    of the loop itself is raised here at once, with its own type.

    Parameters
    ----------
    loop : callable
        Runs on every worker; calls `report` once per epoch. Its working directory is a folder of
        its own, so every path in ``settings`` must be absolute.
    settings : dict
        Handed to ``loop``.
    name : str
        Folder below ``storage``.
    storage : str
        Folder or URL that every node can reach.
    workers : config.Workers
        From ``min`` to ``max`` workers; when they differ, the group grows and shrinks with the
        cluster.
    on_report : callable, optional
        Called in this process, from another thread, with the metrics of every epoch as soon as
        rank 0 has reported them: each epoch once, those of earlier attempts first.

    Raises
    ------
    RuntimeError
        If workers died more than three times.
    """
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import (
        CheckpointConfig,
        FailureConfig,
        LoggingConfig,
        RunConfig,
        ScalingConfig,
    )

    with connect(), _journal(storage=storage, name=name) as journal:
        data_context()
        elastic = workers.min != workers.max
        trainer = TorchTrainer(
            _carrying_errors(loop),
            train_loop_config=settings,
            scaling_config=ScalingConfig(
                num_workers=(workers.min, workers.max) if elastic else workers.min,
                use_gpu=workers.gpus > 0,
                resources_per_worker={"CPU": workers.cpus, "GPU": workers.gpus},
            ),
            run_config=RunConfig(  # type: ignore[arg-type]
                name=name,
                **_storage(storage),
                failure_config=FailureConfig(max_failures=WORKER_DEATHS),
                checkpoint_config=CheckpointConfig(num_to_keep=CHECKPOINTS_KEPT),
                callbacks=[
                    _messenger(
                        journal=journal,
                        copy=_copy_of_journal(storage=storage, name=name),
                        in_group=workers.max > 1,
                    )
                ],
                worker_runtime_env=worker_environment(workers),
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )
        with _following(journal, on_report=on_report):
            return _fit(trainer)


def _storage(address: str) -> dict[str, Any]:
    """Return where Ray Train keeps checkpoints, read and written as all else is: with fsspec."""
    if not places.is_remote(address):
        return {"storage_path": address}
    import fsspec
    import pyarrow.fs

    files, path = fsspec.core.url_to_fs(address)
    handler = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(files))
    return {"storage_path": path, "storage_filesystem": handler}


def _fit(trainer: Any) -> Any:
    import ray
    from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

    try:
        return trainer.fit().return_value
    except ControllerError as error:
        if isinstance(error.controller_failure, LoopError):
            raise error.controller_failure.failure.exception() from None
        raise
    except TrainingFailedError as error:
        lines = str(error).strip().splitlines()
        raise RuntimeError(
            f"training stopped after its workers failed {WORKER_DEATHS + 1} times: {lines[-1]}"
        ) from None
    except ray.exceptions.RayActorError:
        # Ray Train answers Ctrl-C by ending the controller.
        raise KeyboardInterrupt from None


class LoopError(Exception):
    """Carries an exception of the training loop through Ray Train, which would try it again."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure

    def __str__(self) -> str:
        return self.failure.trace


def _carrying_errors(loop: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    # Ray Train hands on a loop's exception without its traceback, as pickling loses it.
    @functools.wraps(loop)
    def carrying(settings: dict[str, Any]) -> Any:
        try:
            return loop(settings)
        except Exception as error:
            raise LoopError(failure_of(error)) from error

    return carrying


def _messenger(*, journal: Path, copy: str | None, in_group: bool) -> UserCallback:
    from ray.train.v2.api.callback import UserCallback

    class Messenger(UserCallback):
        # Runs in the controller, which Ray Train keeps on the driver's node: a file will do.

        def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
            with journal.open("a") as lines:
                lines.write(json.dumps(metrics[0]) + "\n")
            if copy is not None:
                places.write_text(copy, journal.read_text())

        def after_exception(self, run_context: Any, worker_exceptions: Any) -> None:
            failure = _own_failure(worker_exceptions, in_group=in_group)
            if failure is not None:
                raise LoopError(failure)

    return Messenger()


def _own_failure(worker_exceptions: Mapping[int, Exception], *, in_group: bool) -> Failure | None:
    """Return what the loop itself raised, or None when a worker's death explains what happened."""
    from ray.exceptions import RayError

    if any(isinstance(error, RayError) for error in worker_exceptions.values()):
        return None
    for error in worker_exceptions.values():
        if not isinstance(error, LoopError):
            continue
        # In a group, the survivors of a dead worker see their connection break, a RuntimeError,
        # and may be heard before the death is known: try again, a real fault comes back.
        if not (in_group and isinstance(error.failure.exception(), RuntimeError)):
            return error.failure
    return None


@contextlib.contextmanager
def _journal(*, storage: str, name: str) -> Iterator[Path]:
    """Yield the file of this run's reports, those of earlier attempts included.

    It is kept beside the checkpoints; in a bucket, which cannot append, as a copy.
    """
    copy = _copy_of_journal(storage=storage, name=name)
    if copy is None:
        folder_of_run = Path(storage) / name
        folder_of_run.mkdir(parents=True, exist_ok=True)
        yield folder_of_run / REPORTS
        return
    with tempfile.TemporaryDirectory(prefix="rb") as folder:
        journal = Path(folder) / REPORTS
        if places.exists(copy):
            journal.write_text(places.read_text(copy))
        yield journal


def _copy_of_journal(*, storage: str, name: str) -> str | None:
    return f"{storage}/{name}/{REPORTS}" if places.is_remote(storage) else None


@contextlib.contextmanager
def _following(
    journal: Path, *, on_report: Callable[[dict[str, Any]], None] | None
) -> Iterator[None]:
    """Hand each epoch in the journal to ``on_report`` once, while the block runs."""
    if on_report is None:
        yield
        return
    finished = threading.Event()
    errors: list[BaseException] = []

    def follow() -> None:
        try:
            for metrics in _reports(journal, finished=finished):
                on_report(metrics)
        except BaseException as error:
            errors.append(error)

    follower = threading.Thread(target=follow, name="reports", daemon=True)
    follower.start()
    try:
        yield
    finally:
        finished.set()
        follower.join()
    if errors:
        raise errors[0]


def _reports(journal: Path, *, finished: threading.Event) -> Iterator[dict[str, Any]]:
    seen: set[int] = set()
    offset = 0
    while True:
        last_look = finished.wait(POLL_SECONDS)
        if journal.exists():
            with journal.open("rb") as lines:
                lines.seek(offset)
                whole, newline, _ = lines.read().rpartition(b"\n")
            offset += len(whole) + len(newline)
            for line in whole.splitlines():
                metrics = json.loads(line)
                if metrics["epoch"] not in seen:
                    seen.add(metrics["epoch"])
                    yield metrics
        if last_look:
            return
