"""One connection to Ray per process: a cluster that is given, or a small one on this machine."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from raybrain import config
from raybrain.cluster import address, capacity
from raybrain.cluster.address import starts_its_own

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # report() blocks for up to one interval
    "RAY_DATA_LOG_LEVEL": "ERROR",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # its errors are retried or raised; no need to print them
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
SMALLEST_OBJECT_STORE = 256 << 20
LARGEST_OBJECT_STORE = 8 << 30
START_ATTEMPTS = 3
LOCK = "raybrain.lock"
PACKAGE_ROOT = Path(__file__).resolve().parents[2]
LONGEST_TEMPORARY = 30
"""Characters; Ray adds about 70 to reach its sockets, whose paths may have 107."""


@contextlib.contextmanager
def connect(needs: Sequence[capacity.Need] = (), *, ahead: bool = False) -> Iterator[None]:
    """Keep one connection to Ray open inside the block; nested blocks share the outermost.

    A cluster named by ``RAY_ADDRESS`` (as inside a Ray job) is joined; without one, a local Ray
    is started in a temporary folder of its own and stopped at the end. SIGTERM raises
    ``SystemExit(143)`` in the main thread, so that runs are closed before the process ends.

    Parameters
    ----------
    needs : sequence of Need
        Workers that will be asked for, checked against what the cluster can give.
    ahead : bool
        Whether that will be later, so that no node should be started for them yet.

    Raises
    ------
    raybrain.config.InputError
        If the cluster can never give what is needed, or nobody answers at ``RAY_ADDRESS``.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        capacity.check(needs, own=starts_its_own(), ahead=ahead)
        yield
        return
    with contextlib.ExitStack() as stack:
        if starts_its_own():
            stack.enter_context(_local_ray())
        else:
            stack.enter_context(_joined_cluster())
        stack.enter_context(_sigterm_raises())
        capacity.check(needs, own=starts_its_own(), ahead=ahead)
        yield


def worker_environment(workers: config.Workers) -> dict[str, Any]:
    """Return the Ray runtime environment that gives a worker as many threads as it has CPUs.

    Threads are fixed by the settings and not by the machine: sums in another order are other
    bytes.
    """
    threads = str(max(1, int(workers.cpus)))
    return {"env_vars": dict.fromkeys(THREAD_VARIABLES, threads)}


def beside_driver() -> dict[str, Any]:
    """Return options of an actor that needs no CPU: it lives on the driver's node.

    Anywhere else it would die with a spot node, and keep an idle one from leaving.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    return {
        "num_cpus": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False),
    }


def groups_at_once(groups: int, *, size: int, workers: config.Workers) -> int:
    """Return how many of ``groups`` of ``size`` such workers to start side by side.

    On a machine that cannot grow, as many as it holds, but one at least. A cluster that was joined
    is asked for all: groups that wait for a place are what it adds nodes for.

    Parameters
    ----------
    groups : int
        How many there are to start.
    size : int
        Workers of a group.
    workers : Workers
        What each worker needs.
    """
    if not starts_its_own():
        return groups
    return min(groups, max(1, _slots(workers) // size))


def _slots(workers: config.Workers) -> int:
    import ray

    held = ray.cluster_resources()
    fits = held.get("CPU", 0.0) / workers.cpus
    if workers.gpus:
        fits = min(fits, held.get("GPU", 0.0) / workers.gpus)
    return int(fits + 1e-9)


def data_context() -> Any:
    """Return a copy of Ray Data's settings, from which Ray Train makes one of its own as well."""
    with warnings.catch_warnings():
        # Making the first one warns about settings that nobody touched.
        warnings.simplefilter("ignore", DeprecationWarning)
        from ray.data import DataContext

        return DataContext.get_current().copy()


@contextlib.contextmanager
def _local_ray() -> Iterator[None]:
    import ray

    with _temporary_folder() as folder, _environment(_local_environment()):
        for attempts_left in reversed(range(START_ATTEMPTS)):
            if _started(folder, last_attempt=not attempts_left):
                break
            _end_leftovers(folder)
        try:
            yield
        finally:
            ray.shutdown()
            _end_leftovers(folder)


def _started(folder: Path, *, last_attempt: bool) -> bool:
    import psutil
    import ray

    memory = psutil.virtual_memory().total // 10
    try:
        with _quiet_stderr():
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=min(max(memory, SMALLEST_OBJECT_STORE), LARGEST_OBJECT_STORE),
                logging_level=logging.ERROR,
                log_to_driver=False,
                _temp_dir=str(folder),
            )
    except Exception as error:
        ray.shutdown()
        # Ray gives its node 30 s, which a machine busy with other work can exceed.
        if last_attempt or "timed out during startup" not in str(error):
            raise
        return False
    return True


def _end_leftovers(folder: Path) -> None:
    """End what is left of a Ray: all of one that did not start, now and then a part of one."""
    import psutil

    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(str(folder) in argument for argument in process.cmdline()):
                process.kill()
                process.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # about these very processes
        gc.collect()


def _local_environment() -> dict[str, str]:
    # Workers inherit the environment of the process that starts Ray. Setting the path here rather
    # than in a runtime environment lets them start from Ray's pool of warm processes.
    paths = [str(PACKAGE_ROOT), *(str(Path(entry or ".").resolve()) for entry in sys.path)]
    return {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "disabled"),  # loopback only
        # On a busy machine a worker may need longer than 60 s to import what it imports, and
        # the one node longer than 5 x 10 s to say that it is alive; Ray would end both.
        "RAY_worker_register_timeout_seconds": "300",
        "RAY_health_check_timeout_ms": "60000",
    }


@contextlib.contextmanager
def _joined_cluster() -> Iterator[None]:
    import ray

    address.check_address()
    environment: dict[str, Any] = {}
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if not in_job and "site-packages" not in PACKAGE_ROOT.parts:
        # Nodes get the very code this driver runs; a job brings its own working directory.
        environment["py_modules"] = [str(PACKAGE_ROOT / "raybrain")]
    try:
        with _quiet_stderr():
            ray.init(
                address=os.environ[address.VARIABLE],
                runtime_env=environment or None,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
    except Exception as error:
        ray.shutdown()
        raise address.refusal(error) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    # Ray's C++ part announces its log level on the descriptor itself; failures are exceptions.
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - not a file of ours
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    parent = Path(tempfile.gettempdir())
    if len(str(parent)) > LONGEST_TEMPORARY:
        parent = Path("/tmp")
    _remove_abandoned(parent)
    # The lock dies with this process, however it dies; the next one may then remove the folder.
    folder = Path(tempfile.mkdtemp(prefix="rb", dir=parent))
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder.mkdir(exist_ok=True)  # in case another process took it for abandoned until now
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    for lock_file in parent.glob(f"rb*/{LOCK}"):
        with contextlib.suppress(OSError), lock_file.open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock_file.parent, ignore_errors=True)


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    # Ray installs its own handler in init(), so this one has to come after.
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(signum: int, frame: FrameType | None) -> None:
        # Whoever stops a group of processes may send it twice, the second time while runs close.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
