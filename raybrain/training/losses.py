"""What is minimised: squared error, and beside it cosine and soft contrastive losses.

Every loss is a worker's share of the mean over the global batch, so that gradients summed over
workers are those of one worker with the whole batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from raybrain.decoders.row_noise import RowNoise
from raybrain.training.feeds import Batch
from raybrain.training.workers import Workers

SOFT_CLIP_TEMPERATURE = 0.125
"""Scotti et al. 2023 (MindEye), soft contrastive loss."""


def row_loss(
    output: Tensor | tuple[Tensor, Tensor], batch: Batch, *, rows: int, cosine: float
) -> Tensor:
    """Return this worker's part of the weighted mean of row losses over the global batch.

    Parameters
    ----------
    output : Tensor, shape (row, dimension), or a pair with a further loss (row,)
    batch : Batch
        This worker's rows.
    rows : int
        Rows of the global batch.
    cosine : float
        Weight of 1 - cosine similarity beside the squared error.
    """
    predictions, further = output if isinstance(output, tuple) else (output, None)
    predictions = predictions.float()
    per_row = ((predictions - batch.targets) ** 2).mean(dim=1)
    if cosine:
        similarity = functional.cosine_similarity(predictions, batch.targets, dim=1)
        per_row = per_row + cosine * (1.0 - similarity)
    if further is not None:
        per_row = per_row + further.float()
    return (per_row * batch.weight).sum() / rows


def soft_clip(predictions: Tensor, batch: Batch, *, noise: RowNoise, workers: Workers) -> Tensor:
    """Return the soft contrastive loss over the global batch (MindEye, Scotti et al. 2023).

    Cross-entropy, along rows and columns, between the similarities of predictions with targets and
    those of targets with each other. Every worker computes the loss of the whole batch; gradients
    flow into its own rows.
    """
    targets = batch.targets
    predictions = predictions.float()
    if workers.size > 1:
        predictions = _Gather.apply(predictions, noise, workers)
        targets = _Gather.apply(targets, noise, workers)
    predictions = functional.normalize(predictions, dim=1)
    targets = functional.normalize(targets, dim=1)
    wanted = functional.softmax(targets @ targets.T / SOFT_CLIP_TEMPERATURE, dim=1)
    found = predictions @ targets.T / SOFT_CLIP_TEMPERATURE
    across = -(wanted * functional.log_softmax(found, dim=1)).sum(dim=1).mean()
    down = -(wanted * functional.log_softmax(found.T, dim=1)).sum(dim=1).mean()
    return (across + down) / 2


class _Gather(torch.autograd.Function):
    """Rows of all workers; the gradient is this worker's rows, as all compute the same loss."""

    @staticmethod
    def forward(context: Any, own: Tensor, noise: RowNoise, workers: Workers) -> Tensor:
        """Return the rows of the global batch."""
        context.rows = slice(noise.start, noise.stop)
        everyone = own.new_zeros((noise.total, *own.shape[1:]))
        everyone[context.rows] = own
        return workers.total(everyone)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        """Return the gradient of the own rows."""
        return gradients[0][context.rows], None, None
