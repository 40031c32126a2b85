"""The files of pretrained weights that a protocol declares: found, checked, recorded."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from raybrain.config import InputError
from raybrain.evaluation.declarations import Protocol, WeightsFile


def weights_folder(location: str | None = None) -> Path:
    """Return where weights are looked for: `location`, else where torch keeps downloads."""
    if location is not None:
        return Path(location).expanduser()
    home = os.environ.get("TORCH_HOME") or "~/.cache/torch"
    return Path(home).expanduser() / "hub" / "checkpoints"


def weights_of(protocol: Protocol, *, folder: Path) -> dict[str, str]:
    """Return the sha256 of every file of weights the protocol uses, by file name.

    Raises
    ------
    InputError
        If files are missing, all of them named at once, or are not the declared ones.
    """
    files = {file.name: file for network in protocol.networks for file in network.weights}
    missing = [file for file in files.values() if _found(file, folder=folder) is None]
    if missing:
        wanted = "; ".join(f"{file.name} from {file.source}" for file in missing)
        raise InputError(
            f"protocol {protocol.name} needs weights that are not in {folder}: {wanted}; put them "
            f"there, or name another folder with evaluate.weights=FOLDER"
        )
    return {name: _digest(locate(file, folder=folder)) for name, file in files.items()}


def locate(file: WeightsFile, *, folder: Path) -> Path:
    """Return the path of a file of weights whose digest is the declared one.

    Raises
    ------
    InputError
        If it is in neither the folder nor its package, or is another file of that name.
    """
    path = _found(file, folder=folder)
    if path is None:
        raise InputError(
            f"scoring needs {file.name} from {file.source}; put it into {folder}, or name another "
            f"folder with evaluate.weights=FOLDER"
        )
    digest = _digest(path)
    if not digest.startswith(file.sha256):
        raise InputError(
            f"{path} is not the declared file: its sha256 should begin {file.sha256[:12]} and "
            f"begins {digest[:12]}; get it again from {file.source}"
        )
    return path


def _found(file: WeightsFile, *, folder: Path) -> Path | None:
    places = [folder / file.name]
    spec = find_spec(file.package) if file.package else None
    if spec is not None and spec.origin is not None:
        places.append(Path(spec.origin).parent / file.folder / file.name)
    return next((place for place in places if place.is_file()), None)


def _digest(path: Path) -> str:
    status = path.stat()
    return _digest_of(path, size=status.st_size, changed=status.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest_of(path: Path, *, size: int, changed: int) -> str:
    del size, changed  # part of the key: a file that changed is read again
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
