"""The networks that score, built from the declared files of weights and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raybrain.efficientnet import load_network

LPIPS_FEATURES = (1, 4, 7, 9, 11)
"""Positions of AlexNet's five rectifiers within ``features``."""


def build(architecture: str, *, weights: Sequence[Path]) -> nn.Module:
    """Return a network of this architecture with these weights, ready to be read."""
    model = _BUILDERS[architecture](weights)
    return model.eval().requires_grad_(False)


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _efficientnet_lite0(weights: Sequence[Path]) -> nn.Module:
    network: nn.Module = load_network("efficientnet-lite0", weights=weights[0])
    return network


def _torchvision(name: str, **settings: Any) -> Any:
    def builder(weights: Sequence[Path]) -> nn.Module:
        from torchvision import models

        model: nn.Module = getattr(models, name)(weights=None, **settings)
        model.load_state_dict(_load(weights[0]))
        return model

    return builder


def _inception(weights: Sequence[Path]) -> nn.Module:
    # torchvision turns transform_input on together with its own weights; built without them it
    # would stay off and every feature would come from images of the wrong range.
    return _torchvision("inception_v3", transform_input=True, init_weights=False)(weights)


def _swav(weights: Sequence[Path]) -> nn.Module:
    from torchvision import models

    model: nn.Module = models.resnet50(weights=None)
    state = _load(weights[0])
    state = {name.removeprefix("module."): value for name, value in state.items()}
    found = model.load_state_dict(state, strict=False)
    # The file ends in a projection head and prototypes where ResNet-50 has its classifier.
    if set(found.missing_keys) - {"fc.weight", "fc.bias"}:
        raise ValueError(f"{weights[0]} is no ResNet-50 of SwAV: it lacks {found.missing_keys[:3]}")
    return model


class VisionTransformer(nn.Module):
    """Maps images (image, rgb, y, x) to CLIP embeddings; modules are named as in the weights."""

    def __init__(self, *, size: int, patch: int, width: int, depth: int, heads: int, out: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros((size // patch) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        blocks = [_ResidualAttention(width=width, heads=heads) for _ in range(depth)]
        self.transformer = nn.ModuleDict({"resblocks": nn.Sequential(*blocks)})
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.zeros(width, out))

    def forward(self, images: Tensor) -> Tensor:
        """Return the projected class token (image, out)."""
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(patches), 1, -1)
        x = self.ln_pre(torch.cat([first, patches], dim=1) + self.positional_embedding)
        x = self.transformer["resblocks"](x)
        return self.ln_post(x[:, 0]) @ self.proj


class _ResidualAttention(nn.Module):
    def __init__(self, *, width: int, heads: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)}
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        hidden = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](hidden * torch.sigmoid(1.702 * hidden))


def clip_vision(state: Mapping[str, Tensor]) -> VisionTransformer:
    """Return CLIP's image tower, its sizes read off the weights, named as OpenAI named them."""
    mine = {
        name.removeprefix("visual."): value.float()
        for name, value in state.items()
        if name.startswith("visual.")
    }
    width, _, patch, _ = mine["conv1.weight"].shape
    side = round((len(mine["positional_embedding"]) - 1) ** 0.5)
    blocks = {name.split(".")[2] for name in mine if name.startswith("transformer.resblocks.")}
    model = VisionTransformer(
        size=side * patch,
        patch=patch,
        width=width,
        depth=len(blocks),
        heads=width // 64,  # as in every CLIP vision transformer
        out=mine["proj"].shape[1],
    )
    model.load_state_dict(mine)
    return model


def _clip(weights: Sequence[Path]) -> nn.Module:
    # OpenAI's file is a TorchScript archive; only its tensors are used.
    return clip_vision(torch.jit.load(weights[0], map_location="cpu").state_dict())


class Lpips(nn.Module):
    """Perceptual distance of paired images from AlexNet features (Zhang et al. 2018)."""

    def __init__(self, *, features: nn.Module, linear: Sequence[Tensor]):
        super().__init__()
        self.features = features
        for k, weight in enumerate(linear):
            self.register_buffer(f"linear{k}", weight)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the five feature maps of images (image, rgb, y, x), channels of length one."""
        found = []
        for position, module in enumerate(self.features.children()):
            images = module(images)
            if position in LPIPS_FEATURES:
                norm = images.square().sum(dim=1, keepdim=True).sqrt()
                found.append(images / (norm + 1e-10))
        return found

    def distance(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """Return the distance (image,) between feature maps from `forward`."""
        total = torch.zeros(len(a[0]), device=a[0].device)
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            weight = self.get_buffer(f"linear{k}").view(1, -1, 1, 1)
            total = total + ((x - y).square() * weight).sum(dim=1).mean(dim=(1, 2))
        return total


def _lpips(weights: Sequence[Path]) -> nn.Module:
    from torchvision import models

    alexnet = models.alexnet(weights=None)
    alexnet.load_state_dict(_load(weights[0]))
    linear = _load(weights[1])
    for module in alexnet.features:
        if isinstance(module, nn.ReLU):
            module.inplace = False  # the maps are kept while the next layers run
    return Lpips(
        features=alexnet.features, linear=[linear[f"lin{k}.model.1.weight"] for k in range(5)]
    )


_BUILDERS = {
    "efficientnet-lite0": _efficientnet_lite0,
    "alexnet": _torchvision("alexnet"),
    "inception_v3": _inception,
    "efficientnet_b1": _torchvision("efficientnet_b1"),
    "efficientnet_v2_s": _torchvision("efficientnet_v2_s"),
    "resnet50": _swav,
    "clip-vit-l-14": _clip,
    "lpips-alexnet": _lpips,
}
