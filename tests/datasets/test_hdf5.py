"""Lists of values of any length: read as h5py reads them, and what is damaged costs no memory."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from raybrain.config import InputError
from raybrain.datasets.files import Root
from raybrain.datasets.hdf5 import read_values

VALUES = [bytes(range(k, k + 5 + k)) for k in range(10)]
WAYS: dict[str, dict[str, Any]] = {
    "in one piece": {},
    "in chunks": {"chunks": (4,)},
    "compressed": {"chunks": (4,), "compression": "gzip", "shuffle": True},
    "by another filter": {"chunks": (4,), "compression": "lzf"},
}


def write(folder: Path, **ways: Any) -> Path:
    path = folder / "pictures.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("images", (10,), dtype=h5py.vlen_dtype(np.uint8), **ways)
        for row, value in enumerate(VALUES):
            data[row] = np.frombuffer(value, dtype=np.uint8)
    return path


@pytest.mark.parametrize("way", WAYS)
def test_values_are_those_that_h5py_reads(way: str, tmp_path: Path) -> None:
    write(tmp_path, **WAYS[way])
    found = read_values(Root(str(tmp_path)), "pictures.h5", name="images", rows=[7, 0, 7, 9])
    assert found == [VALUES[7], VALUES[0], VALUES[7], VALUES[9]]


@pytest.mark.parametrize("way", ["in one piece", "in chunks"])
def test_a_length_beyond_the_file_is_a_sentence_and_costs_no_memory(
    way: str, tmp_path: Path
) -> None:
    path = write(tmp_path, **WAYS[way])
    content = path.read_bytes()
    heap = content.index(b"GCOL").to_bytes(8, "little")  # where all values lie, after each length
    kept = len(VALUES[5]).to_bytes(4, "little") + heap
    assert content.count(kept) == 1
    path.write_bytes(content.replace(kept, b"\xff\xff\xff\x7f" + heap))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"pictures\.h5 claims 2,147,483,647 bytes for number 5"):
        read_values(Root(str(tmp_path)), "pictures.h5", name="images", rows=[5])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_texts_and_values_of_one_length_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "pictures.h5"
    with h5py.File(path, "w") as file:
        file["texts"] = ["a", "bbb"]
        file["same"] = np.array([b"ab", b"cd"])
    root = Root(str(tmp_path))
    assert read_values(root, path.name, name="texts", rows=[1]) == [b"bbb"]
    assert read_values(root, path.name, name="same", rows=[1, 0]) == [b"cd", b"ab"]


@pytest.mark.parametrize(("name", "row"), [("images", 10), ("pictures", 0)])
def test_what_is_not_there_is_a_sentence(name: str, row: int, tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(InputError, match=r"pictures\.h5"):
        read_values(Root(str(tmp_path)), "pictures.h5", name=name, rows=[row])
