"""Graph convolutions along the cortical surface: what a voxel's neighbours say about it."""

from __future__ import annotations

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raybrain.decoders.residual_mlp import Heads, ResidualMLP
from raybrain.decoders.voxel_graph import sent


class MeshCheb(nn.Module):
    """Chebyshev convolution over neighbours, ``sum_k T_k X W_k`` (Defferrard et al. 2016).

    Every row of a batch has the same graph. Voxels come first, so that what their neighbours send
    is one weighted sum over rows and channels at once.
    """

    start: Tensor
    sender: Tensor
    weight: Tensor

    def __init__(self, *, edges: NDArray, voxels: int, channels: int, reach: int) -> None:
        super().__init__()
        for name, array in zip(
            ("start", "sender", "weight"), sent(edges, voxels=voxels), strict=True
        ):
            self.register_buffer(name, torch.from_numpy(array), persistent=False)
        self.terms = nn.ModuleList(
            nn.Linear(channels, channels, bias=not degree) for degree in range(reach + 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return features (voxel, row, channel) of the same shape."""
        before, term = features, self._step(features)
        found = self.terms[0](features) + self.terms[1](term)
        for layer in list(self.terms)[2:]:
            before, term = term, 2 * self._step(term) - before
            found = found + layer(term)
        return found

    def _step(self, features: Tensor) -> Tensor:
        sums = nn.functional.embedding_bag(
            self.sender,
            features.flatten(1),
            self.start,
            mode="sum",
            per_sample_weights=self.weight.to(features.dtype),
        )
        return sums.view_as(features)


class MeshGcn(nn.Module):
    """Residual graph convolutions over the vertices, then the `ResidualMLP`.

    The convolutions filter the betas and add to them: without any the network is its read-out, so
    that what the surface tells is what it gains.
    """

    def __init__(
        self,
        *,
        edges: NDArray,
        voxels: int,
        outputs: int,
        channels: int,
        reach: int,
        convolutions: int,
        width: int,
        depth: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.enter = nn.Linear(1, channels)
        self.convolutions = nn.ModuleList(
            MeshCheb(edges=edges, voxels=voxels, channels=channels, reach=reach)
            for _ in range(convolutions)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(convolutions))
        self.leave = nn.Linear(channels, 1)
        self.read_out = ResidualMLP(
            voxels=voxels, outputs=outputs, width=width, depth=depth, dropout=dropout
        )

    def forward(self, betas: Tensor) -> Tensor | Heads:
        """Return predictions (row, dimension)."""
        hidden = self.enter(betas.T.unsqueeze(-1))
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            hidden = hidden + nn.functional.gelu(convolution(norm(hidden)))
        return self.read_out(betas + self.leave(hidden).squeeze(-1).T)
