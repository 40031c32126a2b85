"""What is to be recorded, in order: on disk first, then sent by a thread of its own.

A stage never waits for MLflow. A server that does not answer is asked again, later and later, while
what is to be recorded waits on disk; what still waits when a command ends, or when it is killed, is
sent by the next one. Sending a record twice changes nothing (`raybrain.tracking.sending`), so every
metric is there once.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import itertools
import json
import os
import shutil
import sys
import threading
import time
import uuid
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from raybrain.tracking.redaction import redacted_tree, secret_values

if TYPE_CHECKING:
    from raybrain.tracking.sending import Sender

JOURNAL = "records.jsonl"
SENT = "sent"
RUNS = "runs.json"
LOCK = "lock"
FILES = "files"
LONGEST_PAUSE = 15.0
"""Seconds between two attempts to reach a server that does not answer."""
PATIENCE = 2.0
"""Seconds that the end of a command waits for a server that does not answer."""
LONGEST_FLUSH = 40.0
"""Seconds that it waits at most where attempts themselves take long."""
SENT_AT_ONCE = 500
GATHERED = 2.0
"""Seconds in which records come together: a request takes sqlite 24 ms, however few are in it."""

METRIC_FIELDS = {"kind", "key", "time", "metrics"}

Record = dict[str, Any]


class Outbox:
    """Takes records in order and sends them in order.

    Parameters
    ----------
    sender : Sender
        Knows how to send a record.
    folder : Path
        On a local disk; each process has a folder of its own below it.
    name : str
        Of the server, for messages.
    """

    def __init__(self, sender: Sender, *, folder: Path, name: str) -> None:
        self._sender, self._folder, self._name = sender, folder, name
        self._waiting: deque[Record] = deque()
        self._changed = threading.Condition()
        self._journal: Journal | None = None
        self._thread: threading.Thread | None = None
        self._down = False
        self._failed = 0
        """Attempts so far that did not get through."""
        self._hurry = threading.Event()
        self._adopted: list[Journal] = []
        self._left_behind = 0
        self._known: dict[str, str] = {}
        atexit.register(self.close)

    def put(self, record: Record) -> None:
        """Take one record; returns when it is on disk."""
        # Metrics are many, and have no text but their names.
        secrets = secret_values() if record.keys() - METRIC_FIELDS else ()
        record = {
            name: value if name in METRIC_FIELDS else redacted_tree(value, secrets=secrets)
            for name, value in record.items()
        }
        with self._changed:
            self._opened().append(record)
            self._waiting.append(record)
            self._start()
            self._changed.notify_all()

    def staged(self, file: Path) -> Path:
        """Return a copy of a file or folder that stays until it was sent; a link where possible."""
        with self._changed:
            place = self._opened().folder / FILES / uuid.uuid4().hex
        place.mkdir(parents=True)
        target = place / file.name
        if file.is_dir():
            shutil.copytree(file, target, copy_function=_link_or_copy)
        else:
            _link_or_copy(str(file), str(target))
        return target

    def adopt(self) -> None:
        """Take over what processes that are gone left behind; it is sent before anything else."""
        found = [one for one in map(Journal.of_another, _folders(self._folder)) if one]
        with self._changed:
            for journal in sorted(found, key=lambda one: one.begun):
                if journal.left():
                    self._adopted.append(journal)
                    self._left_behind += len(journal.left())
                else:
                    journal.discard()
            if self._adopted:
                self._start()
                self._changed.notify_all()

    def flush(self, patience: float | None = None) -> bool:
        """Wait until everything was sent; return False if the server does not answer.

        Parameters
        ----------
        patience : float, optional
            Seconds to wait for a server that does not answer; `PATIENCE` when not given.
        """
        self._hurry.set()
        begun, failed = time.monotonic(), self._failed
        patience = PATIENCE if patience is None else patience
        with self._changed:
            while self._waiting or self._adopted:
                self._start()
                waited = time.monotonic() - begun
                # One attempt may have begun before this call; a fresh one must have failed as well.
                silent = self._down and self._failed >= failed + 2
                if self._down and ((silent and waited > patience) or waited > LONGEST_FLUSH):
                    return False
                self._changed.wait(0.05)
        return True

    def close(self) -> None:
        """Send what there is, and tell what could not be sent or was refused."""
        sent = self.flush()
        with self._changed:
            waiting = len(self._waiting) + sum(len(one.left()) for one in self._adopted)
            if sent and self._journal is not None and not waiting:
                self._journal.discard()
                self._journal = None
        if not sent:
            self._say(
                f"{self._name} does not answer; {waiting} records wait in {self._folder}, and the "
                f"next command sends them"
            )
        for refusal in self._sender.refusals():
            warnings.warn(f"{self._name} refused a record: {refusal}", stacklevel=2)

    def run_of(self, key: str) -> str | None:
        """Return the run that a key stands for once it has been sent, or None."""
        return self._known.get(key)

    def _opened(self) -> Journal:
        if self._journal is None:
            self._journal = Journal.create(self._folder, known=self._known)
        return self._journal

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._send_all, name="mlflow", daemon=True)
            self._thread.start()

    def _send_all(self) -> None:
        pause = 0.5
        while True:
            with self._changed:
                while not (self._waiting or self._adopted):
                    self._hurry.clear()
                    self._changed.wait()
                adopted = self._adopted[0] if self._adopted else None
            if adopted is None:
                self._hurry.wait(GATHERED)
            with self._changed:
                journal = adopted or self._journal
                if journal is None:  # closed meanwhile
                    continue
                records = (
                    adopted.left()[:SENT_AT_ONCE]
                    if adopted
                    else list(itertools.islice(self._waiting, SENT_AT_ONCE))
                )
            try:
                again = self._down or adopted is not None
                done = self._sender.send(records, journal.runs, again=again)
            except Exception:  # such as a full disk; what was not sent stays
                done = 0
            with self._changed:
                if done and (adopted is not None or self._journal is journal):
                    journal.sent(done)
                    _remove_files(records[:done])
                    if adopted is None:
                        for _ in range(done):
                            self._waiting.popleft()
                    elif not journal.left():
                        self._adopted.pop(0)
                        journal.discard()
                self._failed += done < len(records)
                self._tell(down=done < len(records))
                self._changed.notify_all()
            if done < len(records):
                if self._hurry.is_set():
                    time.sleep(min(pause, PATIENCE / 4))
                else:
                    self._hurry.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                pause = 0.5

    def _tell(self, *, down: bool) -> None:
        if down and not self._down:
            self._say(f"{self._name} does not answer; what is recorded waits in {self._folder}")
        elif self._down and not down:
            self._say(f"{self._name} answers again; what waited was sent")
        elif self._left_behind and not self._adopted and not down:
            self._say(
                f"{self._left_behind} records of an earlier command were sent to {self._name}"
            )
            self._left_behind = 0
        self._down = down

    @staticmethod
    def _say(text: str) -> None:
        print(f"raybrain: note: {text}", file=sys.stderr, flush=True)


class Journal:
    """A folder with records in order, how many of them were sent, and the files they send."""

    def __init__(self, folder: Path, lock: IO[str], *, known: dict[str, str]) -> None:
        self.folder, self._lock = folder, lock
        self.runs = Runs(folder / RUNS, known=known)
        self.begun = folder.stat().st_ctime
        self._count = _number(folder / SENT)
        self._lines: IO[str] | None = None

    @classmethod
    def create(cls, parent: Path, *, known: dict[str, str]) -> Journal:
        """Return a new one, held by this process, which knows some runs already."""
        folder = parent / f"{time.time_ns():020d}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        folder.mkdir(parents=True)
        lock = _held(folder)
        assert lock is not None
        return cls(folder, lock, known=known)

    @classmethod
    def of_another(cls, folder: Path) -> Journal | None:
        """Return one whose process is gone, or None."""
        lock = _held(folder)
        if lock is None:
            return None
        if not folder.is_dir() or not (folder / LOCK).exists():  # discarded meanwhile
            lock.close()
            return None
        return cls(folder, lock, known={})

    def append(self, record: Record) -> None:
        """Write one record, out of this process's hands before it returns."""
        if self._lines is None:
            self._lines = (self.folder / JOURNAL).open("a", encoding="utf-8")
        self._lines.write(json.dumps(record) + "\n")
        self._lines.flush()

    def left(self) -> list[Record]:
        """Return what was not sent; a line cut short by a kill is left out."""
        with contextlib.suppress(FileNotFoundError):
            whole, _, _ = (self.folder / JOURNAL).read_text(encoding="utf-8").rpartition("\n")
            return [json.loads(line) for line in whole.splitlines()[self._count :]]
        return []

    def sent(self, count: int) -> None:
        """Remember that so many more were sent."""
        self._count += count
        (self.folder / SENT).write_text(str(self._count))

    def close(self) -> None:
        """Let go of it, so that another process may take it over."""
        if self._lines is not None:
            self._lines.close()
        self._lock.close()

    def discard(self) -> None:
        """Remove it: everything was sent."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.close()
        with contextlib.suppress(OSError):  # others wait there
            self.folder.parent.rmdir()


class Runs:
    """Which run of MLflow each key stands for, kept beside the records that name the keys."""

    def __init__(self, file: Path, *, known: dict[str, str]) -> None:
        self._file, self._ids = file, known
        with contextlib.suppress(FileNotFoundError):
            known |= json.loads(file.read_text())
        if known:
            self._keep()

    def __getitem__(self, key: str) -> str:
        return self._ids[key]

    def get(self, key: str) -> str | None:
        """Return the run of a key, or None while it is unknown."""
        return self._ids.get(key)

    def __setitem__(self, key: str, run_id: str) -> None:
        self._ids[key] = run_id
        self._keep()

    def _keep(self) -> None:
        partial = self._file.with_suffix(".partial")
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            partial.write_text(json.dumps(self._ids))
            partial.replace(self._file)


def _folders(parent: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError):
        yield from sorted(one for one in parent.iterdir() if one.is_dir())


def _held(folder: Path) -> IO[str] | None:
    """Return a lock on a journal, or None where another process holds it."""
    try:
        lock = (folder / LOCK).open("a")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock


def _remove_files(records: list[Record]) -> None:
    for record in records:
        if "file" in record:
            shutil.rmtree(Path(record["file"]).parent, ignore_errors=True)


def _number(file: Path) -> int:
    try:
        return int(file.read_text())
    except (FileNotFoundError, ValueError):
        return 0


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
