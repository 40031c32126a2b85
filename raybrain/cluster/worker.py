"""What a training loop may ask for on the worker it runs on, whoever started that worker."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

Save = Callable[[Path], None]


def report(metrics: Mapping[str, Any], save: Save | None = None) -> None:
    """Hand the metrics of one epoch to the driver, and a checkpoint to storage.

    Every worker of a group calls it once per epoch and all of them wait here for each other. In a
    candidate that a study stops early, this is where the loop ends.

    Parameters
    ----------
    metrics : mapping
        JSON values; ``metrics["epoch"]`` counts the epochs and names the checkpoint.
    save : callable, optional
        Called on rank 0 with an empty folder to write the checkpoint into.
    """
    _seat().report(metrics, save)


@contextlib.contextmanager
def latest_checkpoint() -> Iterator[Path | None]:
    """Yield the folder of the last checkpoint of this run, or None when it starts afresh."""
    with _seat().latest_checkpoint() as folder:
        yield folder


def rank() -> int:
    """Return this worker's place in its group, from 0."""
    return _seat().rank()


def world_size() -> int:
    """Return how many workers the group has."""
    return _seat().world_size()


def device() -> torch.device:
    """Return the GPU that this worker was given, or the CPU."""
    return _seat().device()


def gpu() -> str | None:
    """Return the GPU that Ray gave this process, as torch calls it; None if it gave none.

    In any process: a task, an actor, or one that Ray did not start. torch is imported only if
    there is a GPU.
    """
    ray = sys.modules.get("ray")  # as whatever Ray started has imported
    if ray is None or not ray.is_initialized() or not ray.get_gpu_ids():
        return None
    import torch

    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else None


class Seat(Protocol):
    """Where a loop runs: a worker of Ray Train, or a task of a study."""

    def report(self, metrics: Mapping[str, Any], save: Save | None) -> None:
        """See `report`."""

    def latest_checkpoint(self) -> contextlib.AbstractContextManager[Path | None]:
        """See `latest_checkpoint`."""

    def rank(self) -> int:
        """See `rank`."""

    def world_size(self) -> int:
        """See `world_size`."""

    def device(self) -> torch.device:
        """See `device`."""


class TrainSeat:
    """A worker of Ray Train."""

    def report(self, metrics: Mapping[str, Any], save: Save | None) -> None:
        """Report through Ray Train, the checkpoint from rank 0."""
        import ray.train

        folder_name = f"epoch_{int(metrics['epoch']):05d}"
        if save is None or self.rank() > 0:
            ray.train.report(dict(metrics), checkpoint_dir_name=folder_name)
            return
        with tempfile.TemporaryDirectory(prefix="rb") as folder:
            save(Path(folder))
            ray.train.report(
                dict(metrics),
                checkpoint=ray.train.Checkpoint.from_directory(folder),
                checkpoint_dir_name=folder_name,
            )

    @contextlib.contextmanager
    def latest_checkpoint(self) -> Iterator[Path | None]:
        """Yield the last checkpoint that Ray Train registered under this storage and name."""
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
            return
        with checkpoint.as_directory() as folder:
            yield Path(folder)

    def rank(self) -> int:
        """Return the rank in the group."""
        import ray.train

        return ray.train.get_context().get_world_rank()

    def world_size(self) -> int:
        """Return the size of the group."""
        import ray.train

        return ray.train.get_context().get_world_size()

    def device(self) -> torch.device:
        """Return the device that Ray Train set up, which knows who shares the node's GPUs."""
        import ray.train.torch

        return ray.train.torch.get_device()


_taken: ContextVar[Seat | None] = ContextVar("seat", default=None)


@contextlib.contextmanager
def seated(seat: Seat) -> Iterator[None]:
    """Let the functions of this module speak for ``seat`` inside the block."""
    token = _taken.set(seat)
    try:
        yield
    finally:
        _taken.reset(token)


def _seat() -> Seat:
    return _taken.get() or TrainSeat()
