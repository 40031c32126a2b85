"""Random numbers that belong to a row of the global batch, whichever worker holds the row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class RowNoise:
    """Draws for the whole global batch, of which a worker keeps its own rows.

    Every worker draws the same numbers from an equally seeded generator, so dropout and sampling
    do not depend on how many workers share the batch.
    """

    generator: torch.Generator
    total: int = 0
    start: int = 0
    stop: int = 0

    def uniform(self, like: Tensor) -> Tensor:
        """Return uniform draws on [0, 1) with the shape of ``like``, rows first."""
        return self._own(torch.rand, like)

    def normal(self, like: Tensor) -> Tensor:
        """Return standard normal draws with the shape of ``like``, rows first."""
        return self._own(torch.randn, like)

    def _own(self, draw, like: Tensor) -> Tensor:
        if len(like) != self.stop - self.start:
            raise ValueError(f"expected rows {self.start} to {self.stop}, found {len(like)} rows")
        shape = (self.total, *like.shape[1:])
        return draw(shape, generator=self.generator, device=like.device)[self.start : self.stop]


class NoisyModule(nn.Module):
    """A module that draws random numbers while training; `training.fit` sets its ``noise``."""

    noise: RowNoise | None = None

    def uniform(self, like: Tensor) -> Tensor:
        """Return uniform draws with the shape of ``like``."""
        return torch.rand_like(like) if self.noise is None else self.noise.uniform(like)

    def normal(self, like: Tensor) -> Tensor:
        """Return standard normal draws with the shape of ``like``."""
        return torch.randn_like(like) if self.noise is None else self.noise.normal(like)


class RowDropout(NoisyModule):
    """Dropout whose mask belongs to the row, so that any number of workers drops the same units."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, inputs: Tensor) -> Tensor:
        """Return ``inputs`` with a share of the units at zero and the rest scaled up."""
        if not self.training or self.share == 0.0:
            return inputs
        kept = self.uniform(inputs) >= self.share
        return inputs * kept / (1.0 - self.share)
