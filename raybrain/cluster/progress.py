"""How far a stage is, on stderr: a bar on a terminal, one closing line everywhere else."""

from __future__ import annotations

import sys
import time
from types import TracebackType


class Progress:
    """A bar with rate and time left on a terminal; elsewhere one line when the work is done.

    Parameters
    ----------
    total : int or None
        How many units there are, where that is known.
    description : str
        What is being done, in a few words.
    unit : str
        What is being counted, in the plural.
    """

    def __init__(self, *, total: int | None, description: str, unit: str) -> None:
        from tqdm import tqdm

        self._started = time.monotonic()
        self._total, self._description, self._unit = total, description, unit
        self._done = 0
        self._on_terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            desc=description,
            unit=f" {unit}",
            file=sys.stderr,
            dynamic_ncols=True,
            disable=not self._on_terminal,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
        if not self._on_terminal:
            print(self._line(), file=sys.stderr, flush=True)

    def advance(self, count: int = 1, *, note: str = "") -> None:
        """Count ``count`` more units, with a few words about the latest."""
        self._done += count
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(count)

    def _line(self) -> str:
        seconds = time.monotonic() - self._started
        of = "" if self._total is None else f" of {self._total}"
        rate = f" ({self._done / seconds:.3g}/s)" if self._done and seconds > 0 else ""
        return f"{self._description}: {self._done}{of} {self._unit} in {seconds:.1f} s{rate}"
