"""A seal says what an output was made from, and is written last: without one it is unfinished.

No seal: resume. Same seal: skip. Different seal: refuse, and name the setting that changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import fsspec

from raybrain.config import InputError

SEAL = "seal.json"
BEGUN = "begun.json"
"""The seal that the work under way will have; removed when it is sealed."""

State = Literal["missing", "unfinished", "sealed", "changed"]


@dataclass(frozen=True)
class Seal:
    """What determines an output: stage, settings by address, and the digests of its inputs."""

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


@dataclass(frozen=True)
class Status:
    """Where an output stands against the seal that is wanted now."""

    state: State
    differences: tuple[str, ...] = ()


def status(folder: str, *, wanted: Seal) -> Status:
    """Return whether ``folder`` is missing, unfinished, sealed as wanted, or made otherwise."""
    files, path = fsspec.core.url_to_fs(folder)
    if not files.isdir(path):
        return Status("missing")
    found = _read(files, f"{path}/{SEAL}")
    begun = found or _read(files, f"{path}/{BEGUN}")
    if begun is None:
        return Status("unfinished")
    if begun.digest != wanted.digest:
        return Status("changed", tuple(differences(found=begun, wanted=wanted)))
    return Status("sealed" if found else "unfinished")


def permitted(folder: str, *, wanted: Seal, on_change: Literal["refuse", "replace"]) -> Status:
    """Return what `begin` will find.

    Raises
    ------
    InputError
        If the folder was made with other settings, and they are not to be replaced; as `begin`.
    """
    found = status(folder, wanted=wanted)
    if found.state == "changed" and on_change == "refuse":
        raise InputError(
            f"{folder} was made with other settings ({'; '.join(found.differences)}); "
            f"restore them, choose another name= or workspace=, "
            f"or add on_change=replace to redo it"
        )
    return found


def begin(folder: str, *, wanted: Seal, on_change: Literal["refuse", "replace"]) -> Status:
    """Prepare ``folder`` for the work that ``wanted`` describes and return where it stood before.

    A sealed folder is left alone; an unfinished one is kept so that the work can resume; one made
    with other settings is removed when ``on_change`` is ``replace``.

    Raises
    ------
    InputError
        If the folder was made with other settings and ``on_change`` is ``refuse``.
    """
    found = permitted(folder, wanted=wanted, on_change=on_change)
    if found.state == "sealed":
        return found
    if found.state == "changed":
        remove(folder)
    files, path = fsspec.core.url_to_fs(folder)
    files.makedirs(path, exist_ok=True)
    _write(files, f"{path}/{BEGUN}", wanted)
    return found


def finish(folder: str, *, seal: Seal) -> None:
    """Seal ``folder``: from now on it is whole and is never written again."""
    files, path = fsspec.core.url_to_fs(folder)
    _write(files, f"{path}/{SEAL}", seal)
    files.rm(f"{path}/{BEGUN}")


def read_seal(folder: str) -> Seal | None:
    """Return the seal of ``folder``, or None if it has none."""
    files, path = fsspec.core.url_to_fs(folder)
    return _read(files, f"{path}/{SEAL}")


def remove(folder: str) -> None:
    """Remove ``folder``, its seal first, so that a half-removed folder never looks whole."""
    files, path = fsspec.core.url_to_fs(folder)
    if files.exists(f"{path}/{SEAL}"):
        files.rm(f"{path}/{SEAL}")
    files.rm(path, recursive=True)


def _read(files: fsspec.AbstractFileSystem, path: str) -> Seal | None:
    try:
        return Seal.from_json(json.loads(files.cat_file(path)))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _write(files: fsspec.AbstractFileSystem, path: str, seal: Seal) -> None:
    text = json.dumps(seal.to_json(), indent=2, sort_keys=True, default=str)
    # A rename is atomic on disks, and a put is atomic on object stores, which have no rename.
    if "file" in files.protocol:
        files.pipe_file(f"{path}.partial", text.encode())
        files.mv(f"{path}.partial", path)
    else:
        files.pipe_file(path, text.encode())
