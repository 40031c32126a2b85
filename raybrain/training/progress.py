"""How far training has come, and the learning rate and the end that follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from raybrain.config import Training

WARM_UP = 0.05
"""Share of the steps over which the learning rate rises, with the cosine schedule."""

PLATEAU_FACTOR = 0.5


@dataclass
class Progress:
    """What changes from epoch to epoch beside weights and optimiser."""

    epoch: int = 0
    best_loss: float = math.inf
    stale: int = 0
    """Epochs since the best loss."""
    since_cut: int = 0
    """Epochs since the best loss or the last cut of the learning rate."""
    factor: float = 1.0


def learning_rate(settings: Training, progress: Progress, *, step: int, steps: int) -> float:
    """Return the rate of a step, of so many per epoch."""
    if settings.schedule != "cosine":
        return settings.lr * progress.factor
    total = settings.epochs * steps
    warm = max(1, round(WARM_UP * total))
    done = progress.epoch * steps + step
    if done < warm:
        return settings.lr * (done + 1) / warm
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (done - warm) / max(1, total - warm)))


def advance(progress: Progress, *, loss: float, improved: bool, settings: Training) -> None:
    """Count the epoch that ended with ``loss``; cut the rate on a plateau."""
    progress.epoch += 1
    if improved:
        progress.best_loss = loss
        progress.stale = progress.since_cut = 0
        return
    progress.stale += 1
    progress.since_cut += 1
    if settings.schedule == "plateau" and progress.since_cut >= max(1, settings.patience // 2):
        progress.factor *= PLATEAU_FACTOR
        progress.since_cut = 0
