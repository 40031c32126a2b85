"""A unit of work that is a timed sleep, so that many workers fit on any number of cores.

What is then measured is what the pool itself costs: handing out units, hearing results, replacing
workers that are killed.
"""

import os
import random
import time
from pathlib import Path


class Sleeper:
    """Takes a while to start, then sleeps a fixed time per unit and writes down when."""

    def __init__(self, *, folder, slowest_start, unit_seconds):
        time.sleep(random.Random(os.getpid()).uniform(0.0, slowest_start))
        self.unit_seconds = unit_seconds
        self.log = Path(folder, f"worker-{os.getpid()}")
        self.log.write_text(f"{time.time()}\n")

    def __call__(self, unit):
        started = time.time()
        time.sleep(self.unit_seconds)
        with self.log.open("a") as log:
            log.write(f"{started} {time.time()} {unit}\n")
        return unit


def starts(folder):
    """Return when each worker was ready, ascending."""
    logs = [mark.read_text().splitlines() for mark in Path(folder).glob("worker-*")]
    return sorted(float(log[0]) for log in logs)


def ideal_seconds(starts, *, work):
    """Return T with sum over workers of max(0, T - start) equal to ``work``."""
    low, high = min(starts), max(starts) + work
    for _ in range(100):
        middle = (low + high) / 2
        enough = sum(max(0.0, middle - start) for start in starts) >= work
        low, high = (low, middle) if enough else (middle, high)
    return high
