"""What a protocol is made of: metrics, layers, networks and files of weights, as frozen data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["pixcorr", "ssim", "lpips", "identification", "distance", "function"]
Distractors = Literal["seen", "reconstructed"]

SOURCES = {
    "alexnet": "Krizhevsky 2014",
    "clip-vit-l-14": "Radford et al. 2021",
    "efficientnet-lite0": "Tan & Le 2019",
    "efficientnet_b1": "Tan & Le 2019",
    "efficientnet_v2_s": "Tan & Le 2021",
    "inception_v3": "Szegedy et al. 2016",
    "lpips-alexnet": "Zhang et al. 2018",
    "resnet50": "He et al. 2016; SwAV's weights, Caron et al. 2020",
}
"""Architecture of a network that scores -> where it was published."""


@dataclass(frozen=True)
class Layer:
    """The output of one module of a network, flattened; nothing is pooled beyond the module."""

    name: str
    """Unique within its protocol; metrics refer to it."""
    module: str
    """Address of the module within the network, as `torch.nn.Module.get_submodule` takes it; empty
    for the network's own output."""


@dataclass(frozen=True)
class WeightsFile:
    """One file of pretrained weights, found by name and known by its digest."""

    name: str
    sha256: str
    """Leading hexadecimal digits, as many as its publisher gives; none if it gives none."""
    source: str
    """Where the file comes from, for people."""
    package: str = ""
    """An installed package that carries the file, if there is one."""
    folder: str = ""
    """Where in that package."""


@dataclass(frozen=True)
class Network:
    """A pretrained network that scores, with its preprocessing and the layers that are read."""

    name: str
    architecture: str
    size: int
    """Pixels along one side of what the network is given."""
    layers: tuple[Layer, ...]
    weights: tuple[WeightsFile, ...]
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of ImageNet, pixels in 0..1
    """Subtracted from pixels in 0..1, per channel; then `std` divides."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    resize: Literal["bilinear", "bicubic"] = "bilinear"


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
    """What is compared; None for pixels."""
    ways: int = 2
    """Candidates among which identification chooses."""
    distractors: Distractors = "seen"
    """Whose the wrong candidates are."""
    samples: Literal["each", "mean_r"] = "each"
    """Score each sample by itself, or average the correlations of an image's samples first."""
    window: Literal["gaussian", "uniform"] = "gaussian"
    """Of SSIM: sigma 1.5 with population covariance, or 7 x 7 with sample covariance."""
    function: Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.floating]] | None = (
        None
    )
    """Of another package, at the top level of a module, for tasks import it by name: images seen
    and reconstructed, (pair, y, x, rgb) in 0..1 each, at the protocol's size for pixels -> how
    alike they are, (pair,)."""
    better: Literal["higher", "lower"] = "higher"
    """Which way a function's values are better."""
    guess: float | None = None
    """A function's value by chance, where one follows from its definition."""

    @property
    def higher_is_better(self) -> bool:
        """Whether larger values are better."""
        if self.kind == "function":
            return self.better == "higher"
        return self.kind not in ("distance", "lpips")

    @property
    def chance(self) -> float | None:
        """The value of guessing, where one follows from the definition."""
        return 1.0 / self.ways if self.kind == "identification" else self.guess

    @property
    def percent(self) -> bool:
        """Whether people write it in percent."""
        return self.kind == "identification"

    def text(self, value: float) -> str:
        """Return a value as tables show it: percentages with one digit, others with three.

        Parameters
        ----------
        value : float
            In the metric's own unit: a share where it is shown in percent.
        """
        if not math.isfinite(value):
            return "–"  # noqa: RUF001
        if self.percent:
            return f"{round(100 * value, 1) + 0.0:.1f}"  # adding zero makes -0.0 a plain zero
        text = f"{round(value, 3) + 0.0:.3f}"
        return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text

    def gain_text(self, value: float) -> str:
        """Return a difference as tables show it: a value with its sign.

        Parameters
        ----------
        value : float
            In the metric's own unit: a share where it is shown in percent.
        """
        return ("+" if value > 0 else "") + self.text(value)

    @property
    def pairwise(self) -> bool:
        """Whether it has to be computed pair by pair, not as one product of features."""
        return self.kind in ("ssim", "lpips", "function")


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

    def metric(self, name: str) -> Metric:
        """Return the metric of this name.

        Raises
        ------
        ValueError
            If it has no such metric.
        """
        found = {metric.name: metric for metric in self.metrics}
        if name not in found:
            raise ValueError(f"{self.name} has no metric '{name}'; it has {', '.join(found)}")
        return found[name]


PIXCORR = Metric(
    "pixcorr", "PixCorr", "pixels", "pixcorr", "Pearson r over all pixels and colours of an image"
)
SSIM = Metric(
    "ssim", "SSIM", "pixels", "ssim", "structural similarity of grey images (Wang et al. 2004)"
)
