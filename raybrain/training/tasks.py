"""Fitting the network of a decoder's task: its feeds and its losses come from the task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

from raybrain.config import Training
from raybrain.training.delivery import Way
from raybrain.training.feeds import feed_of, resident
from raybrain.training.loop import Epoch, State, fit
from raybrain.training.losses import contrast_of

if TYPE_CHECKING:
    from raybrain.decoders import SharedTask, Task
    from raybrain.decoders.prior import PriorTask


def fit_task(
    network: nn.Module,
    *,
    task: Task | SharedTask | PriorTask,
    settings: Training,
    seed: int,
    state: State | None = None,
    rank: int = 0,
    world_size: int = 1,
    way: Way = "auto",
) -> Iterator[Epoch]:
    """Yield each epoch of fitting a task's network, as `fit` does.

    Parameters
    ----------
    network : nn.Module
        From ``task.build``, on its device.
    task : Task, SharedTask or PriorTask
        Its rows are held in memory where they are arrays, and streamed where they lie on disk.
    settings, seed, state, rank, world_size, way
        See `fit`.
    """
    return fit(
        network,
        train=feed_of(task.betas, targets=task.targets, count=task.count, memory=settings.memory),
        validation=resident(task.validation_betas, targets=task.validation_targets),
        settings=settings,
        seed=seed,
        cosine=task.section.cosine,
        contrast=contrast_of(task.section),
        state=state,
        rank=rank,
        world_size=world_size,
        way=way,
    )
