"""Fitting networks: one torch loop, the feeds it reads and the losses it minimises."""

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

__all__ = [
    "Batch",
    "Epoch",
    "Feed",
    "Resident",
    "State",
    "Streamed",
    "chunk_rows",
    "feed_of",
    "fit",
    "resident",
    "streamed",
]
