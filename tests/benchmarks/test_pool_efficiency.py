"""How much of 64 workers' time a pool makes use of, on one machine and in miniature."""

import itertools
import os
import random
import signal
import threading
import time

import pytest

from raybrain import cluster
from raybrain.config import Workers
from tests.benchmarks.sleeping import Sleeper, ideal_seconds, starts

pytestmark = [pytest.mark.ray, pytest.mark.benchmark]

UNIT_SECONDS = 2.0
UNITS_PER_WORKER = 30
SHARE_KILLED = 0.05
SLOWEST_START = 10.0


def kill_some(folder, *, workers, count, after):
    """Kill ``count`` of the workers, ``after`` seconds apart, once half of them are there."""
    while len(list(folder.glob("worker-*"))) < workers // 2:
        time.sleep(0.5)
    for mark in random.Random(0).sample(sorted(folder.glob("worker-*")), count):
        time.sleep(after)
        os.kill(int(mark.name.partition("-")[2]), signal.SIGKILL)


def test_64_workers_lose_at_most_a_tenth_though_some_are_killed(tmp_path, scale):
    workers = scale(64)
    killed, units = max(1, round(SHARE_KILLED * workers)), workers * UNITS_PER_WORKER
    killer = threading.Thread(
        target=kill_some,
        args=[tmp_path],
        kwargs={"workers": workers, "count": killed, "after": 5.0},
        daemon=True,
    )
    with cluster.connect():
        killer.start()
        drawn = cluster.draw_units(
            Sleeper,
            range(units),
            worker_arguments={
                "folder": str(tmp_path),
                "slowest_start": SLOWEST_START,
                "unit_seconds": UNIT_SECONDS,
            },
            workers=Workers(min=workers, max=workers, cpus=0.03),
            description="sleep",
        )
        found = sorted(drawn)
        finished = time.time()
    killer.join(timeout=60)
    assert found == list(range(units))
    ready = starts(tmp_path)
    begun = ready[0]
    assert len(ready) >= workers + killed
    # The replacements of killed workers are no extra capacity: no more than 64 run at a time.
    ideal = ideal_seconds([start - begun for start in ready[:workers]], work=units * UNIT_SECONDS)
    taken = finished - begun
    scale.claim(
        ideal / taken >= 0.9,
        f"{workers} workers up within {ready[workers - 1] - begun:.1f} s, {killed} killed, "
        f"{units} units of {UNIT_SECONDS} s: {taken:.1f} s, ideal {ideal:.1f} s, "
        f"efficiency {ideal / taken:.1%} (at least 90 %)",
    )


def test_a_pool_of_one_waits_little_between_units(tmp_path, scale):
    units = 40
    with cluster.connect():
        list(
            cluster.draw_units(
                Sleeper,
                range(units),
                worker_arguments={
                    "folder": str(tmp_path),
                    "slowest_start": 0.0,
                    "unit_seconds": UNIT_SECONDS,
                },
                workers=Workers(),
                description="sleep",
            )
        )
    (log,) = [mark.read_text().splitlines()[1:] for mark in tmp_path.glob("worker-*")]
    times = [tuple(map(float, line.split()[:2])) for line in log]
    gaps = [after[0] - before[1] for before, after in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    scale.claim(
        mean < 0.01 * UNIT_SECONDS,
        f"a pool of one waits {1000 * mean:.1f} ms between units, at most {1000 * max(gaps):.1f}",
    )
