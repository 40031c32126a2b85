"""The whole path while processes die, disks fill, clocks jump and permissions go.

``RAYBRAIN_KILLS`` processes are killed at random moments (4 unless told), ``RAYBRAIN_SEED`` says
which.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from raybrain import seal
from raybrain.cli import INTERRUPTED
from raybrain.config import Experiment
from tests.small_run import contents_of, load_experiment, outputs_of

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),
]

KILLS = int(os.environ.get("RAYBRAIN_KILLS", "4"))
SEED = int(os.environ.get("RAYBRAIN_SEED", "0"))
VICTIMS = {
    "driver": lambda process: False,  # the command itself, which is nobody's child here
    "worker": lambda process: process.cmdline()[0].startswith("ray::"),
    "node": lambda process: process.name() == "raylet",  # and with it the object store
    "head": lambda process: process.name() == "gcs_server",
}
PATIENCE = 300


def start(file: Path, place: str, *assignments: str, env: dict | None = None) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "raybrain", "run", str(file), place, *assignments],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(env or {})},
    )


def finish(process: subprocess.Popen) -> str:
    """Return what a command said before it ended by itself."""
    try:
        return process.communicate(timeout=PATIENCE)[0]
    except subprocess.TimeoutExpired:
        end(process)
        pytest.fail(f"it hangs: {process.communicate()[0][-3000:]}")


def end(process: subprocess.Popen) -> None:
    """Kill a command and whatever it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in [*psutil.Process(process.pid).children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    process.kill()


def kill(process: subprocess.Popen, victim: str, choice: random.Random) -> bool:
    """Kill one process of a kind that a command has started, and return whether there was one."""
    if victim == "driver":
        os.kill(process.pid, signal.SIGKILL)
        return True
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, IndexError):
                if VICTIMS[victim](one):
                    found.append(one)
    if not found:
        return False
    choice.choice(sorted(found, key=lambda one: one.pid)).kill()
    return True


def written(experiment: Experiment) -> dict[str, tuple[int, int]]:
    """Return inode and time of every file that may not be written a second time."""
    found = {}
    for output in outputs_of(experiment).values():
        folder = Path(output.folder)
        whole = (folder / seal.SEAL).is_file()
        # What is not whole yet may be worked on, but of pictures, each file stays.
        units = folder.rglob("*") if whole else folder.glob("system/c/**/*")
        for file in units:
            with contextlib.suppress(FileNotFoundError):
                if file.is_file() and not file.name.endswith(".partial"):
                    status = file.stat()
                    found[str(file)] = (status.st_ino, status.st_mtime_ns)
    return found


def the_same(experiment: Experiment, undisturbed: Experiment) -> None:
    for output in outputs_of(experiment).values():
        assert seal.status(output.folder, wanted=output.seal).state == "sealed", output.folder
        assert not list(Path(output.folder).rglob("*.partial")), output.folder
    wanted = contents_of(undisturbed)
    for name, values in contents_of(experiment).items():
        np.testing.assert_array_equal(values, wanted[name], err_msg=name)


def test_whatever_is_killed_the_results_are_the_same_and_nothing_is_done_twice(
    finished, experiment_file, tmp_path
):
    choice = random.Random(SEED)
    killed = dict.fromkeys(VICTIMS, 0)
    rounds = survived = 0
    while sum(killed.values()) < KILLS:
        workspace = tmp_path / f"workspace{rounds}"
        place = f"workspace={workspace}"
        experiment = load_experiment(experiment_file, place)
        rounds += 1
        before: dict[str, tuple[int, int]] = {}
        for _ in range(40):
            process = start(experiment_file, place)
            victim = choice.choice(list(VICTIMS))
            # Early moments as likely as late ones: a start takes seconds, the path minutes.
            deadline = time.monotonic() + choice.uniform(1, 45)
            hit = False
            while process.poll() is None and sum(killed.values()) < KILLS:
                if time.monotonic() > deadline and kill(process, victim, choice):
                    killed[victim] += 1
                    print(f"{sum(killed.values())} of {KILLS}: {victim}", flush=True)
                    hit = True
                    break
                time.sleep(0.2)
            said = finish(process)
            # Without its node, a driver is told to stop as if by the keyboard.
            assert process.returncode in (0, 1, 2, INTERRUPTED, -signal.SIGKILL), said[-3000:]
            if victim == "worker" and hit:
                survived += process.returncode == 0
            now = written(experiment)
            redone = [file for file, status in before.items() if now.get(file) != status]
            assert not redone, (victim, redone[:5], said[-2000:])
            before = now
            if process.returncode == 0:
                break
        else:
            pytest.fail(f"not finished after 40 starts: {said[-3000:]}")
        the_same(experiment, finished)
        shutil.rmtree(workspace)
    print(f"\n{killed} killed in {rounds} runs; {survived} outlived the loss of a worker")
    assert sum(killed.values()) == KILLS


def test_two_commands_on_one_workspace_give_one_result(finished, experiment_file, tmp_path):
    place = f"workspace={tmp_path}/workspace"
    first = start(experiment_file, place)
    time.sleep(2)
    second = start(experiment_file, place)
    said = [finish(first), finish(second)]
    assert (first.returncode, second.returncode) == (0, 0), said
    assert f"by process {first.pid} on " in said[1] or f"by process {second.pid} on " in said[0]
    the_same(load_experiment(experiment_file, place), finished)
    made = [line for text in said for line in text.splitlines() if line.endswith(" s)")]
    stages = [line.split()[0] for line in made]
    assert sorted(set(stages) - {"train"}) == sorted(s for s in stages if s != "train")


JUMP = """
import os, random, time
_jumps = random.Random(os.getpid())
_time, _time_ns = time.time, time.time_ns
_state = {"until": 0.0, "by": 0}

def _by():
    now = time.monotonic()
    if now > _state["until"]:
        _state.update(until=now + _jumps.uniform(.5, 4), by=_jumps.choice([-90_000, 0, 90_000]))
    return _state["by"]

def jumping():
    return _time() + _by()

def jumping_ns():
    return _time_ns() + _by() * 10**9

time.time, time.time_ns = jumping, jumping_ns
"""


def test_a_clock_that_jumps_by_a_day_changes_nothing(finished, experiment_file, tmp_path):
    (tmp_path / "jumps").mkdir()
    (tmp_path / "jumps" / "sitecustomize.py").write_text(JUMP)
    place = f"workspace={tmp_path}/workspace"
    paths = [str(tmp_path / "jumps"), *filter(None, [os.environ.get("PYTHONPATH")])]
    for _ in range(2):
        process = start(experiment_file, place, env={"PYTHONPATH": os.pathsep.join(paths)})
        said = finish(process)
        assert process.returncode == 0, said[-3000:]
    assert "sealed already" in said
    the_same(load_experiment(experiment_file, place), finished)


STAGES = ("simulate", "ingest", "features", "train", "predict", "reconstruct", "evaluate")


@pytest.fixture
def small_disk(tmp_path):
    """Yield a disk of a few megabytes and what resizes it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here: needs root")

    def resize(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)

    yield disk, resize
    subprocess.run(["umount", "-l", str(disk)], check=True)


def leave_out(experiment: Experiment, place: Path, stage: str) -> None:
    """Copy a finished workspace up to a stage, which is then the next."""
    shutil.copytree(experiment.workspace, place, ignore=shutil.ignore_patterns("mlflow*"))
    moved = experiment.model_copy(update={"workspace": str(place)})
    for output in outputs_of(moved).values():
        if STAGES.index(output.stage) >= STAGES.index(stage):
            shutil.rmtree(output.folder, ignore_errors=True)


@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_that_is_full_at_any_writer_is_one_sentence_and_the_command_goes_on(
    finished, experiment_file, small_disk, tmp_path, stage
):
    disk, resize = small_disk
    workspace = disk / "workspace"
    leave_out(finished, workspace, stage)
    place = f"workspace={workspace}"
    elsewhere = f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"
    used = shutil.disk_usage(disk).used
    resize(f"{(used >> 10) + 8}k")
    process = start(experiment_file, place, elsewhere)
    said = finish(process)
    assert process.returncode == 2, said[-3000:]
    assert "Traceback" not in said
    assert (
        sum(line.startswith("raybrain: ") and "note:" not in line for line in said.splitlines())
        == 1
    )
    assert "disk" in said.splitlines()[-1]
    resize("256m")
    process = start(experiment_file, place, elsewhere)
    said = finish(process)
    assert process.returncode == 0, said[-3000:]
    the_same(load_experiment(experiment_file, place), finished)


def test_a_disk_too_full_for_the_record_of_runs_is_one_sentence(
    finished, experiment_file, small_disk
):
    disk, resize = small_disk
    workspace = disk / "workspace"
    leave_out(finished, workspace, "evaluate")
    resize(f"{(shutil.disk_usage(disk).used >> 10) + 64}k")
    place = f"workspace={workspace}"
    process = start(experiment_file, place)
    said = finish(process)
    assert process.returncode == 2, said[-3000:]
    assert "Traceback" not in said
    assert "disk" in said.splitlines()[-1]
    resize("256m")
    process = start(experiment_file, place)
    said = finish(process)
    assert process.returncode == 0, said[-3000:]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Forbid all writing in a folder, to root as well."""
    try:
        if subprocess.run(["chattr", "-R", "+i", str(folder)], capture_output=True).returncode:
            pytest.skip("a folder cannot be locked here: needs root and a file system that can")
        yield
    finally:
        subprocess.run(["chattr", "-R", "-i", str(folder)], check=True)


@pytest.mark.parametrize("stage", STAGES)
def test_a_folder_that_is_locked_midway_is_one_sentence_and_the_command_goes_on(
    finished, experiment_file, tmp_path, stage
):
    workspace = tmp_path / "workspace"
    leave_out(finished, workspace, stage)
    place = f"workspace={workspace}"
    experiment = load_experiment(experiment_file, place)
    output = next(one for one in outputs_of(experiment).values() if one.stage == stage)
    folder = Path(output.folder)
    process = start(experiment_file, place)
    deadline = time.monotonic() + PATIENCE
    while not (folder / seal.BEGUN).exists():
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with locked(folder):
        said = finish(process)
    assert process.returncode == 2, said[-3000:]
    assert "Traceback" not in said
    assert str(folder) in said.splitlines()[-1]
    process = start(experiment_file, place)
    said = finish(process)
    assert process.returncode == 0, said[-3000:]
    the_same(experiment, finished)
