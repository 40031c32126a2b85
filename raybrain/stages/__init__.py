"""The work of each stage: from sealed inputs to an output that is ready to be sealed.

A module here may use every layer below; `raybrain.pipeline` says what runs when.
"""

from __future__ import annotations

from collections.abc import Callable
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


def say(stage: str, text: str) -> None:
    """Print one line of progress under the name of its stage."""
    print(f"{stage:<{STAGE_COLUMN}}{text}", flush=True)
