"""Two commands on one workspace: one works, the other waits and says for whom."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import fsspec
import pytest

from raybrain import leases, places
from raybrain.config import InputError

HOLDER = """
    import sys, time
    from raybrain import leases

    with leases.lease(sys.argv[1], waits=print):
        print("held", flush=True)
        time.sleep(600)
"""


@pytest.fixture
def bucket(monkeypatch):
    monkeypatch.setattr(leases, "RENEWED", 0.05)
    yield "memory://leases/runs/a/report"
    with contextlib.suppress(FileNotFoundError):
        fsspec.filesystem("memory").rm("/leases", recursive=True)


def hold(folder: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_is_told_and_goes_on_when_the_first_was_killed(tmp_path):
    folder = tmp_path / "runs" / "a"
    first = hold(folder)
    said: list[str] = []
    entered = threading.Event()

    def second() -> None:
        with leases.lease(str(folder), waits=said.append):
            entered.set()

    waiting = threading.Thread(target=second, daemon=True)
    waiting.start()
    assert not entered.wait(1.5)
    assert len(said) == 1
    assert f"waits until {folder} is made by process {first.pid} on " in said[0]
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert entered.wait(20)
    waiting.join()


def test_who_comes_alone_is_told_nothing_and_leaves_the_folder_free(tmp_path):
    for _ in range(2):
        with leases.lease(str(tmp_path / "a"), waits=pytest.fail):
            (tmp_path / "a").mkdir(exist_ok=True)
            (tmp_path / "a").rmdir()  # redone: the lease is not in the folder
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    with leases.lease(a, waits=pytest.fail), leases.lease(b, waits=pytest.fail):
        pass


def test_threads_of_one_command_exclude_each_other(tmp_path):
    inside, most, said = [0], [0], []
    together = threading.Barrier(3)

    def work() -> None:
        together.wait()
        with leases.lease(str(tmp_path / "a"), waits=said.append):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.3)
            inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert said


def test_a_lease_in_a_bucket_is_renewed_and_then_given_up(bucket):
    with leases.lease(bucket, waits=pytest.fail):
        first = places.read_text(leases._beside(bucket))
        time.sleep(0.3)
        assert places.read_text(leases._beside(bucket)) != first
    assert not places.exists(leases._beside(bucket))


def test_a_renewed_lease_in_a_bucket_is_waited_for(bucket):
    said, order = [], []

    def second() -> None:
        with leases.lease(bucket, waits=said.append):
            order.append("second")

    with leases.lease(bucket, waits=pytest.fail):
        waiting = threading.Thread(target=second, daemon=True)
        waiting.start()
        time.sleep(1.0)
        order.append("first")
    waiting.join(20)
    assert order == ["first", "second"]
    assert f"waits until {bucket} is made by process {os.getpid()} on " in said[0]


@pytest.mark.parametrize("left", ['{"holder": "process 1 on gone abc", "beats": 4}', "", "{"])
def test_a_lease_in_a_bucket_that_nobody_renews_is_taken_over(bucket, left):
    places.write_text(leases._beside(bucket), left)
    said: list[str] = []
    with leases.lease(bucket, waits=said.append):
        assert f"process {os.getpid()}" in places.read_text(leases._beside(bucket))
    assert len(said) == 1


def test_who_was_cut_off_from_the_bucket_and_replaced_does_not_seal(bucket):
    def cut_off() -> None:
        with leases.lease(bucket, waits=pytest.fail):
            places.write_text(leases._beside(bucket), '{"holder": "another", "beats": 0}')
            time.sleep(0.3)

    with pytest.raises(InputError, match="taken over by another command"):
        cut_off()
    assert "another" in places.read_text(leases._beside(bucket))
