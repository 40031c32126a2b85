"""Fitting networks: one torch loop, the feeds it reads and the losses it minimises."""

from raybrain.training.feeds import Batch, Feed, Resident, Streamed, resident, streamed
from raybrain.training.loop import Epoch, State, fit

__all__ = [
    "Batch",
    "Epoch",
    "Feed",
    "Resident",
    "State",
    "Streamed",
    "fit",
    "resident",
    "streamed",
]
