"""Fitting networks: one torch loop, the feeds it reads and the losses it minimises."""

from raybrain.training.delivery import Way
from raybrain.training.feeds import (
    Batch,
    Feed,
    Resident,
    Streamed,
    chunk_rows,
    feed_of,
    resident,
    streamed,
)
from raybrain.training.loop import Epoch, State, fit
from raybrain.training.losses import Contrast, contrast_of
from raybrain.training.tasks import fit_task

__all__ = [
    "Batch",
    "Contrast",
    "Epoch",
    "Feed",
    "Resident",
    "State",
    "Streamed",
    "Way",
    "chunk_rows",
    "contrast_of",
    "feed_of",
    "fit",
    "fit_task",
    "resident",
    "streamed",
]
