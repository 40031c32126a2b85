"""Which part of a global batch a worker holds, and sums over workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Sum = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Workers:
    """One worker among all of them.

    Attributes
    ----------
    rank, size : int
    sum : callable
        Sums a tensor over the workers in place and returns it.
    """

    rank: int
    size: int
    sum: Sum

    def part(self, rows: Tensor) -> slice:
        """Return this worker's slice of a global batch; sizes differ by one row at most."""
        edges = [len(rows) * worker // self.size for worker in range(self.size + 1)]
        return slice(edges[self.rank], edges[self.rank + 1])

    def total(self, values: Tensor) -> Tensor:
        """Return ``values`` summed over workers."""
        return self.sum(values) if self.size > 1 else values

    def sum_gradients(self, model: nn.Module) -> None:
        """Replace every gradient by its sum over workers, in one exchange."""
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = self.total(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        start = 0
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()


def distributed_sum(values: Tensor) -> Tensor:
    """Sum ``values`` over the process group of torch.distributed."""
    torch.distributed.all_reduce(values)
    return values
