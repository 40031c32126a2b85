"""The field's standard nonlinear decoder: linear in, residual blocks, linear out."""

from __future__ import annotations

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


class ResidualMLP(nn.Module):
    """Predicts standardised targets (row, dimension) from z-scored betas (row, voxel).

    A linear layer from voxels to ``width`` with LayerNorm, GELU and dropout, ``depth`` residual
    blocks and a linear read-out, after the backbone of MindEye (Scotti et al. 2023).
    """

    def __init__(
        self, *, voxels: int, outputs: int, width: int, depth: int, dropout: float
    ) -> None:
        super().__init__()
        self.enter = nn.Sequential(
            nn.Linear(voxels, width), nn.LayerNorm(width), nn.GELU(), RowDropout(dropout)
        )
        self.blocks = nn.Sequential(
            *(ResidualBlock(width=width, dropout=dropout) for _ in range(depth))
        )
        self.leave = nn.Linear(width, outputs)

    def forward(self, betas: Tensor) -> Tensor:
        """Return predictions (row, dimension)."""
        return self.leave(self.blocks(self.enter(betas)))
