"""What the machines that work are doing: CPU, memory, disk, network and GPU, now and then."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

PATIENCE = 20.0
"""Seconds for another node to answer; one that is too busy is left out this time."""
FIRST = 1.0
"""Seconds until the first look: a short stage has one as well."""
MEGA = 1e6

Sample = dict[str, float]


@contextlib.contextmanager
def watching(*, seconds: float, on_sample: Callable[[int, Sample], None]) -> Iterator[None]:
    """Look at every node that works, soon and then every so many seconds, inside the block.

    Parameters
    ----------
    seconds : float
        Between two looks.
    on_sample : callable
        Step and values, named as MLflow names system metrics, those of further nodes behind
        ``node_1/`` and so on; called from another thread.
    """
    ended = threading.Event()
    look = _Look()

    def follow() -> None:
        step, last = 0, ended.wait(min(FIRST, seconds))
        while True:
            with contextlib.suppress(Exception):  # a look is never worth a stage
                on_sample(step, look(others=not last))
            if last:
                return
            step, last = step + 1, ended.wait(seconds)

    thread = threading.Thread(target=follow, name="system metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=1.0)


class _Look:
    """Remembers which number each further node has."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        sample(interval=None)  # from now on the load is measured

    def __call__(self, *, others: bool) -> Sample:
        found = sample(interval=None)
        for node, values in _others().items() if others else ():
            number = self._numbers.setdefault(node, len(self._numbers) + 1)
            found |= {f"node_{number}/{name}": value for name, value in values.items()}
        return found


def sample(*, interval: float | None) -> Sample:
    """Return what this machine does, in MLflow's names and units.

    Parameters
    ----------
    interval : float or None
        Seconds over which the load of the CPUs is measured; since the last call when None.
    """
    import psutil

    memory, disk, network = (
        psutil.virtual_memory(),
        psutil.disk_usage("/"),
        psutil.net_io_counters(),
    )
    return {
        "cpu_utilization_percentage": psutil.cpu_percent(interval=interval),
        "system_memory_usage_megabytes": memory.used / MEGA,
        "system_memory_usage_percentage": memory.percent,
        "disk_usage_megabytes": disk.used / MEGA,
        "disk_usage_percentage": disk.percent,
        "network_receive_megabytes": network.bytes_recv / MEGA,
        "network_transmit_megabytes": network.bytes_sent / MEGA,
        **_gpus(),
    }


def _gpus() -> Sample:
    handles = _gpu_handles()
    found: Sample = {}
    for number, handle in enumerate(handles):
        import pynvml

        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        used = pynvml.nvmlDeviceGetUtilizationRates(handle)
        found |= {
            f"gpu_{number}_memory_usage_megabytes": memory.used / MEGA,
            f"gpu_{number}_memory_usage_percentage": 100 * memory.used / memory.total,
            f"gpu_{number}_utilization_percentage": float(used.gpu),
        }
    return found


@functools.cache
def _gpu_handles() -> tuple[Any, ...]:
    try:
        import pynvml

        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        return tuple(pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(count))
    except Exception:  # no such package, or no such GPU
        return ()


def _others() -> dict[str, Sample]:
    """Return what the other nodes do whose CPUs or GPUs are in use; an idle one may leave."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not ray.is_initialized():
        return {}
    here = ray.get_runtime_context().get_node_id()
    busy = [node for node in _busy_nodes() if node != here]
    if not busy:
        return {}
    look = ray.remote(sample)
    asked = {
        look.options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        ).remote(interval=0.1): node
        for node in busy
    }
    answered, late = ray.wait(list(asked), num_returns=len(asked), timeout=PATIENCE)
    for task in late:
        ray.cancel(task)
    found = {}
    for task in answered:
        with contextlib.suppress(ray.exceptions.RayError):
            found[asked[task]] = ray.get(task)
    return found


def _busy_nodes() -> list[str]:
    import ray
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    return [
        node["NodeID"]
        for node in ray.nodes()
        if node["Alive"]
        and any(
            free.get(node["NodeID"], {}).get(kind, 0.0) < node["Resources"].get(kind, 0.0)
            for kind in ("CPU", "GPU")
        )
    ]
