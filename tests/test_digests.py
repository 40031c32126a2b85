import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from raybrain import digests
from raybrain.digests import Ledger


@pytest.fixture
def files(tmp_path) -> list[Path]:
    names = ["empty", "small", "with space # and %20"]
    for size, name in enumerate(names):
        (tmp_path / name).write_bytes(b"a" * size * 1000)
    return [tmp_path / name for name in names]


def settle() -> None:
    """Let the files be older than a clock can hide a change in, as those of a dataset are."""
    time.sleep(digests.SETTLED_NS / 1e9 + 0.1)


def test_the_digest_of_a_file_is_the_sha256_of_its_content(files, tmp_path):
    wanted = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert Ledger().digests(files) == wanted


def test_every_piece_of_a_large_file_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "PIECE", 1000)
    file = tmp_path / "large"
    content = bytearray(os.urandom(3500))
    file.write_bytes(content)
    seen = {Ledger().digests([file])[0]}
    for place in (0, 999, 1000, 2500, 3499):
        content[place] ^= 1
        file.write_bytes(content)
        seen |= set(Ledger().digests([file]))
    file.write_bytes(content[1000:2000] + content[:1000] + content[2000:])
    seen |= set(Ledger().digests([file]))
    assert len(seen) == 7


def test_a_file_is_read_again_only_when_it_may_have_changed(files, tmp_path):
    settle()
    place = tmp_path / "workspace"
    place.mkdir()
    total = sum(file.stat().st_size for file in files)
    first = Ledger(str(place))
    assert first.unread(files) == total
    found = first.digests(files)
    again = Ledger(str(place))
    assert again.unread(files) == 0
    read = []
    assert again.digests(files, advance=read.append) == found
    assert read == []


@pytest.mark.parametrize("sly", [False, True], ids=["edited", "edited and its time set back"])
def test_other_bytes_of_the_same_size_are_another_digest(files, tmp_path, sly):
    settle()
    place = tmp_path / "workspace"
    place.mkdir()
    before = Ledger(str(place)).digests(files)
    times = files[1].stat()
    files[1].write_bytes(b"b" * 1000)
    if sly:
        os.utime(files[1], ns=(times.st_atime_ns, times.st_mtime_ns))
    after = Ledger(str(place)).digests(files)
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, True]


def test_a_file_that_was_written_a_moment_ago_is_not_trusted(files, tmp_path):
    ledger = Ledger(str(tmp_path))
    files[1].write_bytes(b"c" * 1000)
    ledger.digests(files)
    assert ledger.unread(files[1:2]) == 1000


@pytest.mark.parametrize(
    "damage", ["", "{", "[1]", '{"a": 1}', '{"a": [1, 2]}', "\0", json.dumps({"a": ["x"] * 5})]
)
def test_a_damaged_ledger_costs_a_reading_and_no_more(files, tmp_path, damage):
    (tmp_path / digests.FILE).write_text(damage)
    wanted = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert Ledger(str(tmp_path)).digests(files) == wanted


def test_nothing_is_written_where_there_is_no_workspace(files, tmp_path):
    Ledger(str(tmp_path / "absent")).digests(files)
    assert not (tmp_path / "absent").exists()
