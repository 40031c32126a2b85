"""Which process a run belongs to, and whether it still lives."""

from __future__ import annotations

import os
import socket


def owner() -> str:
    """Return what tells this process from all others."""
    import psutil

    started = psutil.Process().create_time()
    return f"{socket.gethostname()} {os.getpid()} {started:.0f}"


def is_here(name: str) -> bool:
    """Return whether the owner of this name runs, or ran, on this host."""
    return name.partition(" ")[0] == socket.gethostname()


def alive(name: str) -> bool:
    """Return whether the process that opened a run still runs; on another host, it does not."""
    import psutil

    _, _, process = name.partition(" ")
    number, _, started = process.partition(" ")
    if not is_here(name) or not number.isdigit():
        return False
    try:
        return f"{psutil.Process(int(number)).create_time():.0f}" == started
    except psutil.Error:
        return False
