"""The field's standard nonlinear decoder: linear in, residual blocks, linear out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from raybrain.decoders.row_noise import RowDropout


class ResidualBlock(nn.Module):
    """LayerNorm, linear, GELU and dropout, added to the input."""

    def __init__(self, *, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), RowDropout(dropout)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Return hidden units of the same shape."""
        return hidden + self.layers(hidden)


class Trunk(nn.Sequential):
    """What follows the input layer and can be shared by subjects: (row, width) to (row, output)."""

    def __init__(self, *, outputs: int, width: int, depth: int, dropout: float) -> None:
        super().__init__(
            nn.LayerNorm(width),
            nn.GELU(),
            RowDropout(dropout),
            *(ResidualBlock(width=width, dropout=dropout) for _ in range(depth)),
            nn.Linear(width, outputs),
        )


class Heads(NamedTuple):
    """What a network with a projector gives while it trains."""

    prediction: Tensor
    """(row, dimension), for the regression."""
    projection: Tensor
    """(row, dimension), to be compared with targets by their directions alone."""


class TwoHeadedTrunk(nn.Module):
    """A `Trunk` with a projector behind its read-out (MindEye2): contrast does not bend regression.

    The projector is used in training alone.
    """

    def __init__(
        self, *, outputs: int, width: int, depth: int, dropout: float, projection: int
    ) -> None:
        super().__init__()
        self.regress = Trunk(outputs=outputs, width=width, depth=depth, dropout=dropout)
        self.project = nn.Sequential(
            nn.LayerNorm(outputs),
            nn.GELU(),
            nn.Linear(outputs, projection),
            nn.LayerNorm(projection),
            nn.GELU(),
            nn.Linear(projection, outputs),
        )

    def forward(self, hidden: Tensor) -> Tensor | Heads:
        """Return predictions (row, dimension), and in training projections as well."""
        prediction = self.regress(hidden)
        return Heads(prediction, self.project(prediction)) if self.training else prediction


def _trunk(
    *, outputs: int, width: int, depth: int, dropout: float, projection: int | None
) -> nn.Module:
    if projection is None:
        return Trunk(outputs=outputs, width=width, depth=depth, dropout=dropout)
    return TwoHeadedTrunk(
        outputs=outputs, width=width, depth=depth, dropout=dropout, projection=projection
    )


class ResidualMLP(nn.Module):
    """Predicts standardised targets (row, dimension) from z-scored betas (row, voxel).

    A linear layer from voxels to ``width`` with LayerNorm, GELU and dropout, ``depth`` residual
    blocks and a linear read-out, after the backbone of MindEye (Scotti et al. 2023).
    """

    def __init__(
        self,
        *,
        voxels: int,
        outputs: int,
        width: int,
        depth: int,
        dropout: float,
        projection: int | None = None,
    ) -> None:
        super().__init__()
        self.enter = nn.Linear(voxels, width)
        self.trunk = _trunk(
            outputs=outputs, width=width, depth=depth, dropout=dropout, projection=projection
        )

    def forward(self, betas: Tensor) -> Tensor | Heads:
        """Return predictions (row, dimension), with a projector in training `Heads`."""
        return self.trunk(self.enter(betas))


class SharedMLP(nn.Module):
    """A `ResidualMLP` per subject that share everything but the layer from voxels.

    After the shared-subject models of MindEye2 (Scotti et al. 2024). A row is the number of its
    subject followed by that subject's betas, filled up to the widest subject: (row, 1 + widest).
    """

    labels = 1
    """Leading columns of a row that are no betas."""

    def __init__(
        self,
        *,
        voxels: Sequence[int],
        outputs: int,
        width: int,
        depth: int,
        dropout: float,
        projection: int | None = None,
    ) -> None:
        super().__init__()
        self.enter = nn.ModuleList(nn.Linear(number, width) for number in voxels)
        self.trunk = _trunk(
            outputs=outputs, width=width, depth=depth, dropout=dropout, projection=projection
        )

    def forward(self, rows: Tensor) -> Tensor | Heads:
        """Return predictions (row, dimension), with a projector in training `Heads`."""
        subject = rows[:, 0].long()
        order, parts = [], []
        for number, layer in enumerate(self.enter):
            assert isinstance(layer, nn.Linear)
            own = torch.nonzero(subject == number)[:, 0]
            order.append(own)
            # Also for no rows at all, so that every layer has a gradient on every worker.
            parts.append(layer(rows[own, 1 : 1 + layer.in_features]))
        back = torch.argsort(torch.cat(order))
        return self.trunk(torch.cat(parts)[back])
