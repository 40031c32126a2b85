"""The network that a decoder's section of the experiment describes."""

from __future__ import annotations

from typing import assert_never

import torch
from torch import nn

from raybrain import config
from raybrain.config import InputError
from raybrain.decoders.mesh_gcn import MeshGcn
from raybrain.decoders.published import CnnImage, CnnText, Gcn, Vae
from raybrain.decoders.residual_mlp import ResidualMLP
from raybrain.decoders.wiring import MESH, Wiring


def build_network(
    section: config.NetworkDecoder, *, voxels: int, outputs: int, wiring: Wiring, seed: int
) -> nn.Module:
    """Return an untrained network whose weights depend on ``seed`` alone.

    Parameters
    ----------
    section : config section
        ``decode.<target>.decoder`` of the experiment.
    voxels, outputs : int
        Length of a row of betas and of a row of targets.
    wiring : mapping of str to ndarray
        From `raybrain.decoders.wiring.wire`.
    seed : int
        The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _network(section, voxels=voxels, outputs=outputs, wiring=wiring)


def _network(
    section: config.NetworkDecoder, *, voxels: int, outputs: int, wiring: Wiring
) -> nn.Module:
    match section:
        case config.ResidualMLP() | config.MindEye2():
            return ResidualMLP(
                voxels=voxels,
                outputs=outputs,
                width=section.width,
                depth=section.depth,
                dropout=section.dropout,
                projection=projection_of(section),
            )
        case config.CnnText():
            return CnnText(order=wiring["order"], outputs=outputs)
        case config.CnnImage():
            return CnnImage(order=wiring["order"], outputs=outputs)
        case config.Vae():
            return Vae(voxels=voxels, outputs=outputs, share_middle=section.share_middle)
        case config.Gcn():
            return Gcn(nodes=wiring["nodes"], propagation=wiring["propagation"], outputs=outputs)
        case config.RoiGraph():
            from raybrain.decoders.roi_graph import RoiGraph  # 6 s of torch_geometric

            return RoiGraph(
                nodes=wiring["nodes"],
                adjacency=wiring["adjacency"],
                outputs=outputs,
                width=section.width,
                depth=section.depth,
                dropout=section.dropout,
                read_out=section.read_out,
            )
        case config.MeshGcn():
            return MeshGcn(
                edges=wiring[MESH],
                voxels=voxels,
                outputs=outputs,
                channels=section.channels,
                reach=section.reach,
                convolutions=section.convolutions,
                width=section.width,
                depth=section.depth,
                dropout=section.dropout,
            )
        case config.OtherNetwork():
            return _other(section, voxels=voxels, outputs=outputs, wiring=wiring)
        case _:
            assert_never(section)


def _other(section: config.OtherNetwork, *, voxels: int, outputs: int, wiring: Wiring) -> nn.Module:
    network = section.build(voxels=voxels, outputs=outputs, wiring=wiring)
    if not isinstance(network, nn.Module):
        raise InputError(
            f"build() of the decoder '{section.kind}' returned {type(network).__name__}; it should "
            f"return a torch.nn.Module"
        )
    return network


def projection_of(section: config.Backbone) -> int | None:
    """Return the units of the projector that a backbone is trained with, if with any."""
    return section.projection if isinstance(section, config.MindEye2) else None
