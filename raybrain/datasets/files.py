"""Files of a dataset, in a local folder or behind an fsspec URL such as ``s3://bucket/folder``."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from raybrain.config import InputError

EDGE = 64 * 1024
"""Bytes hashed at either end of a large file; the tail of a gzip holds its checksum and length."""
SMALL = 8 * 1024 * 1024
"""Files below this many bytes are hashed in full."""


@dataclass(frozen=True)
class RequiredFile:
    """One file that an experiment needs from a dataset."""

    path: str
    """Relative to the root."""
    bytes: int | None
    """Size on disk, or the most it can be while it is missing; None when unknown."""
    present: bool
    parts: tuple[str, ...] = ()
    """Of a folder, the files in it that are read, relative to the root."""


@dataclass(frozen=True)
class Root:
    """The root of a dataset; light to pickle, opened anew in every process."""

    url: str
    get: str = ""
    """How to obtain what is missing; ends the sentence of the error."""
    storage: Mapping[str, Any] = field(default_factory=dict)
    """Options of the fsspec file system, for URLs only."""
    again: str = "download it again"
    """What to do about a damaged file; ends the sentence of the error."""

    @property
    def is_local(self) -> bool:
        """Whether the root is a folder of this machine."""
        return "://" not in self.url

    def at(self, path: str) -> str:
        """Return the full name of a file, for messages."""
        return f"{self.url.rstrip('/')}/{path}"

    def size(self, path: str) -> int | None:
        """Return the bytes of a file, or None if there is none."""
        if self.is_local:
            file = Path(self.at(path))
            return file.stat().st_size if file.is_file() else None
        system, where = self._resolve(path)
        try:
            found = system.info(where)
        except FileNotFoundError:
            return None
        return int(found["size"]) if found["type"] == "file" else None

    def exists(self, path: str) -> bool:
        """Return whether the file can be read."""
        return self.size(path) is not None

    def names(self, folder: str) -> list[str]:
        """Return the sorted names of what lies in a folder; nothing if there is no such folder."""
        if self.is_local:
            place = Path(self.at(folder))
            return sorted(entry.name for entry in place.iterdir()) if place.is_dir() else []
        system, where = self._resolve(folder)
        try:
            found = system.ls(where, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(str(name).rstrip("/").rsplit("/", 1)[-1] for name in found)

    def tree(self, folder: str) -> dict[str, int]:
        """Return every file below a folder, by path relative to the root, with its bytes."""
        if self.is_local:
            top = Path(self.url)
            below = (file for file in Path(self.at(folder)).rglob("*") if file.is_file())
            return {str(file.relative_to(top)): file.stat().st_size for file in sorted(below)}
        system, where = self._resolve(folder)
        found = system.find(where, detail=True)
        cut = len(where) - len(folder)
        return {str(name)[cut:]: int(entry["size"]) for name, entry in sorted(found.items())}

    def missing(self, path: str) -> InputError:
        """Return the error for a file that is not there."""
        full = self.at(path)
        if self.is_local and Path(full).is_symlink():
            return InputError(
                f"{full} is a link whose content is not here (git-annex); type: datalad get {full}"
            )
        remedy = f"; {self.get}" if self.get else "; check the root of the dataset"
        return InputError(f"{full} is missing{remedy}")

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        """Open a file for reading bytes.

        Raises
        ------
        InputError
            If there is no such file.
        """
        if not self.exists(path):
            raise self.missing(path)
        if self.is_local:
            with Path(self.at(path)).open("rb") as file:
                yield cast(BinaryIO, file)
            return
        system, where = self._resolve(path)
        with system.open(where, "rb") as remote:
            yield cast(BinaryIO, remote)

    @contextlib.contextmanager
    def local(self, path: str) -> Iterator[Path]:
        """Give a local path of the file, a temporary copy when the root is remote."""
        if not self.exists(path):
            raise self.missing(path)
        if self.is_local:
            yield Path(self.at(path))
            return
        system, where = self._resolve(path)
        folder = tempfile.mkdtemp(prefix="rb")
        try:
            copy = Path(folder) / Path(path).name
            system.get(where, str(copy))
            yield copy
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def read(self, path: str) -> bytes:
        """Return the content of a file."""
        with self.open(path) as file:
            return file.read()

    def fingerprint(self, path: str) -> str:
        """Return a word that changes with the content of a file.

        Files below 8 MiB give their sha256; larger ones their size and the sha256 of the first
        and the last 64 KiB.
        """
        with self.open(path) as file:
            size = self.size(path) or 0
            if size < SMALL:
                return f"sha256:{hashlib.sha256(file.read()).hexdigest()}"
            edges = hashlib.sha256(file.read(EDGE))
            file.seek(size - EDGE)
            edges.update(file.read(EDGE))
        return f"size:{size},edges:{edges.hexdigest()}"

    def required(self, path: str, *, at_most: int | None = None) -> RequiredFile:
        """Return the file as an entry of the data plan."""
        size = self.size(path)
        return RequiredFile(
            path=path, bytes=at_most if size is None else size, present=size is not None
        )

    def _resolve(self, path: str) -> tuple[Any, str]:
        import fsspec

        return fsspec.core.url_to_fs(self.at(path), **self.storage)
