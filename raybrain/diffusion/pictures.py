"""Pictures as the networks take them: checked and put together, on the host and on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from raybrain.config import InputError

if TYPE_CHECKING:
    import torch

Pictures: TypeAlias = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]
"""Images of one size as an array (image, y, x, rgb), or one by one."""


def staged(images: Pictures, *, device: torch.device) -> list[torch.Tensor]:
    """Return uint8 pictures (image, y, x, rgb) on the host: one tensor, or one each of many sizes.

    Raises
    ------
    InputError
        If a picture is not uint8 RGB.
    """
    import torch

    for image in images:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise InputError(
                f"an image is {image.dtype} of shape {image.shape}, but should be uint8 (y, x, 3)"
            )
    one_size = len({image.shape for image in images}) == 1
    groups = [list(images)] if one_size else [[image] for image in images]
    return [sendable(torch.from_numpy(np.stack(group)), device=device) for group in groups]


def sendable(values: torch.Tensor, *, device: torch.device) -> torch.Tensor:
    """Return values where `sent` can copy them to the device from while it computes."""
    return values.pin_memory() if device.type == "cuda" else values


def sent(values: torch.Tensor, *, device: torch.device) -> torch.Tensor:
    """Return values on the device, without waiting for what it computes."""
    return values.to(device, non_blocking=True)


def between_ones(pictures: torch.Tensor) -> torch.Tensor:
    """Return uint8 pictures (..., y, x, rgb) as float32 (..., rgb, y, x) between -1 and 1."""
    return pictures.movedim(-1, -3).float() / 127.5 - 1


def squares(pictures: torch.Tensor, *, side: int) -> torch.Tensor:
    """Return uint8 pictures (image, y, x, rgb) as squares (image, rgb, side, side) in -1..1."""
    import torch

    if pictures.device.type == "cpu":
        # One by one they stay in the cache, which takes half the time.
        return torch.cat([resize(between_ones(one)[None], side=side) for one in pictures])
    return resize(between_ones(pictures), side=side)


def resize(pixels: torch.Tensor, *, side: int) -> torch.Tensor:
    """Return (image, rgb, y, x) pixels between -1 and 1 as squares of ``side`` pixels."""
    from torch.nn.functional import interpolate

    if pixels.shape[-2:] == (side, side):
        return pixels
    larger = interpolate(pixels, (side, side), mode="bicubic", antialias=True, align_corners=False)
    return larger.clamp(-1, 1)  # bicubic weights overshoot at edges
