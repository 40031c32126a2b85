"""Where a sweep stands, for whoever looks at it from another process."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybrain import leases, places
from raybrain.config import InputError

if TYPE_CHECKING:
    from raybrain.cluster import State
    from raybrain.outputs import Output

STATE = "state.json"
JOURNAL = "units.jsonl"
"""A line for every output that was made: what, when and in how many seconds."""
LOCK = "sweeps/lock"


class Standing:
    """What is under way and what has failed; what is done is told by its seal.

    Parameters
    ----------
    folder : str
        The sweep's own.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._units: dict[str, dict[str, Any]] = {}
        self._began: dict[str, float] = {}

    def change(self, output: Output, state: State, error: BaseException | None) -> None:
        """Record that an output is under way, made, failed, or cannot be made."""
        if state == "running":
            self._began[output.folder] = time.time()
            self._units[output.folder] = {"state": state, "since": self._began[output.folder]}
        elif state == "done":
            self._units.pop(output.folder, None)
            self._journal(output)
        else:
            self._units[output.folder] = {"state": state, "error": told(error)}
        places.write_text(f"{self._folder}/{STATE}", json.dumps(self._units, indent=1) + "\n")

    def _journal(self, output: Output) -> None:
        if places.is_remote(self._folder):  # which cannot append
            return
        now = time.time()
        line = {
            "stage": output.stage,
            "output": output.folder,
            "seal": output.seal.digest,
            "at": round(now, 3),
            "seconds": round(now - self._began[output.folder], 3),
        }
        with Path(self._folder, JOURNAL).open("a") as file:
            file.write(json.dumps(line) + "\n")


def told(error: BaseException | None) -> str:
    """Return an exception as one line."""
    if error is None:
        return ""
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"


def units_of(folder: str) -> dict[str, dict[str, Any]]:
    """Return folder of an output -> what was last recorded of it."""
    try:
        found: dict[str, dict[str, Any]] = json.loads(places.read_text(f"{folder}/{STATE}"))
    except FileNotFoundError:
        return {}
    return found


@contextlib.contextmanager
def alone(workspace: str, *, name: str) -> Iterator[None]:
    """Keep other sweeps out of a workspace while the block lasts, however it ends.

    Raises
    ------
    InputError
        If one is under way there.
    """
    if places.is_remote(workspace):
        yield
        return

    def refuse(holder: str) -> None:
        sweep, _, process = holder.rpartition(" ")
        raise InputError(
            f"the sweep '{sweep}' (process {process}) is under way in {workspace}, and sweeps of "
            f"one workspace share what they make; wait for it, or choose another workspace="
        )

    with leases.locked(Path(workspace, LOCK), says=f"{name} {os.getpid()}", busy=refuse):
        yield


def under_way(workspace: str, *, name: str) -> bool:
    """Return whether a process is at work on the sweep of this name."""
    if places.is_remote(workspace):
        return False
    holder = leases.holder_of(Path(workspace, LOCK))
    return holder is not None and holder.rpartition(" ")[0] == name
