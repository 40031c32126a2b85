"""A wrong RAY_ADDRESS is refused within seconds, and the right form is named."""

import http.server
import socket
import subprocess
import sys
import threading
import time

import pytest

from raybrain import cli
from raybrain.cluster import address
from raybrain.config import InputError
from tests import clusters

SECONDS = 15
SMALL = (
    "simulation.objects=16",
    "simulation.test_images=4",
    "simulation.trials_per_session=20",
    "simulation.grid=[12, 12, 10]",
    "simulation.early_voxels=120",
    "simulation.ventral_voxels=80",
)


@pytest.fixture
def web_port():
    """Yield the port of a web server, as a dashboard is one."""
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def silent_port():
    """Yield a port that takes connections and never says a word."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        yield silent.getsockname()[1]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("http://127.0.0.1:8265", "the address of the jobs API, which only 'ray job' takes"),
        ("https://cluster.example/ray", "the address of the jobs API"),
        ("ray://10.0.0.1:10001", "joins a cluster from one of its nodes"),
        ("10.0.0.1", "is no address"),
        ("10.0.0.1:", "is no address"),
        ("10.0.0.1:66000", "is no address"),
        ("10.0.0.1:0", "is no address"),
        ("10.0.0.1:6379/", "is no address"),
        ("head node:6379", "is no address"),
        ("nobody.invalid:6379", "nobody answers at RAY_ADDRESS=nobody.invalid:6379"),
    ],
)
def test_another_form_is_refused_with_the_form_that_is_meant(given, sentence, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", given)
    with pytest.raises(InputError) as caught:
        address.check_address()
    assert sentence in str(caught.value)
    assert "HOST:PORT as 'ray start --head' prints it" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_port_where_nobody_listens_is_refused(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{clusters.free_port()}")
    with pytest.raises(InputError, match=r"nobody answers at .*Connection refused"):
        address.check_address()


@pytest.mark.parametrize("kind", ["web_port", "silent_port"])
def test_a_port_of_something_else_is_refused_in_time(kind, request, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{request.getfixturevalue(kind)}")
    started = time.monotonic()
    with pytest.raises(InputError, match="is not the head of a Ray cluster"):
        address.check_address()
    assert time.monotonic() - started < SECONDS


@pytest.mark.parametrize("given", ["", "local"])
def test_no_address_means_this_machine(given, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", given)
    assert address.starts_its_own()


@pytest.mark.ray
@pytest.mark.slow
def test_the_head_is_joined_and_its_other_ports_and_strangers_are_not(tmp_path):
    def simulate(found, **environment):
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "raybrain.cli", "simulate", str(cli.DEMO), *SMALL,
             f"workspace={tmp_path}/workspace"],
            env={**found.environment, "RAY_ADDRESS": found.address, **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )  # fmt: skip
        return done, time.monotonic() - started

    with clusters.head("--num-cpus=1", token=True) as found:
        refused = {
            "perhaps its dashboard": {"RAY_ADDRESS": f"127.0.0.1:{found.dashboard}"},
            "of the jobs API": {"RAY_ADDRESS": f"http://127.0.0.1:{found.dashboard}"},
            "export RAY_AUTH_MODE=token": {"RAY_AUTH_MODE": "disabled"},
        }
        for sentence, environment in refused.items():
            done, seconds = simulate(found, **environment)
            assert done.returncode == 2, done.stderr
            assert sentence in done.stderr
            assert done.stderr.count("\n") == 1
            assert seconds < SECONDS
            assert not (tmp_path / "workspace").exists()
        done, _ = simulate(found)
        assert done.returncode == 0, done.stderr
