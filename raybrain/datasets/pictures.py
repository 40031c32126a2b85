"""Stimuli as picture files, and pictures that stand for a category of Haxby's experiment."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from raybrain.config import InputError
from raybrain.datasets.files import Root
from raybrain.datasets.tables import composed
from raybrain.seal import digest_of

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


def decode(content: bytes, *, name: str, background: str = "white") -> np.ndarray:
    """Return uint8 (y, x, rgb) of an encoded picture, upright and on a background.

    Pictures of 16 bits a channel keep their upper 8; floating-point ones must lie in 0..1.

    Raises
    ------
    InputError
        If it is not a picture, is damaged, claims so many pixels that it may be a decompression
        bomb, or holds numbers whose range is not known.
    """
    try:
        with _opened(content) as picture:
            upright = ImageOps.exif_transpose(picture)
            return _eight_bits(upright, name=name, background=background)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # Pillow raises many kinds on a damaged file
        raise _unreadable(name, error) from None


def side_of(content: bytes, *, name: str) -> int:
    """Return the pixels along the shorter side of an encoded picture, reading only its head."""
    return min(size_of(content, name=name))


def size_of(content: bytes, *, name: str) -> tuple[int, int]:
    """Return width and height in pixels of an encoded picture, reading only its head."""
    try:
        with _opened(content) as picture:
            return picture.size
    except Exception as error:  # Pillow raises many kinds on a damaged file
        raise _unreadable(name, error) from None


def _unreadable(name: str, error: Exception) -> InputError:
    known = not isinstance(error, UnidentifiedImageError)
    reason = str(error) if known else "its kind is not known"
    return InputError(f"{name} is not a readable picture ({reason}); get it again")


@contextlib.contextmanager
def _opened(content: bytes) -> Iterator[Image.Image]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(content)) as picture:
            yield picture


def _eight_bits(picture: Image.Image, *, name: str, background: str) -> np.ndarray:
    if picture.mode.startswith("I"):  # 16 bits, in one of Pillow's four ways to hold them
        grey = np.asarray(picture).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise InputError(f"{name} has values outside 0..65535; save it with 8 or 16 bits")
        return np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if picture.mode == "F":
        values = np.asarray(picture)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise InputError(
                f"{name} has floating-point values outside 0..1; save it with 8 or 16 bits"
            )
        return np.repeat(np.rint(values * 255).astype(np.uint8)[..., None], 3, axis=2)
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        ground = Image.new("RGBA", layer.size, background)
        picture = Image.alpha_composite(ground, layer)
    return np.asarray(picture.convert("RGB"))


def as_square(image: np.ndarray, *, side: int, how: str, background: str) -> np.ndarray:
    """Return uint8 (side, side, rgb) of a picture (y, x, rgb).

    Parameters
    ----------
    how
        ``crop`` keeps the centre, ``pad`` the whole on the background, ``stretch`` distorts.
    """
    if image.shape[:2] == (side, side):
        return image
    picture, size, filter_ = Image.fromarray(image), (side, side), Image.Resampling.LANCZOS
    if how == "crop":
        return np.asarray(ImageOps.fit(picture, size, filter_))
    if how == "pad":
        return np.asarray(ImageOps.pad(picture, size, filter_, color=background))
    return np.asarray(picture.resize(size, filter_))


def find_pictures(root: Root, *, folder: str, names: Sequence[str], remedy: str) -> dict[str, str]:
    """Return name -> file of every picture, at any depth below ``folder``; hidden files are none.

    A name is a file's path below the folder or its last part, with or without the ending; letters
    with accents may be composed or not.

    Raises
    ------
    InputError
        If any is missing, could be either of two, or is another name for the same file.
    """
    below = f"{folder.rstrip('/')}/" if folder else ""
    found = names_of_all(root, folder=folder)
    chosen: dict[str, str] = {}
    missing = [name for name in names if composed(name) not in found]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(names)} pictures are missing below {root.at(folder)}, such as "
            f"{missing[0]}; {remedy}"
        )
    owner: dict[str, str] = {}
    for name in names:
        files = found[composed(name)]
        # A path that is exactly the name goes before a file of that name in a deeper folder.
        exact = [file for file in files if composed(file.removeprefix(below)) == composed(name)]
        if len(exact or files) > 1:
            raise InputError(
                f"image '{name}' could be {root.at(files[0])} or {root.at(files[1])}; write its "
                f"folder and ending as well"
            )
        file = (exact or files)[0]
        if file in owner:
            raise InputError(
                f"{root.at(file)} is called both '{owner[file]}' and '{name}'; write one of them "
                f"everywhere"
            )
        owner[file] = name
        chosen[name] = file
    return chosen


def names_of_all(root: Root, *, folder: str) -> dict[str, list[str]]:
    """Return name -> files of that name of all pictures below a folder."""
    below = f"{folder.rstrip('/')}/" if folder else ""
    found: dict[str, list[str]] = {}
    for path in root.tree(folder):
        inner = PurePosixPath(path.removeprefix(below))
        if path.lower().endswith(ENDINGS) and not any(p.startswith(".") for p in inner.parts):
            for name in names_of(inner):
                found.setdefault(name, []).append(path)
    return found


def names_of(path: PurePosixPath) -> set[str]:
    """Return what a table may call a picture: with its folders or without, and its ending."""
    whole = composed(str(path))
    last = composed(path.name)
    return {whole, stem_of(whole), last, stem_of(last)}


def read_pictures(
    names: Sequence[str], *, root: Root, files: Mapping[str, str], background: str = "white"
) -> list[np.ndarray]:
    """Return uint8 (y, x, rgb) of every picture named."""
    return [
        decode(root.read(files[name]), name=root.at(files[name]), background=background)
        for name in names
    ]


def read_sides(names: Sequence[str], *, root: Root, files: Mapping[str, str]) -> list[int]:
    """Return the pixels along the shorter side of every picture named."""
    return [side_of(root.read(files[name]), name=root.at(files[name])) for name in names]


def names_and_sizes(root: Root, pictures: Mapping[str, str]) -> str:
    """Return a fingerprint of thousands of pictures without reading them."""
    return f"names and sizes:{digest_of({path: root.size(path) for path in pictures.values()})}"


def stem_of(path: str) -> str:
    """Return the name of a picture without its ending; folders stay."""
    return path.rsplit(".", 1)[0] if path.lower().endswith(ENDINGS) else path


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
