"""A seal says what an output was made from; it is written last, so an output without one is unfinished.

No seal: resume. Same seal: skip. Different seal: refuse, and name the setting that changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["missing", "unfinished", "sealed", "changed"]


@dataclass(frozen=True)
class Seal:
    """What determines an output: the stage, its settings by address, and the digests of its inputs."""

    stage: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Recorded but not compared: software versions, counts, dates."""

    @property
    def digest(self) -> str:
        """A sha256 in hexadecimal over stage, settings and inputs."""
        content = {"stage": self.stage, "settings": self.settings, "inputs": self.inputs}
        return digest_of(content)

    def to_json(self) -> dict[str, Any]:
        """Return the seal as plain JSON values."""
        return {
            "stage": self.stage,
            "settings": dict(self.settings),
            "inputs": dict(self.inputs),
            "notes": dict(self.notes),
            "digest": self.digest,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Seal:
        """Return the seal that `to_json` wrote."""
        return cls(
            stage=content["stage"],
            settings=content["settings"],
            inputs=content["inputs"],
            notes=content["notes"],
        )


def digest_of(content: Any) -> str:
    """Return the sha256 of ``content`` written as canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(*, found: Seal, wanted: Seal) -> list[str]:
    """Return one phrase per setting or input in which two seals differ, found value first."""
    phrases = []
    for name in sorted({*found.settings, *wanted.settings}):
        before, now = found.settings.get(name), wanted.settings.get(name)
        if digest_of(before) != digest_of(now):
            phrases.append(f"{name} was {before}, now {now}")
    for name in sorted({*found.inputs, *wanted.inputs}):
        if found.inputs.get(name) != wanted.inputs.get(name):
            phrases.append(f"its input {name} has changed")
    return phrases
