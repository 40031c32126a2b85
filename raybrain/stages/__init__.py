"""The work of each stage: from sealed inputs to an output that is ready to be sealed.

A module here may use every layer below; `raybrain.pipeline` says what runs when.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raybrain.config import Experiment
    from raybrain.outputs import Output
    from raybrain.tracking import Run


@dataclass(frozen=True)
class Made:
    """What a stage says of its work: a line for the console, and notes kept with the seal."""

    summary: str
    notes: dict[str, Any] = field(default_factory=dict)


Work = Callable[["Experiment", "Output", "Run"], Made]

OPTIONS = {"evaluate": ("images",), "export": ("form",)}
"""Words of a stage that are no settings: they change nothing that is made from the experiment."""
BROWSING = ("open", "upgrade")
"""Are about what was recorded, and need no data."""
STAGE_COLUMN = 13


_whose: ContextVar[str] = ContextVar("whose", default="")


def say(stage: str, text: str) -> None:
    """Print one line of progress under the name of its stage."""
    whose = _whose.get()
    print(f"{stage:<{STAGE_COLUMN}}{f'{whose}: ' if whose else ''}{text}", flush=True)


@contextlib.contextmanager
def said_of(whose: str) -> Iterator[None]:
    """Begin every line that this thread says inside the block with whom it is about."""
    token = _whose.set(whose)
    try:
        yield
    finally:
        _whose.reset(token)
