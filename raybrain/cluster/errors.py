"""What went wrong in a worker reaches the driver as the exception the worker raised."""

from __future__ import annotations

import pickle
import traceback
from dataclasses import dataclass
from pathlib import Path

from raybrain import config


@dataclass(frozen=True)
class Failure:
    """An exception of a worker on its way to the driver."""

    error: bytes
    """The pickled exception."""
    trace: str
    everywhere: bool = False
    """Whether every other item would fail the same way."""
    node: str = ""
    """The worker's node, as Ray calls it."""
    address: str = ""
    """The address of that node."""

    def exception(self) -> Exception:
        """Return the worker's exception, its traceback in a note.

        Where the worker was on another node than this process, the message says on which: a path
        that is good here may be missing there.
        """
        error = pickle.loads(self.error)
        if self.node and self.node != _node()[0]:
            error = _elsewhere(error, address=self.address)
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
    node, address = _node()
    return Failure(error=pickled, trace=trace, everywhere=everywhere, node=node, address=address)


def _node() -> tuple[str, str]:
    import ray

    if not ray.is_initialized():
        return "", ""
    return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()


def _elsewhere(error: Exception, *, address: str) -> Exception:
    if isinstance(error, config.InputError):
        return config.InputError(f"{error} (found by node {address})")
    lacking = isinstance(error, FileNotFoundError) and error.filename
    if lacking and Path(lacking).exists():
        return config.InputError(
            f"node {address} has no {lacking}, which the node of this command has; put it where "
            f"every node finds it: in a folder that all share, or in a bucket"
        )
    return error
