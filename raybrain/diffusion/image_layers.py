"""Inner layers of an image encoder: what of a picture is where, between pixels and its meaning.

Shen et al. (PLOS Computational Biology 2019) decode the features of many layers of a network and
move a picture until it has them. Here they are averaged within fields of a grid, decoded like any
other target, and looked at by gradient guidance (`raybrain.diffusion.gradient_guidance`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raybrain.config import Features, InputError
from raybrain.diffusion.checkpoint import LITE1, Checkpoint

if TYPE_CHECKING:
    import torch

LITE1_WIDTHS = (16, *[24] * 3, *[40] * 3, *[80] * 4, *[112] * 4, *[192] * 5, 320)
"""Channels of the output of each block of EfficientNet-Lite1."""
LITE1_STRIDES = (2, *[4] * 3, *[8] * 3, *[16] * 8, *[32] * 6)
"""Pixels along one side of the picture for one of the output."""
FAINTEST = 1e-3
"""Share of the layers' usual spread below which a feature is not blown up any further."""


def layer_sizes(checkpoint: Checkpoint, *, features: Features) -> tuple[int, ...]:
    """Return the number of features of each layer in ``features.layers``, averaged on its grid.

    Raises
    ------
    InputError
        If there is no image encoder, it has no such layer, or a layer has fewer fields.
    """
    if checkpoint.image_encoder is None:
        raise InputError(
            f"features.layers needs an image encoder, and '{checkpoint.folder}' has none; leave it "
            f"out, or give the generator an image_adapter"
        )
    config = checkpoint.image_encoder_settings()
    if config.get("architectures") == [LITE1]:
        sides = [config["image_size"] // stride for stride in LITE1_STRIDES]
        widths: Sequence[int] = LITE1_WIDTHS
    else:
        count = int(config.get("num_hidden_layers", 0)) + 1  # the first are embedded patches
        sides = [config["image_size"] // config["patch_size"]] * count
        widths = [config["hidden_size"]] * count
    for layer in features.layers:
        if layer >= len(widths):
            raise InputError(
                f"features.layers has {layer}, but the image encoder in {checkpoint.image_encoder} "
                f"has layers 0 to {len(widths) - 1}"
            )
        if features.grid > sides[layer]:
            raise InputError(
                f"features.grid is {features.grid}, but layer {layer} of the image encoder in "
                f"{checkpoint.image_encoder} has {sides[layer]} x {sides[layer]} fields; type "
                f"features.grid={sides[layer]} or less"
            )
    return tuple(widths[layer] * features.grid**2 for layer in features.layers)


def on_grid(maps: torch.Tensor, *, grid: int) -> torch.Tensor:
    """Return (image, feature) of maps (image, channel, y, x): means within grid x grid fields."""
    from torch.nn import functional

    return functional.adaptive_avg_pool2d(maps, grid).flatten(1)


def of_tokens(states: torch.Tensor, *, grid: int) -> torch.Tensor:
    """Return (image, feature) of hidden states (image, 1 + y * x, width), less the class token."""
    patches = states[:, 1:]
    side = round(patches.shape[1] ** 0.5)
    maps = patches.transpose(1, 2).reshape(len(patches), -1, side, side)
    return on_grid(maps, grid=grid)


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of every feature over training images."""

    mean: NDArray[np.float32]
    """(feature,)."""
    deviation: NDArray[np.float32]
    """(feature,), above 0."""

    @classmethod
    def of(cls, blocks: Iterable[NDArray[np.floating]]) -> Spread:
        """Return that of rows, given in blocks (image, feature).

        Parameters
        ----------
        blocks : iterable of ndarray, shape (image, feature)
            Consecutive images.
        """
        sums: Any = [0, 0.0, 0.0]
        for block in blocks:
            rows = np.asarray(block, np.float64)
            parts = (len(rows), rows.sum(axis=0), np.square(rows).sum(axis=0))
            sums = [before + part for before, part in zip(sums, parts, strict=True)]
        count, total, squares = sums
        mean = total / count
        deviation = np.sqrt(np.maximum(squares / count - np.square(mean), 0.0))
        faintest = FAINTEST * np.sqrt(np.square(deviation).mean())
        # A feature that never varies has nothing to say.
        deviation = np.where(deviation > 0, np.maximum(deviation, faintest), np.inf)
        return cls(mean.astype(np.float32), deviation.astype(np.float32))


@dataclass(frozen=True)
class LayerTargets:
    """Decoded features of inner layers, with what they are compared by."""

    values: NDArray[np.floating]
    """(image, feature), layer after layer."""
    spread: Spread
    features: Features
    """Which layers, on which grid."""

    def rows(self, index: Any) -> LayerTargets:
        """Return those of some images."""
        return replace(self, values=self.values[index])

    def on(self, device: Any, *, sizes: Sequence[int]) -> Likeness:
        """Return what compares pictures with them on a device.

        Parameters
        ----------
        device : str or torch.device
            Where the pictures are.
        sizes : sequence of int
            Features of each layer, in the order of the values.
        """
        import torch

        mean = torch.from_numpy(self.spread.mean).to(device)
        deviation = torch.from_numpy(self.spread.deviation).to(device)
        values = torch.tensor(np.asarray(self.values, np.float32), device=device)
        return Likeness(
            wanted=((values - mean) / deviation).split(list(sizes), dim=1),
            mean=mean.split(list(sizes)),
            deviation=deviation.split(list(sizes)),
            features=self.features,
        )


@dataclass(frozen=True)
class Likeness:
    """How alike pictures are to decoded features, layer by layer."""

    wanted: Sequence[torch.Tensor]
    """Layer -> (row, feature) z-scores over training images."""
    mean: Sequence[torch.Tensor]
    deviation: Sequence[torch.Tensor]
    features: Features

    def cosine(self, found: Sequence[torch.Tensor], *, rows: slice) -> torch.Tensor:
        """Return (row,) the mean over layers of the cosine of z-scores, differentiable.

        Parameters
        ----------
        found : sequence of Tensor
            Layer -> (row, feature) of pictures.
        rows : slice
            Which of the decoded ones they are compared with.
        """
        import torch

        each = [
            torch.nn.functional.cosine_similarity((seen - mean) / deviation, wanted[rows])
            for seen, wanted, mean, deviation in zip(
                found, self.wanted, self.mean, self.deviation, strict=True
            )
        ]
        return torch.stack(each).mean(dim=0)
