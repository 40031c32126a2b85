"""Digests of what files hold; a file is read again only when it may have changed.

Size, times and inode of a file are a hint that is kept beside its digest. The time of the last
change of its status is among them, which no program sets back as it may the time of writing.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from raybrain import places

FILE = "digests.json"
PIECE = 64 << 20
"""Bytes that one thread reads at a time, so that one large file keeps all of them busy."""
BUFFER = 1 << 20
SETTLED_NS = 2_000_000_000
"""A file that was written more recently may be written again within the same tick of its clock."""

Hint = tuple[int, int, int, int]


@dataclass(frozen=True)
class _Known:
    hint: Hint
    digest: str


class Ledger:
    """The digests of files, and the hints by which a file counts as unchanged.

    Parameters
    ----------
    folder : str, optional
        Folder or URL in which they are kept between commands, once there is such a folder.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._folder = folder
        self._known = {} if folder is None else _read(f"{folder}/{FILE}")
        self._lock = threading.Lock()

    def unread(self, files: Sequence[Path]) -> int:
        """Return how many bytes of ``files`` `digests` would read."""
        hints = [(str(file), _hint(file)) for file in files]
        return sum(hint[0] for name, hint in hints if not self._knows(name, hint))

    def digests(
        self, files: Sequence[Path], *, advance: Callable[[int], None] = lambda count: None
    ) -> list[str]:
        """Return the digest of every file: sha256 of its content, for large files of its pieces'.

        Parameters
        ----------
        files : sequence of Path
        advance : callable
            Told how many more bytes were read, from any thread.

        Raises
        ------
        OSError
            If a file cannot be read.
        """
        with self._lock:
            before = {file: _hint(file) for file in files}
            stale = [file for file, hint in before.items() if not self._knows(str(file), hint)]
            found = {file: self._known[str(file)].digest for file in before.keys() - set(stale)}
            now = time.time_ns()
            for file, digest in _read_all(stale, advance=advance).items():
                found[file] = digest
                settled = now - max(before[file][1:3]) > SETTLED_NS
                if settled and _hint(file) == before[file]:
                    self._known[str(file)] = _Known(before[file], digest)
            if stale and self._folder is not None:
                self._save(self._folder)
            return [found[file] for file in files]

    def _knows(self, name: str, hint: Hint) -> bool:
        known = self._known.get(name)
        return known is not None and known.hint == hint

    def _save(self, folder: str) -> None:
        kept = {name: [*known.hint, known.digest] for name, known in self._known.items()}
        # What cannot be kept is read again, which costs time only.
        with contextlib.suppress(OSError):
            if places.exists(folder):
                places.write_text(f"{folder}/{FILE}", json.dumps(kept) + "\n")


@functools.cache
def ledger(folder: str) -> Ledger:
    """Return the ledger that is kept in ``folder``; one per process."""
    return Ledger(folder)


def _hint(file: Path) -> Hint:
    status = file.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _read(path: str) -> dict[str, _Known]:
    try:
        lines = json.loads(places.read_text(path))
        return {
            name: _Known((int(size), int(written), int(changed), int(inode)), str(digest))
            for name, (size, written, changed, inode, digest) in lines.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):  # absent, or damaged by anything
        return {}


def _read_all(files: Sequence[Path], *, advance: Callable[[int], None]) -> dict[Path, str]:
    pieces = [
        (file, start) for file in files for start in range(0, max(file.stat().st_size, 1), PIECE)
    ]
    parts: dict[Path, list[bytes]] = {file: [] for file in files}
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        read = functools.partial(_piece, advance=advance)
        for (file, _), digest in zip(pieces, pool.map(read, pieces), strict=True):
            parts[file].append(digest)
    return {
        file: (found[0] if len(found) == 1 else hashlib.sha256(b"".join(found)).digest()).hex()
        for file, found in parts.items()
    }


def _piece(piece: tuple[Path, int], *, advance: Callable[[int], None]) -> bytes:
    """Return the sha256 of one piece of a file, read and hashed without Python's global lock."""
    file, start = piece
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(BUFFER))
    with file.open("rb", buffering=0) as content:
        content.seek(start)
        left = PIECE
        while left and (count := content.readinto(buffer[: min(left, BUFFER)])):
            digest.update(buffer[:count])
            left -= count
    advance(PIECE - left)
    return digest.digest()
