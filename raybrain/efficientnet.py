"""EfficientNet-Lite, frozen: the eye of the simulated brain and of the pocket generator."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def load_network(name: str, *, weights: str | Path) -> Any:
    """Return a network without gradients of its own, batch norms folded into their convolutions.

    Folded, an image of 128 pixels takes 13 ms on one core rather than 17.

    Parameters
    ----------
    name : str
        Such as ``efficientnet-lite1``.
    weights : str or Path
        File of the weights, which a Python package carries.
    """
    from efficientnet_lite_pytorch import EfficientNet

    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):  # noqa: PTH123
        network = EfficientNet.from_pretrained(name, weights_path=str(weights))
    network.requires_grad_(False).eval()
    for block in (network, *network._blocks):
        _fold_normalisation(block)
    return network


def _fold_normalisation(block: Any) -> None:
    pairs = {
        "_conv_stem": "_bn0",
        "_conv_head": "_bn1",
        "_expand_conv": "_bn0",
        "_depthwise_conv": "_bn1",
        "_project_conv": "_bn2",
    }
    for conv, norm in pairs.items():
        if hasattr(block, conv):
            fused = fuse_conv_bn_eval(getattr(block, conv), getattr(block, norm))
            setattr(block, conv, fused.requires_grad_(False))
            setattr(block, norm, nn.Identity())
