"""Meshes of the surface, beside nibabel's reading of the same files."""

from __future__ import annotations

import base64
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest

from raybrain.config import InputError
from raybrain.datasets.files import Root
from raybrain.datasets.gifti import edges_among, read_triangles
from tests.datasets import surface_tree as trees

VERTICES = 30


@pytest.fixture
def place(tmp_path: Path) -> Root:
    return Root(str(tmp_path), get="datalad get it")


def written(place: Root, triangles: np.ndarray, **how: object) -> str:
    trees.write_surface(Path(place.at("a.surf.gii")), triangles, vertices=VERTICES, **how)
    return "a.surf.gii"


@pytest.mark.parametrize("encoding", ["B64GZ", "B64BIN", "ASCII"])
def test_equals_nibabels_reading(place: Root, encoding: str) -> None:
    triangles = np.random.default_rng(0).integers(0, VERTICES, (50, 3)).astype(np.int32)
    path = written(place, triangles, encoding=f"GIFTI_ENCODING_{encoding}")
    found = read_triangles(place, path, vertices=VERTICES, side=0)
    np.testing.assert_array_equal(found, nibabel.load(place.at(path)).agg_data("triangle"))


def test_column_order_and_bytes_in_the_other_order(place: Root) -> None:
    triangles = trees.strip(VERTICES)
    path = written(place, triangles)
    text = Path(place.at(path)).read_text()
    stored = base64.b64encode(zlib.compress(triangles.astype(np.int32).tobytes())).decode()
    assert stored in text
    turned = base64.b64encode(zlib.compress(triangles.T.astype(">i4").tobytes())).decode()
    text = text.replace(stored, turned)
    head, _, rest = text.partition('Intent="NIFTI_INTENT_TRIANGLE"')
    rest = rest.replace("RowMajorOrder", "ColumnMajorOrder").replace("LittleEndian", "BigEndian")
    Path(place.at(path)).write_text(f'{head}Intent="NIFTI_INTENT_TRIANGLE"{rest}')
    np.testing.assert_array_equal(read_triangles(place, path, vertices=VERTICES, side=0), triangles)
    np.testing.assert_array_equal(nibabel.load(place.at(path)).agg_data("triangle"), triangles)


def test_edges_are_those_between_chosen_vertices_once() -> None:
    triangles = np.array([[0, 1, 2], [2, 1, 3], [3, 4, 5], [5, 5, 0]])
    found = edges_among(triangles, chosen=np.array([1, 2, 3, 5]), vertices=6)
    assert found.tolist() == [[0, 1], [0, 2], [1, 2], [2, 3]]
    assert edges_among(triangles, chosen=np.array([0, 4]), vertices=6).shape == (0, 2)


def test_bad_surfaces_are_one_sentence(place: Root) -> None:
    strip = trees.strip(VERTICES)
    with pytest.raises(InputError, match=r"a\.surf\.gii is missing; datalad get it"):
        read_triangles(place, "a.surf.gii", vertices=VERTICES, side=0)
    path = written(place, strip)
    with pytest.raises(InputError, match="has 30 vertices, but the betas lie on a surface of 32"):
        read_triangles(place, path, vertices=32, side=0)
    with pytest.raises(InputError, match="says it is CortexLeft, but CortexRight is wanted"):
        read_triangles(place, path, vertices=VERTICES, side=1)
    with pytest.raises(InputError, match="joins vertex 31, but the surface of the betas has 30"):
        read_triangles(place, written(place, strip + 2), vertices=VERTICES, side=0)
    path = written(place, np.tile(strip, (5, 1)))
    with pytest.raises(InputError, match="has more triangles than a surface"):
        read_triangles(place, path, vertices=VERTICES, side=0)
    with pytest.raises(InputError, match="holds no mesh of triangles"):
        read_triangles(place, written(place, strip[:, :2]), vertices=VERTICES, side=0)
    path = written(place, strip.astype(np.float32))
    with pytest.raises(InputError, match="of type NIFTI_TYPE_FLOAT32"):
        read_triangles(place, path, vertices=VERTICES, side=0)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<GIFTI", "<GIFTI <"),
        ('Dim0="28"', 'Dim0="27000000"'),
        ('Dim0="28"', 'Dim0="29"'),
        ('Dim0="28"', 'Dim0="-1"'),
        ('Dim0="28"', ""),
        ("GZipBase64Binary", "Base64Binary"),
        ("GZipBase64Binary", "ExternalFileBinary"),
        ("<Data>", "<Data>*"),
    ],
)
def test_damaged_surfaces_are_one_sentence(place: Root, old: str, new: str) -> None:
    path = written(place, trees.strip(VERTICES))
    text = Path(place.at(path)).read_text()
    assert old in text
    Path(place.at(path)).write_text(text.replace(old, new))
    with pytest.raises(InputError, match=r"a\.surf\.gii (cannot be read as GIFTI|has more)"):
        read_triangles(place, path, vertices=VERTICES, side=0)


def test_what_inflates_beyond_its_claim_is_not_inflated(place: Root) -> None:
    triangles = trees.strip(VERTICES)
    path = written(place, triangles)
    stored = base64.b64encode(zlib.compress(triangles.tobytes())).decode()
    bomb = base64.b64encode(zlib.compress(triangles.tobytes() + b"\0" * 50_000_000)).decode()
    text = Path(place.at(path)).read_text()
    Path(place.at(path)).write_text(text.replace(stored, bomb))
    found = read_triangles(place, path, vertices=VERTICES, side=0)
    np.testing.assert_array_equal(found, triangles)
