"""Pictures of every kind become the same eight bits, upright, on a background, and square."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raybrain.config import InputError
from raybrain.datasets.files import Root
from raybrain.datasets.pictures import as_square, decode, find_pictures, side_of

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 4, 3), dtype=np.uint8)


def encoded(picture: Image.Image, kind: str = "PNG", **how: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **how)
    return buffer.getvalue()


def test_rgb_is_kept_as_it_is() -> None:
    for kind in ("PNG", "BMP", "TIFF"):
        found = decode(encoded(Image.fromarray(PIXELS), kind), name="a")
        np.testing.assert_array_equal(found, PIXELS)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_the_upper_eight(kind: str) -> None:
    grey = RNG.integers(0, 65536, (5, 7)).astype(np.uint16)
    found = decode(encoded(Image.fromarray(grey), kind), name="a")
    np.testing.assert_array_equal(found, np.repeat((grey >> 8)[..., None], 3, axis=2))


def test_sixteen_bits_of_colour_keep_the_upper_eight() -> None:
    import struct
    import zlib

    wide = RNG.integers(0, 65536, (3, 5, 3)).astype(">u2")

    def chunk(kind: bytes, content: bytes) -> bytes:
        word = kind + content
        return struct.pack(">I", len(content)) + word + struct.pack(">I", zlib.crc32(word))

    rows = b"".join(b"\0" + row.tobytes() for row in wide)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 3, 16, 2, 0, 0, 0))
    content += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(decode(content, name="a"), wide >> 8)


def test_floating_point_is_a_fraction_or_refused() -> None:
    values = RNG.random((5, 7)).astype(np.float32)
    found = decode(encoded(Image.fromarray(values), "TIFF"), name="a.tif")
    np.testing.assert_array_equal(found[..., 1], np.rint(values * 255))
    for bad in (values * 255, values - 0.5, np.full_like(values, np.nan)):
        with pytest.raises(InputError, match=r"a\.tif has floating-point values outside 0\.\.1"):
            decode(encoded(Image.fromarray(bad), "TIFF"), name="a.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(orientation: int) -> None:
    turned = {
        1: PIXELS,
        2: PIXELS[:, ::-1],
        3: PIXELS[::-1, ::-1],
        4: PIXELS[::-1],
        5: PIXELS.transpose(1, 0, 2),
        6: np.rot90(PIXELS, -1),
        7: PIXELS[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(PIXELS),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(PIXELS), "PNG", exif=exif)
    np.testing.assert_array_equal(decode(content, name="a"), turned)


@pytest.mark.parametrize(("background", "value"), [("white", 255), ("grey", 128), ("black", 0)])
def test_transparent_pixels_show_the_background(background: str, value: int) -> None:
    alpha = np.zeros((6, 4, 1), np.uint8)
    alpha[:3] = 255
    layer = Image.fromarray(np.concatenate([PIXELS, alpha], axis=2))
    expected = PIXELS.copy()
    expected[3:] = value
    found = decode(encoded(layer), name="a", background=background)
    np.testing.assert_array_equal(found, expected)

    palette = Image.fromarray((np.arange(24) % 2).astype(np.uint8).reshape(6, 4), mode="P")
    palette.putpalette([10, 20, 30, 200, 100, 0])
    found = decode(encoded(palette, transparency=1), name="a", background=background)
    assert found[0, 0].tolist() == [10, 20, 30]
    assert found[0, 1].tolist() == [value] * 3
    grey = Image.fromarray(np.stack([PIXELS[..., 0], alpha[..., 0]], axis=2), mode="LA")
    found = decode(encoded(grey), name="a", background=background)
    assert (found[:3] == PIXELS[:3, :, :1]).all()
    assert (found[3:] == value).all()


def test_cmyk_and_palettes_have_their_colours() -> None:
    colours = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    found = decode(encoded(colours, "TIFF"), name="a")
    assert (found == [255, 0, 0]).all()
    palette = Image.fromarray(np.zeros((2, 2), np.uint8), mode="P")
    palette.putpalette([1, 2, 3])
    assert (decode(encoded(palette), name="a") == [1, 2, 3]).all()


def test_a_bomb_and_a_stump_are_one_sentence() -> None:
    whole = encoded(Image.fromarray(PIXELS))
    for content in (whole[:40], whole[:-40], b"", b"text", whole[:50] + b"\xff" * 30):
        with pytest.raises(InputError, match=r"^a\.png is not a readable picture \(.*; get it"):
            decode(content, name="a.png")
    bomb = encoded(Image.new("1", (20_000, 20_000)))
    assert len(bomb) < 100_000
    for read in (decode, side_of):
        with pytest.raises(InputError, match=r"^bomb\.png is not a readable picture .*exceeds"):
            read(bomb, name="bomb.png")


def test_what_is_not_square_is_cropped_padded_or_stretched() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    cropped = as_square(wide, side=10, how="crop", background="white")
    assert (cropped == 200).all()
    padded = as_square(wide, side=30, how="pad", background="white")
    np.testing.assert_array_equal(padded[10:20], wide)
    assert (padded[:10] == 255).all()
    assert (padded[20:] == 255).all()
    stretched = as_square(wide, side=10, how="stretch", background="white")
    assert stretched[:, 0].max() < 60
    assert (stretched[:, 4:6] > 190).all()
    assert as_square(wide[:, :10], side=10, how="crop", background="white").shape == (10, 10, 3)


def write(root: Path, *names: str) -> Root:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(Image.fromarray(PIXELS)))
    return Root(str(root))


def test_pictures_of_one_name_are_told_apart_by_folder_and_ending(tmp_path: Path) -> None:
    root = write(tmp_path, "i/a/cat.png", "i/b/cat.png", "i/dog.png", "i/dog.jpg", "i/.cow.png")
    (tmp_path / "i/.hidden").mkdir()
    write(tmp_path, "i/.hidden/pig.png")
    find = {"root": root, "folder": "i", "remedy": "get it"}
    found = find_pictures(names=["a/cat", "b/cat.png", "dog.png", "dog.jpg"], **find)
    assert list(found.values()) == ["i/a/cat.png", "i/b/cat.png", "i/dog.png", "i/dog.jpg"]
    for name in ("cat", "dog", "cat.png"):
        with pytest.raises(InputError, match=rf"image '{name}' could be .* or .*; write its"):
            find_pictures(names=[name], **find)
    for name in ("cow", ".cow", "pig"):
        with pytest.raises(InputError, match="1 of 1 pictures are missing"):
            find_pictures(names=[name], **find)
    with pytest.raises(InputError, match=r"is called both 'a/cat' and 'a/cat\.png'"):
        find_pictures(names=["a/cat", "a/cat.png"], **find)


def test_an_accent_may_be_composed_or_not(tmp_path: Path) -> None:
    root = write(tmp_path, "i/e\u0301te.png")
    find = {"root": root, "folder": "i", "remedy": "get it"}
    for name in ("\u00e9te", "e\u0301te"):
        assert list(find_pictures(names=[name], **find).values()) == ["i/e\u0301te.png"]
