"""One command makes an output at a time; others wait for it, and say for whom.

On disks a lock that the system releases with its process, however that ends. In a bucket, which has
no locks, a small file that its holder renews: others watch whether it changes, so that no two
clocks are compared, and take over what is no longer renewed.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from raybrain import places
from raybrain.config import InputError

RENEWED = 10.0
"""Seconds between two renewals of a lease in a bucket."""
ABANDONED = 3.5
"""Renewals without which a lease in a bucket has no holder any more."""
LOOKED = 0.5
"""Seconds between two looks at a lock that another process holds."""


@contextlib.contextmanager
def lease(folder: str, *, waits: Callable[[str], None]) -> Iterator[None]:
    """Hold ``folder`` against other commands while the block lasts.

    Parameters
    ----------
    folder : str
        Folder or URL of an output, which need not exist.
    waits : callable
        Told once, in a sentence, for whom this command waits.

    Raises
    ------
    InputError
        At the end of the block, if another command took over a lease in a bucket that could not be
        renewed.
    """
    with _held_in_bucket(folder, waits) if places.is_remote(folder) else _on_disk(folder, waits):
        yield


def _beside(folder: str) -> str:
    """Return the path of a hidden file beside ``folder``, which may be removed and made anew."""
    parent, _, name = folder.rstrip("/").rpartition("/")
    return f"{parent or '.'}/.{name}.lock"


def _sentence(folder: str, holder: str) -> str:
    return f"waits until {folder} is made by {holder}"


def _myself() -> str:
    return f"process {os.getpid()} on {platform.node()}"


@contextlib.contextmanager
def locked(file: Path, *, says: str, busy: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock that the system releases with this process, however that ends.

    Parameters
    ----------
    file : Path
        On a disk; it stays behind.
    says : str
        What others are told of this holder.
    busy : callable
        Told what another holder says, once; this process waits for it unless that raises.
    """
    from filelock import FileLock, Timeout

    file.parent.mkdir(parents=True, exist_ok=True)
    # Not of a thread: the driver's threads each make an output, and each asks for its own lock.
    lock = FileLock(file, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        busy(file.read_text().strip())
        lock.acquire(poll_interval=LOOKED)
    try:
        file.write_text(says + "\n")
        yield
    finally:
        lock.release()


def holder_of(file: Path) -> str | None:
    """Return what the holder of a lock says of itself, or None if nobody holds it."""
    from filelock import FileLock, Timeout

    if not file.is_file():
        return None
    try:
        with FileLock(file, thread_local=False).acquire(timeout=0):
            return None
    except Timeout:
        return file.read_text().strip()


@contextlib.contextmanager
def _on_disk(folder: str, waits: Callable[[str], None]) -> Iterator[None]:
    def busy(holder: str) -> None:
        waits(_sentence(folder, holder or "another process"))

    with locked(Path(_beside(folder)), says=_myself(), busy=busy):
        yield


@contextlib.contextmanager
def _held_in_bucket(folder: str, waits: Callable[[str], None]) -> Iterator[None]:
    path = _beside(folder)
    mine = f"{_myself()} {uuid.uuid4().hex}"
    if _content(path) is not None:  # held, or left by one that was killed: that takes watching
        waits(_sentence(folder, _holder(path).rpartition(" ")[0] or "another process"))
    while not _taken(path, mine):
        pass
    ended = threading.Event()
    lost = threading.Event()

    def renew() -> None:
        beats = 0
        while not ended.wait(RENEWED):
            beats += 1
            # A bucket that does not answer is asked again; nobody else reaches it either, or they
            # find this lease abandoned, which the next answer tells.
            with contextlib.suppress(OSError):
                if _holder(path) not in (mine, ""):
                    lost.set()
                    return
                places.write_text(path, json.dumps({"holder": mine, "beats": beats}))

    renewing = threading.Thread(target=renew, name="lease", daemon=True)
    renewing.start()
    try:
        yield
        if lost.is_set():
            raise InputError(
                f"{folder} was taken over by another command while this one could not reach it; "
                f"wait until that has ended, then the same command continues"
            )
    finally:
        ended.set()
        renewing.join()
        if not lost.is_set():
            with contextlib.suppress(OSError):
                places.remove(path)


def _taken(path: str, mine: str) -> bool:
    """Return whether nobody holds the lease, or nobody renews it, and it is now one's own."""
    before = _content(path)
    if before is not None:
        waited = time.monotonic()
        while time.monotonic() - waited < ABANDONED * RENEWED:
            time.sleep(min(LOOKED, RENEWED))
            now = _content(path)
            if now != before:
                if now is None:
                    break
                return False
    places.write_text(path, json.dumps({"holder": mine, "beats": 0}))
    # Whoever wrote at the same time has written by then, and the last of them has it.
    time.sleep(min(LOOKED, RENEWED))
    return _holder(path) == mine


def _content(path: str) -> str | None:
    try:
        return places.read_text(path)
    except FileNotFoundError:
        return None


def _holder(path: str) -> str:
    content = _content(path)
    try:
        return "" if content is None else str(json.loads(content)["holder"])
    except (ValueError, KeyError, TypeError):
        return ""
