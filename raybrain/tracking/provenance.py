"""Who started a run, with which program, from which state of the code, with which libraries."""

from __future__ import annotations

import contextlib
import functools
import getpass
import sys
from importlib import metadata
from pathlib import Path

from raybrain import __version__
from raybrain.config import holds_secret
from raybrain.tracking.tags import COMMAND, VERSION

SOURCE = Path(__file__).resolve().parents[2]
"""The checkout, where the program runs from one."""
LIBRARIES = ("ray", "torch", "diffusers", "transformers", "zarr", "optuna", "mlflow", "numpy")
COMMIT = "mlflow.source.git.commit"
DIRTY = "mlflow.source.git.dirty"


_typed: list[str] = []


def typed(words: list[str]) -> None:
    """Say what a person typed after ``raybrain``, or what it stands for.

    It is told because a command may be called from within another program, whose own words say
    nothing of it.
    """
    _typed[:] = words


def provenance() -> dict[str, str]:
    """Return MLflow's own tags of user and source, and one per library with its version.

    The source is the experiment's file, where a command was given one. The commit is that of the
    checkout the program runs from; MLflow's tag ``git.dirty`` marks changes that no commit holds. A
    package that was installed has a version and no commit.
    """
    return {
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": source_name(_typed),
        COMMAND: _command(_typed),
        **_here(),
    }


@functools.cache
def _here() -> dict[str, str]:
    tags = {
        VERSION: __version__,
        "python": ".".join(map(str, sys.version_info[:3])),
    }
    with contextlib.suppress(Exception):  # a user id without a name, as in some containers
        tags["mlflow.user"] = getpass.getuser()
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            tags[f"version.{name}"] = metadata.version(name)
    return tags | _commit(SOURCE)


def source_name(words: list[str]) -> str:
    """Return the experiment file among ``words``, which MLflow shows as a run's source."""
    return next(
        (word for word in words if word.endswith((".yaml", ".yml")) and "=" not in word),
        "raybrain",
    )


def _command(words: list[str]) -> str:
    """Return what was typed, less what may be a secret."""
    kept = [word for word in words if not holds_secret(word.partition("=")[2] or word)]
    return " ".join(["raybrain", *kept])


def _commit(folder: Path) -> dict[str, str]:
    if not (folder / ".git").exists():
        return {}
    try:
        from git import Repo

        with Repo(folder) as repository:
            commit = repository.head.commit.hexsha
            dirty = repository.is_dirty(untracked_files=False)
    except Exception:  # no git on this machine, or a checkout of another owner
        return {}
    return {COMMIT: commit, DIRTY: str(dirty).lower()}
