"""All 73,000 images of NSD, five samples each, on 256 logical GPUs of this machine.

A unit is what `reconstruct` plans, four images with their samples, and takes a timed sleep of
`UNIT_SECONDS`: a second for each of its twenty images. The workers are processes of their own, as
on a cluster, and hold a logical GPU each; they load no generator. 25 minutes, 20 GB.
"""

import json
import threading
import time

import psutil
import pytest

from raybrain import cluster
from raybrain.config import Reconstruct, Workers
from tests import clusters
from tests.benchmarks.sleeping import Sleeper, ideal_seconds, starts

pytestmark = [pytest.mark.ray, pytest.mark.benchmark, pytest.mark.filterwarnings("default")]

IMAGES = 73_000
WORKERS = 256
UNIT_SECONDS = 20.0
CPUS = 0.0078
"""Of each worker: 256 of them fit on two, and Ray starts no more processes at once than CPUs."""
MEGABYTE = 1 << 20


class Meter:
    """Samples the memory of the driver, of Ray's own processes and of the object store."""

    def __init__(self, head):
        self.peaks = {}
        self._head = head
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def note(self, name, value):
        self.peaks[name] = max(self.peaks.get(name, 0.0), value)

    def _sample(self):
        import ray

        driver = psutil.Process()
        gcs = next(
            one
            for one in psutil.process_iter(["cmdline"])
            if "gcs_server" in " ".join(one.info["cmdline"] or [])
            and str(self._head.folder) in " ".join(one.info["cmdline"])
        )
        total = ray.cluster_resources()["object_store_memory"]
        self.first = driver.memory_info().rss / MEGABYTE
        while not self._over.wait(1.0):
            self.note("driver", driver.memory_info().rss / MEGABYTE)
            self.note("gcs", gcs.memory_info().rss / MEGABYTE)
            free = ray.available_resources().get("object_store_memory", total)
            self.note("objects", (total - free) / MEGABYTE)


def test_256_workers_draw_every_image_of_nsd(tmp_path, monkeypatch, scale):
    workers = scale(WORKERS)
    planned = Reconstruct()
    units = -(-scale(IMAGES) // planned.images_per_unit)
    environment = {"RAY_memory_monitor_refresh_ms": "0"}
    with clusters.head("--num-cpus=2", f"--num-gpus={workers}", **environment) as head:
        monkeypatch.setenv("RAY_ADDRESS", head.address)
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        with cluster.connect(), Meter(head) as meter:
            drawn = cluster.draw_units(
                Sleeper,
                range(units),
                worker_arguments={
                    "folder": str(tmp_path),
                    "slowest_start": 0.0,
                    "unit_seconds": UNIT_SECONDS,
                },
                workers=Workers(min=workers, max=workers, cpus=CPUS, gpus=1),
                description="sleep",
            )
            found = sorted(drawn)
            finished = time.time()
            resident = {one: value for one, value in meter.peaks.items()}
    assert found == list(range(units))
    ready = starts(tmp_path)
    assert len(ready) == workers
    begun = ready[0]
    taken = finished - begun
    ideal = ideal_seconds([start - begun for start in ready], work=units * UNIT_SECONDS)
    print(json.dumps({"units": units, "workers": workers, "first": meter.first, **resident}))
    scale.claim(
        ideal / taken >= 0.9,
        f"{units:,} units of {UNIT_SECONDS:.0f} s on {workers} workers, up within "
        f"{ready[-1] - begun:.0f} s: {taken:.0f} s, ideal {ideal:.0f} s, efficiency "
        f"{ideal / taken:.1%} (at least 90 %), {units / taken:.1f} units/s",
    )
    scale.claim(
        resident["driver"] < 2_000,
        f"driver at most {resident['driver']:,.0f} MB (below 2,000), {meter.first:,.0f} at first; "
        f"Ray's control service {resident['gcs']:,.0f} MB",
    )
    scale.claim(
        resident["objects"] < 200,
        f"object store at most {resident['objects']:,.1f} MB (below 200)",
    )
