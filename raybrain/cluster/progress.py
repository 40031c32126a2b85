"""How far a stage is, on stderr: a bar on a terminal, a line now and then everywhere else."""

from __future__ import annotations

import sys
import threading
import time
from contextvars import ContextVar
from types import TracebackType

from raybrain import config
from raybrain.cluster.address import starts_its_own
from raybrain.cluster.capacity import missing_node

SECONDS_BETWEEN_LINES = 60.0
"""Of a log that a person follows: a stage may take a day."""


_told: ContextVar[bool] = ContextVar("told", default=True)


def tell_no_parts() -> None:
    """Leave what is done in this thread from now on to whoever shows the whole of it."""
    _told.set(False)


class Progress:
    """A bar with rate and time left on a terminal; elsewhere a line a minute and one at the end.

    The lines come whether anything was done or not, so that waiting shows.

    Parameters
    ----------
    total : int or None
        How many units there are, where that is known.
    description : str
        What is being done, in a few words.
    unit : str
        What is being counted, in the plural.
    workers : config.Workers, optional
        What each worker holds that does it, to say what is waited for.
    """

    def __init__(
        self,
        *,
        total: int | None,
        description: str,
        unit: str,
        workers: config.Workers | None = None,
    ) -> None:
        from tqdm import tqdm

        self._started = time.monotonic()
        self._total, self._description, self._unit = total, description, unit
        self._workers = workers
        self._done = 0
        self._note = ""
        self._ended = threading.Event()
        self._on_terminal = sys.stderr.isatty()
        self._silent = not _told.get()
        self._bar = tqdm(
            total=total,
            desc=description,
            unit=f" {unit}",
            file=sys.stderr,
            dynamic_ncols=True,
            disable=self._silent or not self._on_terminal,
        )

    def __enter__(self) -> Progress:
        if not (self._silent or self._on_terminal):
            threading.Thread(target=self._tell, name="progress", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._bar.close()
        if not (self._silent or self._on_terminal):
            print(self._line(), file=sys.stderr, flush=True)

    def advance(self, count: int = 1, *, note: str = "") -> None:
        """Count ``count`` more units, with a few words about the latest.

        Parameters
        ----------
        count : int
            Units that are done beside those counted before.
        note : str
            A few words, which stand beside the bar.
        """
        self._done += count
        if note:
            self._note = note
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(count)

    def _tell(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_LINES):
            print(f"{self._line()}{self._outlook()}", file=sys.stderr, flush=True)

    def _line(self) -> str:
        seconds = time.monotonic() - self._started
        of = "" if self._total is None else f" of {self._total}"
        rate = f" ({self._done / seconds:.3g}/s)" if self._done and seconds > 0 else ""
        return f"{self._description}: {self._done}{of} {self._unit} in {seconds:.1f} s{rate}"

    def _outlook(self) -> str:
        """Return how long it may take yet, or where to look when nothing has come back."""
        if not self._done:
            return "" if starts_its_own() else self._waiting()
        note = f", {self._note}" if self._note else ""
        if self._total is None:
            return note
        left = (time.monotonic() - self._started) / self._done * (self._total - self._done)
        shown = f"{left:.0f} s" if left < 120 else f"{left / 60:.0f} min"
        return f", about {shown} left{note}"

    def _waiting(self) -> str:
        import ray

        if self._workers is not None and ray.is_initialized():
            missing = missing_node(self._workers)
            if missing:
                return f"; waits for a node with {missing}"
        return "; 'ray status' shows whether it waits for a node"
