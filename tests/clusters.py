"""Ray clusters of several processes on this machine, started and ended as children of a test."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
TOKEN = "a" * 64


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def grows_from_nothing(manifest: dict) -> dict:
    """Return what KubeRay derives of a manifest, whose head does no work and whose workers come."""
    from ray.autoscaler._private.kuberay.autoscaling_config import (
        _derive_autoscaling_config_from_ray_cr,
    )

    cluster = {**manifest, "metadata": {"namespace": "default", **manifest["metadata"]}}
    derived = _derive_autoscaling_config_from_ray_cr(cluster)
    kinds = derived["available_node_types"]
    head = kinds.pop(derived["head_node_type"])
    assert head["resources"]["CPU"] == 0
    assert {name: kind["resources"].get("GPU", 0) for name, kind in kinds.items()} == {
        "cpu": 0,
        "gpu": 1,
    }
    assert {kind["min_workers"] for kind in kinds.values()} == {0}
    return derived


@dataclass
class Cluster:
    """A head, and nodes that joined it."""

    folder: Path
    """Short, for sockets; also the home that holds the token."""
    port: int
    dashboard: int
    environment: dict[str, str]
    processes: list[subprocess.Popen] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self, *words: str, before: tuple[str, ...] = (), **environment: str) -> None:
        """Start a node as a child, in a process group of its own."""
        name = f"node{len(self.processes)}"
        log = (self.folder / f"{name}.log").open("wb")
        with log:
            self.processes.append(
                subprocess.Popen(
                    # Another Ray on this machine may hold the agent's own port.
                    [
                        *before,
                        str(BIN / "ray"),
                        "start",
                        "--block",
                        *words,
                        f"--dashboard-agent-listen-port={free_port()}",
                    ],
                    env={**self.environment, **environment},
                    cwd=self.folder,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def job(self, *words: str, **options) -> subprocess.CompletedProcess:
        """Run ``ray job ...``."""
        return subprocess.run(
            [str(BIN / "ray"), "job", *words],
            env={**self.environment, "RAY_ADDRESS": f"http://127.0.0.1:{self.dashboard}"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            **options,
        )

    def submit(
        self, *words: str, job: str, wait: bool = True, ship: bool = True
    ) -> subprocess.CompletedProcess:
        """Submit ``python jobs/run.py ...``, and the code with it as the docs say."""
        options = [] if wait else ["--no-wait"]
        options += ["--working-dir", "."] if ship else []
        script = "jobs/run.py" if ship else f"{ROOT}/jobs/run.py"
        deadline = time.monotonic() + 90
        while True:
            done = self.job(
                "submit", "--submission-id", job, *options, "--", "python", script, *words,
                timeout=900,
            )  # fmt: skip
            # The head answers some seconds before its agent can take jobs.
            if "No available agent" not in done.stderr or time.monotonic() > deadline:
                return done
            time.sleep(2)

    def status(self, job: str) -> str:
        """Return where a job stands, or an empty string where nobody says."""
        done = self.job("status", job)
        said = (done.stdout + done.stderr).upper()
        known = ("SUCCEEDED", "STOPPED", "FAILED", "RUNNING", "PENDING")
        return next((one for one in known if one in said), "")

    def python(self, code: str, *, timeout: float = 60) -> str:
        """Run code that is connected to the cluster and return what it prints."""
        start = "import json, ray; ray.init(logging_level=50, log_to_driver=False)\n"
        done = subprocess.run(
            [sys.executable, "-c", start + code],
            env={**self.environment, "RAY_ADDRESS": self.address},
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def nodes(self) -> list[dict]:
        """Return the nodes that are alive."""
        said = self.python("print(json.dumps(ray.nodes()))").splitlines()
        listed = next(line for line in said if line.startswith("["))  # Ray may say more beside it
        return [node for node in json.loads(listed) if node["Alive"]]

    def wait(self, done, *, what: str, seconds: float = 120) -> None:
        """Wait until ``done()`` is true."""
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, f"{what} did not happen in {seconds} s"
            time.sleep(0.5)


@contextlib.contextmanager
def head(
    *words: str, token: bool = False, port: int | None = None, **environment: str
) -> Iterator[Cluster]:
    """Yield a cluster whose head holds no CPU, and end all its processes afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="rb", dir="/tmp"))
    own = {
        **os.environ,
        "HOME": str(folder),
        "PYTHONPATH": str(ROOT),
        "PATH": f"{BIN}:{os.environ['PATH']}",  # jobs say python, as in a node's environment
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token" if token else "disabled",
        "RAY_worker_register_timeout_seconds": "300",
        **environment,
    }
    if token:
        own["RAY_AUTH_TOKEN"] = TOKEN
    own.pop("RAY_ADDRESS", None)
    cluster = Cluster(folder, port or free_port(), free_port(), own)
    try:
        cluster.start(
            "--head", f"--port={cluster.port}", f"--temp-dir={folder}/head",
            f"--dashboard-port={cluster.dashboard}", "--include-dashboard=true",
            "--disable-usage-stats", *words,
        )  # fmt: skip
        cluster.wait(lambda: _answers(cluster), what="an answer of the head")
        yield cluster
    finally:
        _end(cluster)
        shutil.rmtree(folder, ignore_errors=True)


def _answers(cluster: Cluster) -> bool:
    if cluster.processes[0].poll() is not None:
        raise RuntimeError((cluster.folder / "node0.log").read_text()[-3000:])
    for port in (cluster.port, cluster.dashboard):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return False
    return True


def _end(cluster: Cluster) -> None:
    for process in cluster.processes[::-1]:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    for process in cluster.processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=15)
    # What a dead parent left behind still names the cluster's own folder.
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(str(cluster.folder) in word for word in process.cmdline()):
                process.kill()
