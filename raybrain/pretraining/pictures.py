"""Captioned pictures for pretraining, and how they are varied."""

import csv
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from raybrain.config import InputError
from raybrain.pretraining.settings import Images
from raybrain.stimuli import pretraining_emoji, render_all

Item = TypeVar("Item")
ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})


@dataclass(frozen=True)
class Pictures:
    """Training pictures with one or more captions each."""

    pixels: Tensor
    """uint8 (image, 3, size, size)."""
    captions: tuple[tuple[str, ...], ...]
    weight: Tensor
    """(image,) how often each is drawn, relative to the others."""

    def draw(self, count: int) -> Tensor:
        """Return the numbers of `count` pictures drawn with replacement."""
        return torch.multinomial(self.weight, count, replacement=True)

    def __len__(self) -> int:
        return len(self.captions)


def open_pictures(settings: Images) -> Pictures:
    """Return the pictures of a folder, or OpenMoji without the held-out families.

    Parameters
    ----------
    settings
        A folder of images is searched recursively. Its csv has the columns ``file`` (relative to
        the folder) and ``caption``, one row per caption; without one, file names are captions.

    Raises
    ------
    InputError
        If the folder holds no image, or an image has no caption.
    """
    if settings.folder is None:
        emoji = _spread(pretraining_emoji(), settings.limit)
        return Pictures(
            pixels=_to_tensor(render_all(emoji, size=settings.size)),
            captions=tuple(e.captions for e in emoji),
            weight=_family_weight([e.family for e in emoji]),
        )
    root = Path(settings.folder)
    found = _spread(
        sorted(p for p in root.rglob("*") if p.suffix.lower() in ENDINGS), settings.limit
    )
    if not found:
        kinds = ", ".join(sorted(ENDINGS))
        raise InputError(f"no image ({kinds}) was found in {root}: point images.folder at one")
    captions = settings.captions
    said = _read_captions(captions) if captions else {}
    names = [p.relative_to(root).as_posix() for p in found]
    missing = [name for name in names if captions and name not in said]
    if missing:
        raise InputError(
            f"{captions} has no caption for {missing[0]} (and {len(missing) - 1} more): "
            "add a row 'file,caption' for each image"
        )
    return Pictures(
        pixels=_to_tensor(np.stack([_read(p, size=settings.size) for p in found])),
        captions=tuple(
            said.get(name) or (_words(path.stem),) for name, path in zip(names, found, strict=True)
        ),
        weight=torch.ones(len(found)),
    )


def to_unit(pixels: Tensor) -> Tensor:
    """Return uint8 pixels as floats in -1..1."""
    return pixels.float() / 127.5 - 1


def vary(pixels: Tensor, *, flip: float, shift: float, zoom: float, hue: float) -> Tensor:
    """Return pixels mirrored, moved, zoomed, tilted and recoloured at random.

    Parameters
    ----------
    pixels
        (n, 3, h, w) in -1..1 on white.
    flip
        Probability of a mirror image.
    shift, zoom
        Standard deviation of the displacement (fraction of the side) and of the log scale; the
        tilt in radians has that of the scale.
    hue
        Probability of a random hue rotation; grey, black and white stay as they are.
    """
    n, device = len(pixels), pixels.device
    mirror = torch.where(torch.rand(n, device=device) < flip, -1.0, 1.0)
    scale = torch.exp(zoom * torch.randn(n, device=device))
    tilt = zoom * torch.randn(n, device=device)
    move = 2 * shift * torch.randn(n, 2, device=device)
    grid = torch.zeros(n, 2, 3, device=device)
    grid[:, 0, 0] = mirror * tilt.cos() / scale
    grid[:, 0, 1] = -tilt.sin() / scale
    grid[:, 1, 0] = mirror * tilt.sin() / scale
    grid[:, 1, 1] = tilt.cos() / scale
    grid[:, :, 2] = move
    lattice = functional.affine_grid(grid, list(pixels.shape), align_corners=False)
    # Sampling 1 - x pads with white.
    moved = 1 - functional.grid_sample(1 - pixels, lattice, align_corners=False)
    turn = torch.rand(n, device=device) * 2 * math.pi * (torch.rand(n, device=device) < hue)
    return torch.einsum("nij,njhw->nihw", _hue_rotation(turn), moved).clamp(-1, 1)


def _hue_rotation(angle: Tensor) -> Tensor:
    # Rodrigues' rotation about the grey axis (1, 1, 1).
    cos, sin = angle.cos(), angle.sin()
    axis = 1 / math.sqrt(3)
    cross = torch.tensor([[0.0, -axis, axis], [axis, 0.0, -axis], [-axis, axis, 0.0]])
    grey = torch.full((3, 3), 1 / 3)
    return (
        cos[:, None, None] * torch.eye(3)
        + sin[:, None, None] * cross
        + (1 - cos)[:, None, None] * grey
    )


def _spread(items: Sequence[Item], limit: int | None) -> Sequence[Item]:
    if limit is None or limit >= len(items):
        return items
    return [items[k * len(items) // limit] for k in range(limit)]


def _family_weight(families: list[str]) -> Tensor:
    # 60 % of the pictures are skin tones of people; each family counts as the root of its size.
    size = Counter(families)
    return torch.tensor([size[family] ** -0.5 for family in families])


def _to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def _read(path: Path, *, size: int) -> NDArray[np.uint8]:
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    flat = Image.alpha_composite(white, rgba).convert("RGB")
    return np.asarray(ImageOps.fit(flat, (size, size), Image.Resampling.LANCZOS))


def _read_captions(path: str) -> dict[str, tuple[str, ...]]:
    table: dict[str, tuple[str, ...]] = {}
    with Path(path).open(newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle)
        if not {"file", "caption"} <= set(reader.fieldnames or ()):
            raise InputError(
                f"{path} should have the columns file and caption, found "
                f"{', '.join(reader.fieldnames or ())}: rename them"
            )
        for row in reader:
            table[row["file"]] = (*table.get(row["file"], ()), row["caption"])
    return table


def _words(stem: str) -> str:
    return " ".join(stem.replace("-", " ").replace("_", " ").split()).lower()
