"""What went wrong in a worker reaches the driver as the exception the worker raised."""

from __future__ import annotations

import pickle
import traceback
from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """An exception of a worker on its way to the driver."""

    error: bytes
    """The pickled exception."""
    trace: str
    everywhere: bool = False
    """Whether every other item would fail the same way."""

    def exception(self) -> Exception:
        """Return the worker's exception, its traceback in a note."""
        error = pickle.loads(self.error)
        error.add_note(f"In the worker:\n{self.trace}")
        return error


def failure_of(error: Exception, *, trace: str = "", everywhere: bool = False) -> Failure:
    """Return ``error`` as something that can be sent, whatever it holds."""
    trace = trace or "".join(traceback.format_exception(error))
    try:
        pickled = pickle.dumps(error)
        pickle.loads(pickled)
    except Exception:  # an exception may hold anything, locks and sockets included
        pickled = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return Failure(error=pickled, trace=trace, everywhere=everywhere)
