"""Folders that may be a bucket away: what needs real files works in a copy, which travels whole.

Zarr stores and seals are read and written where they are; these are for files of other libraries.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fsspec


def is_remote(folder: str) -> bool:
    """Return whether ``folder`` is a URL and not a path."""
    return "://" in folder


@contextlib.contextmanager
def writing(folder: str) -> Iterator[Path]:
    """Yield a local folder whose files are in ``folder`` when the block ends without an error."""
    if not is_remote(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="rb") as place:
        yield Path(place)
        files, root = fsspec.core.url_to_fs(folder)
        for file in sorted(Path(place).rglob("*")):
            if file.is_file():
                files.put_file(str(file), f"{root}/{file.relative_to(place).as_posix()}")


@contextlib.contextmanager
def reading(folder: str) -> Iterator[Path]:
    """Yield a local folder that holds what ``folder`` holds, while the block lasts."""
    if not is_remote(folder):
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="rb") as place:
        files, root = fsspec.core.url_to_fs(folder)
        files.invalidate_cache()
        for file in files.find(root):
            target = Path(place, file.removeprefix(root).lstrip("/"))
            target.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(file, str(target))
        yield Path(place)


def exists(path: str) -> bool:
    """Return whether there is a file or folder."""
    files, root = fsspec.core.url_to_fs(path)
    files.invalidate_cache()  # another process may have written it
    return bool(files.exists(root))


def remove(folder: str) -> None:
    """Remove a folder and all it holds, if it is there."""
    files, root = fsspec.core.url_to_fs(folder)
    files.invalidate_cache()
    with contextlib.suppress(FileNotFoundError):
        files.rm(root, recursive=True)


def read_text(path: str) -> str:
    """Return the text of a file."""
    files, root = fsspec.core.url_to_fs(path)
    content: bytes = files.cat_file(root)
    return content.decode()


def read_bytes(path: str) -> bytes:
    """Return the content of a file."""
    files, root = fsspec.core.url_to_fs(path)
    return bytes(files.cat_file(root))


def names(folder: str) -> list[str]:
    """Return the names of the files in a folder, ascending; none if there is no such folder."""
    files, root = fsspec.core.url_to_fs(folder)
    files.invalidate_cache()
    try:
        return sorted(str(one).rpartition("/")[2] for one in files.ls(root, detail=False))
    except FileNotFoundError:
        return []


def write_text(path: str, text: str) -> None:
    """Write a file that appears whole under its name."""
    write_bytes(path, text.encode())


def write_bytes(path: str, content: bytes) -> None:
    """Write a file that appears whole under its name."""
    files, root = fsspec.core.url_to_fs(path)
    if is_remote(path):
        files.pipe_file(root, content)
        return
    Path(root).parent.mkdir(parents=True, exist_ok=True)
    part = Path(f"{root}.{os.getpid()}.part")  # two commands may write the same
    part.write_bytes(content)
    part.replace(root)
