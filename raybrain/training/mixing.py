"""Mixed betas for the first part of training, and the contrastive loss that knows of the mixing.

MixCo (Kim et al. 2020) in both directions, BiMixCo, as MindEye trains with it (Scotti et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from raybrain.training.feeds import Batch

CONCENTRATION = 0.15
"""Of the Beta distribution that shares are drawn from: mostly near 0 and near 1."""
MIXED = 0.5
"""Share of the rows that are mixed at all."""


@dataclass(frozen=True)
class Mixture:
    """Which rows of a global batch are mixed with which, and how much of their own they keep."""

    share: Tensor
    """(row,) 0..1 of the row itself."""
    partner: Tensor
    """(row,) position of the row that gives the rest."""


def draw_mixture(rows: int, *, seed: int, groups: Tensor | None = None) -> Mixture:
    """Return a mixture of `rows` rows, the same on every worker.

    Parameters
    ----------
    rows : int
        Of the global batch.
    seed : int
    groups : Tensor, shape (row,), optional
        Partners share a group, such as the subject, whose betas alone can be mixed.
    """
    rng = np.random.default_rng(seed)
    share = rng.beta(CONCENTRATION, CONCENTRATION, size=rows)
    share[rng.random(rows) >= MIXED] = 1.0
    partner = np.arange(rows)
    labels = np.zeros(rows) if groups is None else groups.cpu().numpy()
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        partner[members] = rng.permutation(members)
    return Mixture(torch.from_numpy(share.astype(np.float32)), torch.from_numpy(partner))


def mixed(batch: Batch, mixture: Mixture, *, fixed: int = 0) -> Batch:
    """Return a global batch whose betas and targets are mixed.

    Parameters
    ----------
    batch : Batch
        All rows of it.
    mixture : Mixture
    fixed : int
        Leading columns of the inputs that are labels and stay as they are.
    """
    share = mixture.share.to(batch.inputs.device, non_blocking=True)[:, None]
    partner = mixture.partner.to(batch.inputs.device, non_blocking=True)
    inputs = share * batch.inputs + (1 - share) * batch.inputs[partner]
    inputs[:, :fixed] = batch.inputs[:, :fixed]
    targets = share * batch.targets + (1 - share) * batch.targets[partner]
    return Batch(inputs, targets, batch.weight)


def bimixco(
    predictions: Tensor, targets: Tensor, mixture: Mixture, *, temperature: float
) -> Tensor:
    """Return the contrastive loss of predictions from mixed betas with unmixed targets.

    Cross-entropy in both directions, where a row should find its own target with its share and its
    partner's with the rest.

    Parameters
    ----------
    predictions, targets : Tensor, shape (row, dimension)
        Of the global batch.
    mixture : Mixture
    temperature : float
    """
    rows = torch.arange(len(targets), device=targets.device)
    share = mixture.share.to(targets.device, non_blocking=True)
    partner = mixture.partner.to(targets.device, non_blocking=True)
    wanted = torch.zeros((len(rows), len(rows)), device=targets.device)
    wanted[rows, rows] = share
    wanted.index_put_((rows, partner), 1 - share, accumulate=True)
    found = functional.normalize(predictions, dim=1) @ functional.normalize(targets, dim=1).T
    found = found / temperature
    across = -(wanted * functional.log_softmax(found, dim=1)).sum(dim=1).mean()
    down = -(wanted.T * functional.log_softmax(found.T, dim=1)).sum(dim=1).mean()
    return (across + down) / 2
