"""``decoder: {kind: low_rank}``: a linear map of few dimensions, fitted by gradient descent."""

from typing import Annotated, Literal

from pydantic import Field

from raybrain.config import OtherNetwork


class LowRank(OtherNetwork):
    """Reduced-rank regression (Izenman 1975), whose fields are settings of an experiment."""

    kind: Literal["low_rank"] = "low_rank"
    rank: Annotated[int, Field(ge=1)] = 8
    """Dimensions that predictions can vary in."""

    def build(self, *, voxels, outputs, wiring):
        """Return a network from z-scored betas (row, voxel) to (row, output)."""
        from torch import nn  # heavy, and not needed to read an experiment

        return nn.Sequential(
            nn.Linear(voxels, min(self.rank, voxels), bias=False),
            nn.Linear(min(self.rank, voxels), outputs),
        )
