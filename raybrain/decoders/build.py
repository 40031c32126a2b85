"""The network that a decoder's section of the experiment describes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from raybrain import config
from raybrain.decoders.residual_mlp import ResidualMLP

Network = config.ResidualMLP
"""Sections of decoders that are fitted by gradient descent."""


def build_network(section: Network, *, voxels: int, outputs: int, seed: int) -> nn.Module:
    """Return an untrained network whose weights depend on ``seed`` alone.

    Parameters
    ----------
    section : config section
        ``decode.<target>.decoder`` of the experiment.
    voxels, outputs : int
        Length of a row of betas and of a row of targets.
    seed : int
        The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _network(section, voxels=voxels, outputs=outputs)


def _network(section: Any, *, voxels: int, outputs: int) -> nn.Module:
    if isinstance(section, config.ResidualMLP):
        return ResidualMLP(
            voxels=voxels,
            outputs=outputs,
            width=section.width,
            depth=section.depth,
            dropout=section.dropout,
        )
    raise ValueError(f"'{section.kind}' is not fitted by gradient descent; use train_ridge")
