"""A sweep of many runs whose units are timed sleeps: what scheduling alone costs.

Sleep costs no processor, so any number of logical CPUs fit on this machine; what is measured is how
well they are used and what the driver needs.
"""

import functools
import os
import threading
import time

import psutil
import pytest

from raybrain import cluster
from raybrain.cluster import Step
from raybrain.config import Workers

pytestmark = [pytest.mark.ray, pytest.mark.benchmark, pytest.mark.filterwarnings("default")]

RUNS, WORKERS = 200, 64
CHAIN = (("fit", 4), ("draw", 8), ("score", 4))
"""Steps of a run, and into how many tasks each is divided."""
TASK_SECONDS = 4.0
GIGABYTE = 1e9


def sleep(seconds: float) -> int:
    """Hold a worker for so long; return its process."""
    time.sleep(seconds)
    return os.getpid()


class Peak:
    """The driver's memory at its highest."""

    def __init__(self):
        self.bytes, self._over = 0, threading.Event()

    def __enter__(self):
        threading.Thread(target=self._look, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._over.set()

    def _look(self):
        process = psutil.Process()
        while not self._over.wait(0.5):
            self.bytes = max(self.bytes, process.memory_info().rss)


def steps_of(runs: int, *, seconds: float, most: int) -> list[Step]:
    """Return the steps of so many runs, each a chain whose tasks are sleeps."""
    steps = []
    for run in range(runs):
        before: frozenset[str] = frozenset()
        for name, tasks in CHAIN:

            def make(workers, tasks=tasks, name=name):
                cluster.map_tasks(
                    functools.partial(sleep), [seconds] * tasks, workers=workers, description=name
                )

            key = f"{name} {run}"
            steps.append(Step(key, make, Workers(max=most), before))
            before = frozenset({key})
    return steps


def test_twenty_four_runs_on_two_slots_take_little_longer_than_their_work(scale):
    runs = scale(24, least=4)
    work = runs * sum(tasks for _, tasks in CHAIN) * 0.5
    with cluster.connect():
        import ray

        slots = int(ray.cluster_resources()["CPU"])
        cluster.map_tasks(sleep, [0.5] * slots, workers=Workers(max=slots), description="warm")
        started = time.monotonic()
        steps = steps_of(runs, seconds=0.5, most=2)
        assert cluster.run_steps(steps, description="sweep") == {}
        seconds = time.monotonic() - started
    ratio = seconds / (work / slots)
    scale.claim(ratio <= 1.15, f"{runs} runs on {slots} slots take {ratio:.2f} of their work")


def test_two_hundred_runs_keep_sixty_four_workers_busy(scale, monkeypatch):
    runs, workers = scale(RUNS), scale(WORKERS)
    import ray

    start = ray.init
    monkeypatch.setattr(
        "ray.init", lambda *words, **options: start(*words, **{**options, "num_cpus": workers})
    )
    work = runs * sum(tasks for _, tasks in CHAIN) * TASK_SECONDS
    with cluster.connect(), Peak() as peak:
        # Starting so many processes takes minutes and is no part of what is asked.
        cluster.map_tasks(sleep, [30.0] * workers, workers=Workers(max=workers), description="warm")
        started = time.monotonic()
        assert cluster.run_steps(
            steps_of(runs, seconds=TASK_SECONDS, most=8), description="sweep"
        ) == {}  # fmt: skip
        seconds = time.monotonic() - started
    share = work / workers / seconds
    scale.claim(share >= 0.9, f"{workers} workers are busy for {share:.1%} of {seconds:.0f} s")
    scale.claim(peak.bytes < GIGABYTE, f"the driver of {runs} runs takes {peak.bytes / 1e6:.0f} MB")
