"""Stimuli as picture files, and pictures that stand for a category of Haxby's experiment."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np
from PIL import Image, UnidentifiedImageError

from raybrain.config import InputError
from raybrain.datasets.files import Root

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")
FOLDERS = {
    "face": "faces",
    "house": "houses",
    "cat": "cats",
    "bottle": "bottles",
    "scissors": "scissors",
    "shoe": "shoes",
    "chair": "chairs",
    "scrambledpix": "controls",
}
"""Category -> folder of nilearn's ``stimuli``."""
STAND_INS = {
    "face": "1F9D1",
    "house": "1F3E0",
    "cat": "1F408",
    "bottle": "1F37E",
    "scissors": "2702",
    "shoe": "1F45E",
    "chair": "1FA91",
}
"""Category -> OpenMoji picture where the photographs are not at hand."""
SCRAMBLED = "scrambledpix"
_TILES = 16
_COMPARED = 64


def decode(content: bytes, *, name: str) -> np.ndarray:
    """Return uint8 (y, x, rgb) of an encoded picture.

    Raises
    ------
    InputError
        If it is not a picture.
    """
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{name} is not a readable picture ({error}); get it again") from None


def find_pictures(root: Root, *, folder: str, names: Sequence[str], remedy: str) -> dict[str, str]:
    """Return name -> file of every picture, at any depth below ``folder``.

    Raises
    ------
    InputError
        If any is missing.
    """
    found = {stem_of(path): path for path in root.tree(folder) if path.lower().endswith(ENDINGS)}
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(names)} pictures are missing below {root.at(folder)}, such as "
            f"{missing[0]}; {remedy}"
        )
    return {name: found[name] for name in names}


def read_pictures(
    names: Sequence[str], *, root: Root, files: Mapping[str, str]
) -> list[np.ndarray]:
    """Return uint8 (y, x, rgb) of every picture named."""
    return [decode(root.read(files[name]), name=root.at(files[name])) for name in names]


def stem_of(path: str) -> str:
    """Return the name of a picture without folder and ending."""
    name = PurePosixPath(path).name
    return name.rsplit(".", 1)[0] if name.lower().endswith(ENDINGS) else name


def picture_files(root: Root) -> dict[str, list[str]]:
    """Return category -> photographs under ``stimuli``; empty if any category has none."""
    found: dict[str, list[str]] = {}
    for category, folder in FOLDERS.items():
        place = f"stimuli/{folder}"
        names = [name for name in root.names(place) if not name.startswith(".")]
        files = [f"{place}/{name}" for name in names if name.lower().endswith(ENDINGS)]
        for name in names:  # controls/scrambled_faces/...
            if "." not in name:
                inner = [one for one in root.names(f"{place}/{name}") if not one.startswith(".")]
                files += [f"{place}/{name}/{one}" for one in inner if one.lower().endswith(ENDINGS)]
        if not files:
            return {}
        found[category] = files
    return found


def category_pictures(
    root: Root,
    *,
    categories: Sequence[str],
    files: Mapping[str, Sequence[str]],
    size: int,
) -> dict[str, np.ndarray]:
    """Return one uint8 (y, x, rgb) picture per category.

    Of photographs it is the one nearest to the category's mean; without them an OpenMoji picture,
    and for ``scrambledpix`` a mosaic of the others.
    """
    if files:
        return {category: _medoid(root, files[category]) for category in categories}
    drawn = {category: _stand_in(category, size=size) for category in STAND_INS}
    drawn[SCRAMBLED] = _mosaic(list(drawn.values()))
    for category in categories:
        if category not in drawn:
            raise InputError(
                f"there is no picture for category '{category}'; known are {', '.join(drawn)}"
            )
    return {category: drawn[category] for category in categories}


def _medoid(root: Root, files: Sequence[str]) -> np.ndarray:
    pictures = [decode(root.read(path), name=root.at(path)) for path in files]
    small = np.stack(
        [
            np.asarray(Image.fromarray(picture).resize((_COMPARED, _COMPARED)), dtype=np.float32)
            for picture in pictures
        ]
    )
    distance = np.square(small - small.mean(axis=0)).sum(axis=(1, 2, 3))
    return pictures[int(distance.argmin())]


def _stand_in(category: str, *, size: int) -> np.ndarray:
    from raybrain.stimuli import emoji_objects, render

    svg = next(emoji.svg for emoji in emoji_objects() if emoji.family == STAND_INS[category])
    return render(svg, size=size)


def _mosaic(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Return tiles of all pictures in random places; the same every time."""
    rng = np.random.default_rng(2001)
    size = pictures[0].shape[0]
    edges = np.linspace(0, size, _TILES + 1).astype(int)
    tile = int(np.diff(edges).min())
    mosaic = np.full_like(pictures[0], 255)
    for top in edges[:-1]:
        for left in edges[:-1]:
            source = pictures[int(rng.integers(len(pictures)))]
            y, x = rng.integers(0, size - tile + 1, 2)
            mosaic[top : top + tile, left : left + tile] = source[y : y + tile, x : x + tile]
    return mosaic
