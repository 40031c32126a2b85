"""What counts as an input is what is read, byte for byte, and nothing that lies beside it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from raybrain.config import Ingest
from raybrain.datasets import contents, open_recording
from raybrain.datasets.files import Root
from raybrain.digests import Ledger
from tests.datasets.test_conformance import CASES, Case

LITTER = (".DS_Store", "Thumbs.db", "desktop.ini", "._{}", "{}~", "{}.bak", ".{}.swp", "#{}#")
"""What operating systems and editors leave beside a file of this name."""

_opened: set[str] | None = None


def _note(event: str, arguments: tuple) -> None:
    if event == "open" and _opened is not None and isinstance(arguments[0], str):
        _opened.add(arguments[0])


sys.addaudithook(_note)


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def opened() -> Iterator[set[str]]:
    global _opened
    _opened = set()
    yield _opened
    _opened = None


def digest_of(case: Case, root: str) -> str | None:
    files = contents.required_files(case.entry, root=root, subject=case.subject, settings=Ingest())
    return contents.digest_of_contents(files, root=Root(root), digests=Ledger().digests)


def other_bytes(file: Path) -> bytes:
    before = file.read_bytes()
    middle = len(before) // 2
    return before[:middle] + bytes([before[middle] ^ 1]) + before[middle + 1 :]


def read_everything(case: Case, root: Path) -> None:
    recording = open_recording(case.entry, root=str(root), subject=case.subject, settings=Ingest())
    for session in recording.trials["session"].unique():
        recording.read_session(int(session))
    recording.read_images(recording.images["image_id"].tolist())


def test_other_bytes_of_the_same_size_count_where_they_are_read(
    case: Case, tmp_path: Path, opened: set[str]
) -> None:
    case.write(tmp_path)
    files = sorted(file for file in tmp_path.rglob("*") if file.is_file())
    opened.clear()
    read_everything(case, tmp_path)
    read = {file for file in files if str(file) in opened}
    assert read
    before = digest_of(case, str(tmp_path))
    changed = set()
    for file in files:
        content = file.read_bytes()
        file.write_bytes(other_bytes(file))
        if digest_of(case, str(tmp_path)) != before:
            changed.add(file)
        file.write_bytes(content)
    assert changed == read
    assert digest_of(case, str(tmp_path)) == before


def test_what_lies_beside_the_inputs_does_not_count(case: Case, tmp_path: Path) -> None:
    case.write(tmp_path)
    files = sorted(file for file in tmp_path.rglob("*") if file.is_file())
    before = digest_of(case, str(tmp_path))
    for folder in sorted({file.parent for file in files}):
        name = next(file.name for file in files if file.parent == folder)
        for litter in LITTER:
            (folder / litter.format(name)).write_bytes(b"litter")
        (folder / ".hidden").mkdir()
        (folder / ".hidden" / name).write_bytes(b"litter")
    assert digest_of(case, str(tmp_path)) == before


def test_a_picture_that_no_trial_shows_does_not_count(tmp_path: Path) -> None:
    (case,) = (one for one in CASES if one.name == "arrays-npy")
    case.write(tmp_path)
    before = digest_of(case, str(tmp_path))
    shown = next(tmp_path.rglob("*.png"))
    (shown.parent / "of another study.png").write_bytes(shown.read_bytes())
    assert digest_of(case, str(tmp_path)) == before
    shown.unlink()
    assert digest_of(case, str(tmp_path)) != before


def test_captions_count_when_they_come_and_when_they_go(tmp_path: Path) -> None:
    (case,) = (one for one in CASES if one.name == "arrays-npy")
    case.write(tmp_path)
    with_captions = digest_of(case, str(tmp_path))
    captions = tmp_path / "P1/captions.csv"
    kept = captions.read_bytes()
    captions.unlink()
    without = digest_of(case, str(tmp_path))
    captions.write_bytes(kept)
    assert without != with_captions
    assert digest_of(case, str(tmp_path)) == with_captions


def test_no_files_have_no_digest(case: Case, tmp_path: Path) -> None:
    assert digest_of(case, str(tmp_path / "nowhere")) is None


@pytest.mark.parametrize("name", ["things-table", "haxby", "arrays-npy", "arrays-zarr"])
def test_an_object_that_was_written_again_counts_as_changed(name: str, tmp_path: Path) -> None:
    (case,) = (one for one in CASES if one.name == name)
    case.write(tmp_path)
    memory = fsspec.filesystem("memory")
    top = f"/contents-{name}"
    for file in tmp_path.rglob("*"):
        if file.is_file():
            memory.pipe(f"{top}/{file.relative_to(tmp_path)}", file.read_bytes())
    digest: Callable[[], str | None] = lambda: digest_of(case, f"memory:/{top}")  # noqa: E731
    before = digest()
    assert before == digest()
    picture = next(file for file in memory.find(top) if file.endswith((".png", ".jpg")))
    memory.pipe(picture, memory.cat(picture))
    assert digest() != before
