"""The run of an experiment while something works on it: RUNNING, and closed as it ended."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from raybrain.config import Tracking, flatten
from raybrain.tracking.runs import Named, Run, Tracker, open_tracker, sentence

Describe = Callable[[str, str], str]
"""Status and placeholder of the run's id -> Markdown."""


class Tracked(Named, Protocol):
    """What is worked on and where that is recorded, such as an experiment or a sweep."""

    @property
    def tracking(self) -> Tracking:
        """Where and how runs are recorded."""

    @property
    def workspace(self) -> str:
        """Folder or URL."""


@dataclass
class Work:
    """One attempt at an experiment, however many stages it has.

    Nothing is recorded before `begin`: a command that finds everything sealed leaves the run as
    it is.
    """

    experiment: Any
    """`Tracked`."""
    settings: Mapping[str, Any] | None = None
    describe: Describe | None = None
    started: float = field(default_factory=time.time)
    """Seconds since 1970 at which the command began."""
    attempt: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    parent: Run | None = None
    tracker: Tracker | None = None
    depth: int = 0
    """Calls of `working` that have not ended yet."""
    failure: BaseException | None = None
    lock: Any = field(default_factory=threading.Lock)

    def begin(self) -> tuple[Tracker, Run]:
        """Return the tracker and the experiment's run, which is RUNNING from now on."""
        with self.lock:
            if self.parent is None:
                which, told = self.experiment, self.settings
                self.tracker = open_tracker(which.tracking, workspace=which.workspace)
                self.parent = self.tracker.experiment_run(which, running=True, started=self.started)
                self.parent.log_settings(flatten(which) if told is None else told)
                self._describe("RUNNING")
            assert self.tracker is not None
            return self.tracker, self.parent

    def end(self) -> None:
        """Close the experiment's run, if it was begun, and send what waits."""
        if self.parent is None or self.tracker is None:
            return
        status = "FINISHED" if self.failure is None else self.parent.fail(self.failure)
        self._describe(status)
        self.parent.end(status, seconds=time.time() - self.started, attempt=self.attempt)
        self.tracker.close()

    def _describe(self, status: str) -> None:
        if self.describe is None or self.parent is None:
            return
        text = self.describe(status, self.parent.placeholder)
        if self.failure is not None:
            text = f"**{status}**: {sentence(self.failure)}\n\n{text}"
        self.parent.describe(text)


_working: dict[tuple[str, str, str], Work] = {}
_lock = threading.Lock()


@contextlib.contextmanager
def working(
    experiment: Tracked,
    *,
    settings: Mapping[str, Any] | None = None,
    describe: Describe | None = None,
    started: float | None = None,
) -> Iterator[Work]:
    """Keep one attempt at an experiment open inside the block; nested blocks share the outermost.

    Parameters
    ----------
    experiment : Tracked
        What is worked on.
    settings : mapping, optional
        Dotted address -> value, recorded as parameters; an experiment's own when not given.
    describe : callable, optional
        What its run's description says, called at the begin and at the end.
    started : float, optional
        Seconds since 1970 at which the command began; now when not given.
    """
    key = (experiment.workspace, experiment.name, experiment.subject)
    with _lock:
        work = _working.setdefault(
            key, Work(experiment, settings, describe, started or time.time())
        )
        work.depth += 1
    try:
        yield work
    except BaseException as error:
        # Threads beside this one may go on; the first fault is the one to tell.
        work.failure = work.failure or error
        raise
    finally:
        with _lock:
            work.depth -= 1
            last = work.depth == 0
            if last:
                del _working[key]
        if last:
            with contextlib.suppress(Exception) if work.failure else contextlib.nullcontext():
                work.end()
