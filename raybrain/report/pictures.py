"""Pictures as small files: thumbnails for the gallery, and grids of seen beside reconstructed."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, features

Images = NDArray[np.uint8]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

PIXEL_BUDGET = 40_000_000
"""Pixels of all thumbnails together; lossy WebP takes about a quarter of a byte for each."""
LOSSLESS_BUDGET = 6_000_000
"""Up to here thumbnails keep every pixel, at one or two bytes for each."""
LARGEST_THUMBNAIL = 256
SMALLEST_THUMBNAIL = 64


class Thumbnails:
    """Collects pictures as base64 text, equal ones once."""

    def __init__(self, *, expected: int, edge: int) -> None:
        """Choose size and quality for the `expected` number of pictures of `edge` pixels."""
        affordable = int((PIXEL_BUDGET / max(expected, 1)) ** 0.5)
        self.edge = min(edge, LARGEST_THUMBNAIL, max(SMALLEST_THUMBNAIL, affordable))
        self.lossless = expected * self.edge**2 <= LOSSLESS_BUDGET
        self.format = "webp" if features.check("webp") else "png"
        self.encoded: list[str] = []
        self._place: dict[bytes, int] = {}

    def add(self, image: Images) -> int:
        """Return the position of a picture (y, x, rgb) in `encoded`."""
        key = image.tobytes()
        if key not in self._place:
            self._place[key] = len(self.encoded)
            self.encoded.append(base64.b64encode(self._bytes(image)).decode())
        return self._place[key]

    def uri(self, position: int) -> str:
        """Return the picture as a data URI."""
        return f"data:image/{self.format};base64,{self.encoded[position]}"

    def _bytes(self, image: Images) -> bytes:
        picture = Image.fromarray(image)
        if max(picture.size) > self.edge:
            picture.thumbnail((self.edge, self.edge), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        if self.format == "webp":
            picture.save(file, "WEBP", lossless=self.lossless, quality=82, method=3)
        else:
            picture.save(file, "PNG", optimize=True)
        return file.getvalue()


def image_grid(
    columns: Mapping[str, Images],
    *,
    per_line: int = 10,
    tile: int = 96,
    captions: Sequence[str] | None = None,
    path: Path | None = None,
) -> Images:
    """Return one picture (y, x, rgb) with each set of images on a line of its own, aligned.

    Parameters
    ----------
    columns
        Label, such as ``seen``, to images (image, y, x, rgb); equal counts.
    per_line
        Images side by side; further ones start a new band of lines.
    tile
        Pixels along one side of an image.
    captions
        Written under each image, shortened to fit.
    path
        Also written here as PNG.

    Raises
    ------
    ValueError
        If the sets differ in length or are empty.
    """
    counts = {label: len(images) for label, images in columns.items()}
    if len(set(counts.values())) != 1 or not min(counts.values()):
        raise ValueError(f"a grid needs as many images in every line, at least one; found {counts}")
    total = next(iter(counts.values()))
    font = ImageFont.load_default(size=max(11, tile // 7))
    small_size = max(9, tile // 9)
    small = ImageFont.load_default(size=small_size)
    gap = max(4, tile // 16)
    margin = gap + max(int(font.getlength(label)) for label in columns) + 2 * gap
    text = int(small_size * 1.6) if captions else 0
    band = len(columns) * (tile + gap) + text + gap
    across = min(per_line, total)
    bands = -(-total // per_line)
    size = (margin + across * (tile + gap) + gap, bands * band + gap)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for number in range(bands):
        top = gap + number * band
        for line, (label, images) in enumerate(columns.items()):
            y = top + line * (tile + gap)
            draw.text((margin - 2 * gap, y + tile // 2), label, "#333333", font=font, anchor="rm")
            here = range(number * per_line, min(total, (number + 1) * per_line))
            for column, k in enumerate(here):
                picture = Image.fromarray(images[k])
                if picture.size != (tile, tile):
                    picture = picture.resize((tile, tile), Image.Resampling.LANCZOS)
                canvas.paste(picture, (margin + column * (tile + gap), y))
                if captions and line == 0:
                    place = (
                        margin + column * (tile + gap) + tile // 2,
                        top + len(columns) * (tile + gap) + small_size,
                    )
                    words = _shortened(captions[k], font=small, width=tile)
                    draw.text(place, words, "#666666", font=small, anchor="ms")
    if path is not None:
        canvas.save(path, optimize=True)
    return np.asarray(canvas)


def side_by_side(images: Mapping[str, Images], *, tile: int = 160) -> Images:
    """Return one picture (y, x, rgb) of several, each (y, x, rgb), with their names above them.

    Parameters
    ----------
    images : mapping of str to ndarray of uint8, shape (y, x, rgb)
        Name -> picture, from left to right.
    tile : int
        Pixels along each side that a picture is brought to.

    Raises
    ------
    ValueError
        If there is no picture.
    """
    if not images:
        raise ValueError("there is no picture to show")
    gap, head = tile // 20, tile // 7
    font = ImageFont.load_default(size=tile // 11)
    canvas = Image.new("RGB", (len(images) * (tile + gap) + gap, head + tile + gap), "white")
    draw = ImageDraw.Draw(canvas)
    for number, (name, image) in enumerate(images.items()):
        left = gap + number * (tile + gap)
        picture = Image.fromarray(image).resize((tile, tile), Image.Resampling.LANCZOS)
        canvas.paste(picture, (left, head))
        draw.text((left + tile // 2, head // 2), name, "#333333", font=font, anchor="mm")
    return np.asarray(canvas)


def _shortened(text: str, *, font: Font, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip(" ,") + "…"
