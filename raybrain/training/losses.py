"""What is minimised: squared error, and beside it cosine and soft contrastive losses.

Every loss is a worker's share of the mean over the global batch, so that gradients summed over
workers are those of one worker with the whole batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from raybrain import config
from raybrain.decoders.row_noise import RowNoise
from raybrain.training.feeds import Batch
from raybrain.training.workers import Workers

SOFT_CLIP_TEMPERATURE = 0.125
"""Scotti et al. 2023 (MindEye), soft contrastive loss."""


@dataclass(frozen=True)
class Contrast:
    """The contrastive losses beside the squared error, and when which of them counts.

    BiMixCo, which is MixCo (Kim et al. 2020) in both directions, then SoftCLIP, as MindEye trains
    with them (Scotti et al. 2023).
    """

    weight: float = 0.0
    """Of the contrastive losses beside the squared error; 0 leaves them out."""
    mixing: float = 0.0
    """Share of the epochs that mix betas and train with BiMixCo."""
    mixing_temperature: float = SOFT_CLIP_TEMPERATURE
    """What similarities are divided by before the softmax of BiMixCo."""
    soft_temperature: tuple[float, float] = (SOFT_CLIP_TEMPERATURE, SOFT_CLIP_TEMPERATURE)
    """Of SoftCLIP in its first and its last epoch."""

    def mixes(self, epoch: int, *, epochs: int) -> bool:
        """Return whether an epoch, counted from 0, trains on mixed betas.

        Parameters
        ----------
        epoch : int
            Counted from 0.
        epochs : int
            How many there are at most.
        """
        return self.weight > 0 and epoch < int(self.mixing * epochs)

    def temperature(self, epoch: int, *, epochs: int) -> float:
        """Return the temperature of SoftCLIP in an epoch: from first to last along a cosine.

        Parameters
        ----------
        epoch : int
            Counted from 0.
        epochs : int
            How many there are at most.
        """
        first, last = self.soft_temperature
        mixed = int(self.mixing * epochs)
        done = (epoch - mixed) / max(1, epochs - mixed - 1)
        return last + 0.5 * (first - last) * (1 + math.cos(math.pi * min(1.0, max(0.0, done))))


def contrast_of(section: config.Network | config.Prior) -> Contrast:
    """Return the contrastive losses that a decoder's section asks for."""
    if isinstance(section, config.MindEye2):
        return Contrast(
            weight=section.contrastive,
            mixing=section.mixing,
            mixing_temperature=section.mixing_temperature,
            soft_temperature=section.soft_temperature,
        )
    return Contrast(weight=section.contrastive if isinstance(section, config.Network) else 0.0)


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
    predictions, further = output if type(output) is tuple else (output, None)
    predictions = predictions.float()
    per_row = ((predictions - batch.targets) ** 2).mean(dim=1)
    if cosine:
        similarity = functional.cosine_similarity(predictions, batch.targets, dim=1)
        per_row = per_row + cosine * (1.0 - similarity)
    if further is not None:
        per_row = per_row + further.float()
    return (per_row * batch.weight).sum() / rows


def soft_clip(
    predictions: Tensor,
    batch: Batch,
    *,
    noise: RowNoise,
    workers: Workers,
    temperature: float = SOFT_CLIP_TEMPERATURE,
) -> Tensor:
    """Return the soft contrastive loss over the global batch (MindEye, Scotti et al. 2023).

    Cross-entropy, along rows and columns, between the similarities of predictions with targets and
    those of targets with each other. Every worker computes the loss of the whole batch; gradients
    flow into its own rows.
    """
    predictions = gather(predictions, noise=noise, workers=workers)
    targets = gather(batch.targets, noise=noise, workers=workers)
    predictions = functional.normalize(predictions, dim=1)
    targets = functional.normalize(targets, dim=1)
    wanted = functional.softmax(targets @ targets.T / temperature, dim=1)
    found = predictions @ targets.T / temperature
    across = -(wanted * functional.log_softmax(found, dim=1)).sum(dim=1).mean()
    down = -(wanted * functional.log_softmax(found.T, dim=1)).sum(dim=1).mean()
    return (across + down) / 2


def gather(own: Tensor, *, noise: RowNoise, workers: Workers) -> Tensor:
    """Return the rows of all workers, float32; gradients flow into this worker's own."""
    own = own.float()
    return _Gather.apply(own, noise, workers) if workers.size > 1 else own


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
