"""Processes that a command has started, and results of scripts in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil


def children(process: subprocess.Popen[Any], *, begins: str) -> list[psutil.Process]:
    """Return what a command has started whose command line begins so and that has not ended."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # zombies are that, too
                if "".join(child.cmdline()[:1]).startswith(begins):
                    found.append(child)
    return found


def result_of(script: Path, *words: object, env: dict[str, str] | None = None) -> Any:
    """Run a script in a process of its own and return the JSON of its last line."""
    done = subprocess.run(
        [sys.executable, str(script), *map(str, words)],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
