"""The paper's idea done properly: an encoder per ROI, and a graph that has something to pass on."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch_geometric.nn import DenseGraphConv

from raybrain.decoders.row_noise import RowDropout


class RoiGraph(nn.Module):
    """Linear encoders of ROIs, graph convolutions between ROIs, and a read-out over them.

    A voxel index means nothing across ROIs, so every ROI has its own linear layer. The graph is the
    undirected functional connectivity of the training trials, one for all trials: a batch is a
    dense tensor (row, ROI, unit) over one adjacency matrix.
    """

    adjacency: Tensor

    def __init__(
        self,
        *,
        nodes: NDArray[np.int64],
        adjacency: NDArray[np.float32],
        outputs: int,
        width: int,
        depth: int,
        dropout: float,
        read_out: Literal["attention", "sum"],
    ) -> None:
        super().__init__()
        self.register_buffer("adjacency", torch.from_numpy(np.array(adjacency)), persistent=False)
        members = [row[row >= 0] for row in nodes]
        for number, voxels in enumerate(members):
            self.register_buffer(f"voxels_{number}", torch.from_numpy(voxels), persistent=False)
        self.encoders = nn.ModuleList(nn.Linear(len(voxels), width) for voxels in members)
        self.enter = nn.Sequential(nn.LayerNorm(width), nn.GELU(), RowDropout(dropout))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.convolutions = nn.ModuleList(
            DenseGraphConv(width, width, aggr="add") for _ in range(depth)
        )
        self.after = nn.Sequential(nn.GELU(), RowDropout(dropout))
        self.score = nn.Linear(width, 1) if read_out == "attention" else None
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, outputs))

    def forward(self, betas: Tensor) -> Tensor:
        """Return predictions (row, dimension)."""
        parts = [
            encoder(betas[:, getattr(self, f"voxels_{number}")])
            for number, encoder in enumerate(self.encoders)
        ]
        hidden = self.enter(torch.stack(parts, dim=1))
        adjacency = self.adjacency.to(hidden.dtype)
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            hidden = hidden + self.after(convolution(norm(hidden), adjacency))
        if self.score is None:
            return self.leave(hidden.sum(dim=1))
        share = torch.softmax(self.score(hidden), dim=1)
        return self.leave((share * hidden).sum(dim=1))
