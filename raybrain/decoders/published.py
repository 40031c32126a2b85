"""The four decoders of Hou & Najafi Khoshnoo (2023), as their notebooks define them.

Input are z-scored betas (row, voxel), output is a target (row, dimension). Convolutions run over
the voxel axis, so they depend on the order of voxels; see `raybrain.decoders.voxel_order`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raybrain.decoders.row_noise import NoisyModule
from raybrain.decoders.wiring import chebyshev


class VoxelCnn(nn.Module):
    """Residual convolutions over the voxel axis that share their weights, then a perceptron."""

    order: Tensor

    def __init__(self, *, order: NDArray[np.int64], block: nn.Sequential, repeats: int) -> None:
        super().__init__()
        self.register_buffer("order", torch.from_numpy(np.array(order)), persistent=False)
        self.reorders = not np.array_equal(order, np.arange(len(order)))
        self.repeats = repeats
        self.enter = nn.Conv1d(1, 64, kernel_size=1)
        self.block = block
        self.leave = nn.Conv1d(64, 1, kernel_size=1)

    def convolve(self, betas: Tensor) -> Tensor:
        """Return filtered betas (row, voxel)."""
        ordered = betas[:, self.order] if self.reorders else betas
        hidden = self.enter(ordered.unsqueeze(1))
        for _ in range(self.repeats):
            hidden = hidden + self.block(hidden)
        return self.leave(hidden).squeeze(1)


class CnnText(VoxelCnn):
    """The paper's text decoder: 3 passes of one block of three convolutions of 7 voxels."""

    def __init__(self, *, order: NDArray[np.int64], outputs: int) -> None:
        block = nn.Sequential(
            nn.Conv1d(64, 64, kernel_size=7, padding=3),
            nn.ReLU(),
            nn.Conv1d(64, 64, kernel_size=7, padding=3),
            nn.ReLU(),
            nn.Conv1d(64, 64, kernel_size=7, padding=3),
        )
        super().__init__(order=order, block=block, repeats=3)
        self.perceptron = nn.Sequential(
            nn.Linear(len(order), 1024),
            nn.ReLU(),
            nn.Linear(1024, 2048),
            nn.ReLU(),
            nn.Linear(2048, outputs),
        )

    def forward(self, betas: Tensor) -> Tensor:
        """Return predictions (row, dimension)."""
        return self.perceptron(self.convolve(betas))


class CnnImage(VoxelCnn):
    """The paper's image decoder: 2 passes of one block of two convolutions of 11 voxels."""

    def __init__(self, *, order: NDArray[np.int64], outputs: int) -> None:
        block = nn.Sequential(
            nn.Conv1d(64, 64, kernel_size=11, padding=5),
            nn.ReLU(),
            nn.Conv1d(64, 64, kernel_size=11, padding=5),
            nn.ReLU(),
        )
        super().__init__(order=order, block=block, repeats=2)
        self.perceptron = nn.Sequential(
            nn.Linear(len(order), 512),
            nn.ReLU(),
            nn.Linear(512, 512),
            nn.ReLU(),
            nn.Linear(512, outputs),
        )

    def forward(self, betas: Tensor) -> Tensor:
        """Return predictions (row, dimension)."""
        return self.perceptron(self.convolve(betas))


class Vae(NoisyModule):
    """The paper's variational decoder: the sampled code is the target, and decodes to the betas.

    While training it returns the sample and, per row, the squared error of the betas that the
    sample decodes to. There is no divergence term, as published. Afterwards it returns the mean of
    the code, where the notebook draws a sample.
    """

    def __init__(self, *, voxels: int, outputs: int, share_middle: bool, width: int = 4096) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(voxels, 512), nn.LeakyReLU(), nn.Linear(512, 256))
        self.mean = nn.Linear(256, outputs)
        self.log_variance = nn.Linear(256, outputs)
        first, second = _normalised_layer(outputs, width), _normalised_layer(width, width)
        third = second if share_middle else _normalised_layer(width, width)
        self.decoder = nn.Sequential(first, second, third, nn.Linear(width, voxels))

    def forward(self, betas: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return predictions (row, dimension), while training with a loss (row,)."""
        hidden = self.encoder(betas)
        mean = self.mean(hidden)
        if not self.training:
            return mean
        sample = mean + torch.exp(0.5 * self.log_variance(hidden)) * self.normal(mean)
        error = (self.decoder(sample).float() - betas) ** 2
        return sample, error.mean(dim=1)


def _normalised_layer(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.LeakyReLU())


class DenseCheb(nn.Module):
    """Chebyshev graph convolution of many trials over one graph, without collating graphs.

    Computes the same as torch_geometric's ChebConv, ``sum_k T_k X W_k + b`` (Defferrard et al.
    2016), but multiplies the features by all W_k in one product and only then mixes the few nodes.
    On a GPU nodes and terms are mixed in one product too, for which fewer kernels are started; it
    adds in another order.
    """

    basis: Tensor
    mix: Tensor
    mixes_at_once: bool | None = None
    """Whether to mix in one product; on a GPU alone when None."""

    def __init__(
        self, *, inputs: int, outputs: int, propagation: NDArray[np.float32], order: int
    ) -> None:
        super().__init__()
        basis = torch.from_numpy(chebyshev(np.array(propagation), order=order))
        self.register_buffer("basis", basis, persistent=False)
        together = basis.permute(1, 2, 0).reshape(len(propagation), -1)
        self.register_buffer("mix", together, persistent=False)
        self.weight = nn.Parameter(torch.empty(inputs, order * outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        bound = math.sqrt(6.0 / (inputs + outputs))  # Glorot, per term as torch_geometric does
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, features: Tensor) -> Tensor:
        """Return features (row, node, output) of (row, node, input)."""
        rows, nodes, _ = features.shape
        at_once = features.is_cuda if self.mixes_at_once is None else self.mixes_at_once
        if at_once:
            sent = (features @ self.weight).view(rows, nodes * len(self.basis), -1)
            return torch.baddbmm(self.bias, self.mix.expand(rows, -1, -1), sent)
        terms = (features @ self.weight).view(rows, nodes, len(self.basis), -1)
        return torch.einsum("kij,rjko->rio", self.basis.to(terms.dtype), terms) + self.bias


class Gcn(nn.Module):
    """The paper's graph decoder: three nodes of voxels, two Chebyshev layers, a mean over nodes."""

    nodes: Tensor

    def __init__(
        self, *, nodes: NDArray[np.int64], propagation: NDArray[np.float32], outputs: int
    ) -> None:
        super().__init__()
        # One past the last voxel is a column of zeros; -1 points there.
        self.register_buffer("nodes", torch.from_numpy(np.array(nodes)), persistent=False)
        self.first = DenseCheb(inputs=nodes.shape[1], outputs=512, propagation=propagation, order=4)
        self.second = DenseCheb(inputs=512, outputs=512, propagation=propagation, order=3)
        self.normalise = nn.BatchNorm1d(512)
        self.activate = nn.LeakyReLU()
        self.enter = nn.Sequential(nn.Conv1d(1, 16, kernel_size=1), nn.LeakyReLU())
        self.block = nn.Sequential(nn.Conv1d(16, 16, kernel_size=3, padding=1), nn.LeakyReLU())
        self.leave = nn.Conv1d(16, 1, kernel_size=1)
        self.perceptron = nn.Sequential(
            nn.Linear(512, 1024), nn.LeakyReLU(), nn.Linear(1024, outputs)
        )

    def forward(self, betas: Tensor) -> Tensor:
        """Return predictions (row, dimension)."""
        padded = nn.functional.pad(betas, (0, 1))
        hidden = torch.relu(self.first(padded[:, self.nodes]))
        change = self.second(hidden)
        change = self.normalise(change.flatten(0, 1)).view_as(change)
        hidden = (hidden + self.activate(change)).mean(dim=1)
        hidden = self.enter(hidden.unsqueeze(1))
        for _ in range(2):
            hidden = hidden + self.block(hidden)
        return self.perceptron(self.leave(hidden).squeeze(1))
