"""The protocols of published systems; their weights have to be fetched before they can be used."""

from __future__ import annotations

from typing import Literal

from raybrain.evaluation.declarations import (
    PIXCORR,
    SSIM,
    Layer,
    Metric,
    Network,
    Protocol,
    WeightsFile,
)


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
        PIXCORR,
        SSIM,
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
