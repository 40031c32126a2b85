"""Frozen EfficientNet-Lite1: the eye of pretraining."""

from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional

from raybrain.diffusion.lite1 import as_lite1, block_outputs, load_lite1

STAGES = (1, 3, 6, 15)
"""Blocks after which Lite1 is read: the last at strides 2, 4, 8 and 16."""


class Eye(nn.Module):
    """Lite1 with frozen weights and frozen batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.network = load_lite1()

    def train(self, mode: bool = True) -> "Eye":
        """Stay in evaluation mode."""
        return super().train(False)

    def stages(self, pixels: Tensor) -> list[Tensor]:
        """Return feature maps at strides 2, 4, 8 and 16 of pixels (n, 3, h, w) in -1..1."""
        seen = islice(block_outputs(self.network, pixels), STAGES[-1] + 1)
        return [maps for index, maps in enumerate(seen) if index in STAGES]

    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        """Return the mean squared distance of unit-length features, averaged over four stages.

        The learned perceptual distance without learned weights (Zhang et al. 2018, eq. 1).

        Parameters
        ----------
        one, other
            Pixels (n, 3, h, w) in -1..1; gradients flow into `one` only.
        """
        with torch.no_grad():
            wanted = self.stages(other)
        found = self.stages(one)
        apart = [
            (functional.normalize(a, dim=1) - functional.normalize(b, dim=1)).square().sum(1).mean()
            for a, b in zip(found, wanted, strict=True)
        ]
        return torch.stack(apart).mean()

    @torch.no_grad()
    def embed(self, pixels: Tensor, *, size: int = 128) -> Tensor:
        """Return pooled features (n, 1280) of pixels (n, 3, h, w) in -1..1, enlarged to `size`."""
        return self.network.extract_features(as_lite1(enlarged(pixels, size=size))).mean((2, 3))


def enlarged(pixels: Tensor, *, size: int) -> Tensor:
    """Return pixels (n, 3, h, w) with `size` along each side: Lite1 sees little in 64."""
    return functional.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
