"""Calls side by side in threads of the driver, which mostly wait for workers."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

LOOK_SECONDS = 0.2


def in_threads(calls: Sequence[Callable[[], None]], *, at_once: int) -> None:
    """Make all calls, at most ``at_once`` at a time; the first error is raised when all have ended.

    Ctrl-C and SIGTERM are raised at once in this thread: closing the connection to Ray then makes
    the calls under way fail.

    Parameters
    ----------
    calls : sequence of callable
        Made in this order, without arguments.
    at_once : int
        Threads; below 2 the calls are made one after the other in this thread.
    """
    if at_once < 2 or len(calls) < 2:
        for call in calls:
            call()
        return
    waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    for call in calls:
        waiting.put(call)
    errors: list[BaseException] = []

    def work() -> None:
        while True:
            try:
                call = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                call()
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(at_once, len(calls)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(LOOK_SECONDS)
    if errors:
        raise errors[0]
