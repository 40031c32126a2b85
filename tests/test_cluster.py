import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import ray

from raybrain import cluster
from raybrain.cluster import Need
from raybrain.config import InputError, Workers

pytestmark = pytest.mark.ray

ONE = Workers()
TWO = Workers(min=1, max=2)
GROUP = Workers(min=2, max=2, cpus=0.5)
FINAL = 2 - 2**-5
"""x <- x / 2 + 1 from x = 0, six times."""


@pytest.fixture(scope="module", autouse=True)
def _ray():
    with cluster.connect():
        yield


# What runs on the workers


def square(number):
    return number * number


def square_but_die_once(number, *, folder):
    if number == 2 and first_time(Path(folder, "died")):
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def die(_):
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(item):
    raise InputError(f"nothing called {item} here")


def threads(_):
    import torch

    return torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]


def note_overlap(number, *, folder):
    mark = Path(folder, f"running-{number}")
    mark.touch()
    time.sleep(0.1)
    running = len(list(Path(folder).glob("running-*")))
    mark.unlink()
    return running


def beat(_, *, file):
    while True:
        Path(file).write_text(str(time.time()))
        time.sleep(0.02)


class SideBySide:
    """Waits until as many units are in hand as there should be, and tells which thread had each."""

    def __init__(self, *, together):
        self.together = threading.Barrier(together)

    def __call__(self, unit):
        import torch

        self.together.wait(timeout=60)
        return unit, threading.get_ident(), os.getpid(), torch.get_num_threads()


class Multiplier:
    """Multiplies units; may fail, or kill itself, on some of them."""

    def __init__(self, *, folder, factor=10, fails=(), kills=(), always=False):
        self.folder, self.factor = Path(folder), factor
        self.fails, self.kills, self.always = fails, kills, always
        if factor == 0:
            raise InputError("a factor of 0 makes no sense")
        (self.folder / f"worker-{os.getpid()}").touch()

    def __call__(self, unit):
        if unit in self.fails:
            raise ArithmeticError(f"cannot do {unit}")
        if unit in self.kills and (self.always or first_time(self.folder / f"killed-{unit}")):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)
        (self.folder / f"done-{unit}").touch()
        return unit, unit * self.factor


def halve(settings):
    """Six epochs of x <- x / 2 + 1; what happens on the way is in ``settings``."""
    import torch

    folder = Path(settings["folder"])
    first, x = 0, torch.zeros(1)
    with cluster.latest_checkpoint() as checkpoint:
        if checkpoint is not None:
            first, x = torch.load(checkpoint / "state.pt")
    with (folder / "starts").open("a") as starts:
        starts.write(f"{cluster.rank()}:{first}\n")
    for epoch in range(first, 6):
        if settings.get("dies_at") == (cluster.rank(), epoch) and first_time(folder / "died"):
            os.kill(os.getpid(), signal.SIGKILL)
        if settings.get("fails_at") == epoch:
            raise InputError("the loss is not a number")
        x = mean_over_workers(x / 2 + 1)
        save = functools.partial(save_state, state=(epoch + 1, x))
        cluster.report({"epoch": epoch, "x": x.item()}, save)
        time.sleep(settings.get("seconds", 0.0))
    return {"x": x.item(), "first": first, "workers": cluster.world_size()}


def mean_over_workers(x):
    import torch.distributed

    if cluster.world_size() > 1:
        torch.distributed.all_reduce(x)
        x = x / cluster.world_size()
    return x


def save_state(folder, *, state):
    import torch

    torch.save(state, folder / "state.pt")


def first_time(mark):
    with contextlib.suppress(FileExistsError):
        mark.touch(exist_ok=False)
        return True
    return False


# One connection


def test_a_second_connection_in_the_block_is_the_first():
    import ray

    before = ray.get_runtime_context().get_node_id()
    with cluster.connect():
        assert ray.get_runtime_context().get_node_id() == before
    assert ray.is_initialized()


@pytest.mark.parametrize(
    ("need", "sentence"),
    [
        (
            Need("resources.train", Workers(min=500, max=500), together=500),
            r"resources\.train asks for at least 500 workers of 1 CPU, which this machine never",
        ),
        (
            Need("resources.tasks", Workers(gpus=64), shrinks=True),
            r"resources\.tasks asks for a worker of 1 CPU and 64 GPUs, .* lower resources\.tasks\.",
        ),
        (Need("resources.generate", Workers(cpus=500)), r"resources\.generate asks for a worker"),
    ],
)
def test_workers_that_this_machine_can_never_have_are_refused_in_one_sentence(need, sentence):
    with pytest.raises(InputError, match=sentence) as caught, cluster.connect([need]):
        pass
    assert "\n" not in str(caught.value)


def test_a_task_that_wishes_for_more_cpus_than_there_are_runs_on_all_of_them():
    wish = Workers(max=2, cpus=500)
    with cluster.connect([Need("resources.tasks", wish, shrinks=True)]):
        assert cluster.map_tasks(square, [3], workers=wish, description="squares") == [9]
        made = cluster.on_worker(functools.partial(square, 4), workers=wish, description="one")
        assert made.get() == 16


def test_importing_the_package_imports_no_ray_and_no_torch():
    code = "import sys, raybrain.cluster; print('ray' in sys.modules or 'torch' in sys.modules)"
    printed = run_python(code)
    assert printed.stdout.strip() == "False"


# Tasks


def test_results_come_in_the_order_of_the_items(capfd):
    found = cluster.map_tasks(square, range(7), workers=TWO, description="squares", unit="numbers")
    assert found == [0, 1, 4, 9, 16, 25, 36]
    line = capfd.readouterr().err.strip()
    assert line.startswith("squares: 7 of 7 numbers in ")
    assert "\n" not in line


def test_no_items_need_no_workers():
    assert cluster.map_tasks(square, [], workers=TWO, description="none") == []


def test_a_dead_worker_costs_nothing(tmp_path):
    function = functools.partial(square_but_die_once, folder=str(tmp_path))
    assert cluster.map_tasks(function, range(4), workers=TWO, description="die") == [0, 1, 4, 9]
    assert (tmp_path / "died").exists()


def test_an_item_that_kills_every_worker_is_named():
    with pytest.raises(RuntimeError, match="the worker died 4 times on unit-17"):
        cluster.map_tasks(die, ["unit-17"], workers=ONE, description="die")


def test_an_error_keeps_its_type_and_its_words():
    with pytest.raises(InputError, match="nothing called V9 here") as caught:
        cluster.map_tasks(refuse, ["V9", "V8"], workers=ONE, description="refuse")
    assert "in refuse" in caught.value.__notes__[0]
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_worker_has_as_many_threads_as_cpus(cpus):
    (found,) = cluster.map_tasks(threads, [0], workers=Workers(cpus=cpus), description="threads")
    assert found == (cpus, str(cpus))


def make_array(*, folder, side):
    Path(folder, f"made-{time.monotonic_ns()}").touch()
    squares = cluster.map_tasks(square, list(range(side)), workers=ONE, description="square")
    return np.asarray(squares), os.getpid()


def test_a_result_stays_on_its_worker_which_may_start_tasks_of_its_own(tmp_path):
    make = functools.partial(make_array, folder=tmp_path, side=3)
    made = cluster.on_worker(make, workers=Workers(cpus=2), description="make")
    squares, process = made.get()
    assert squares.tolist() == [0, 1, 4]
    assert process != os.getpid()
    assert cluster.map_tasks(read_sum, [made, made], workers=TWO, description="read") == [5, 5]
    assert len(list(tmp_path.glob("made-*"))) == 1


def read_sum(made):
    return int(made.get()[0].sum())


def test_what_a_worker_raises_while_it_makes_a_result_keeps_its_type():
    with pytest.raises(InputError, match="nothing called it here") as caught:
        cluster.on_worker(functools.partial(refuse, "it"), workers=ONE, description="make")
    assert "in refuse" in caught.value.__notes__[0]
    with pytest.raises(RuntimeError, match="died 4 times on make"):
        cluster.on_worker(functools.partial(die, 0), workers=ONE, description="make")


def test_a_log_says_every_minute_how_far_it_is_and_when_it_waits(monkeypatch, capfd):
    monkeypatch.setattr("raybrain.cluster.progress.SECONDS_BETWEEN_LINES", 0.2)
    with cluster.Progress(total=40, description="draw", unit="images") as progress:
        time.sleep(0.5)
        progress.advance(10, note="best 3")
        time.sleep(0.5)
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("draw: 0 of 40 images in 0.2 s")
    assert re.fullmatch(
        r"draw: 10 of 40 images in \S+ s \(\S+/s\), about \d s left, best 3", lines[-2]
    )
    assert re.fullmatch(r"draw: 10 of 40 images in 1\.\d s \(\S+/s\)", lines[-1])
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with cluster.Progress(total=40, description="draw", unit="images"):
        time.sleep(0.3)
    assert "'ray status' shows whether it waits for a node" in capfd.readouterr().err


def test_a_joined_cluster_is_asked_for_every_group_and_a_machine_for_what_it_holds(monkeypatch):
    held = int(ray.cluster_resources()["CPU"])
    at_once = functools.partial(cluster.groups_at_once, workers=ONE)
    assert at_once(held + 8, size=1) == held
    assert at_once(8, size=held + 1) == 1
    assert at_once(1, size=1) == 1
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert at_once(8, size=held + 1) == 8


def test_no_more_tasks_run_at_once_than_workers_allow(tmp_path):
    function = functools.partial(note_overlap, folder=str(tmp_path))
    few = Workers(max=2, cpus=0.1)
    running = cluster.map_tasks(function, range(8), workers=few, description="overlap")
    assert max(running) <= 2  # all eight would fit the machine


def test_ctrl_c_ends_the_tasks(tmp_path):
    file = tmp_path / "beat"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background jobs
    with pytest.raises(KeyboardInterrupt):
        beat_until_interrupted(file)
    deadline = time.monotonic() + 60
    last = ""
    while file.read_text() != last and time.monotonic() < deadline:
        last = file.read_text()
        time.sleep(1)
    assert file.read_text() == last


def beat_until_interrupted(file):
    heard = threading.Event()
    threading.Thread(target=interrupt, args=[file, heard], daemon=True).start()
    try:
        cluster.map_tasks(
            functools.partial(beat, file=str(file)), [0], workers=ONE, description="beat"
        )
    finally:
        heard.set()


def interrupt(file, heard):
    while not file.exists():
        time.sleep(0.05)
    while True:
        # Python drops an interrupt that comes while an object is being collected: press again.
        os.kill(os.getpid(), signal.SIGINT)
        if heard.wait(10):
            return


# Training


def train(folder, *, workers=ONE, name="halve", on_report=None, **settings):
    return cluster.train(
        halve,
        settings={"folder": str(folder), **settings},
        name=name,
        storage=str(folder / "storage"),
        workers=workers,
        on_report=on_report,
    )


def test_training_reports_every_epoch_and_resumes_a_finished_run(tmp_path):
    reports = []
    found = train(tmp_path, on_report=reports.append)
    assert found == {"x": FINAL, "first": 0, "workers": 1}
    assert [report["x"] for report in reports] == [1, 1.5, 1.75, 1.875, 1.9375, FINAL]
    again = []
    assert train(tmp_path, on_report=again.append) == {"x": FINAL, "first": 6, "workers": 1}
    assert again == reports


def test_a_group_goes_on_from_its_last_checkpoint_when_a_worker_dies(tmp_path):
    reports = []
    found = train(tmp_path, workers=GROUP, on_report=reports.append, dies_at=(1, 3), seconds=1.0)
    assert found["x"] == FINAL
    assert found["workers"] == 2
    assert found["first"] in (2, 3)
    assert [report["epoch"] for report in reports] == list(range(6))


def test_an_error_of_the_loop_is_raised_at_once_with_its_type(tmp_path):
    with pytest.raises(InputError, match="the loss is not a number") as caught:
        train(tmp_path, fails_at=2)
    assert "in halve" in caught.value.__notes__[0]
    assert (tmp_path / "starts").read_text() == "0:0\n"


def test_reports_of_a_run_in_a_bucket_outlive_their_driver(tmp_path):
    # Straight to the callback: a bucket in memory is one process's own.
    from raybrain.cluster.train import _copy_of_journal, _journal, _messenger

    run = {"storage": f"memory://{tmp_path.name}", "name": "run"}
    for epoch in (1, 2):
        with _journal(**run) as journal:
            messenger = _messenger(journal=journal, copy=_copy_of_journal(**run), in_group=False)
            messenger.after_report(None, [{"epoch": epoch}], None)
            told = [json.loads(line)["epoch"] for line in journal.read_text().splitlines()]
        assert not journal.exists()
    assert told == [1, 2]


# A pool


def draw(units, folder, *, workers=TWO, overlapping=1, **arguments):
    return cluster.draw_units(
        Multiplier,
        units,
        worker_arguments={"folder": str(folder), **arguments},
        workers=workers,
        description="draw",
        overlapping=overlapping,
    )


def test_every_unit_comes_back_once_and_each_worker_loads_once(tmp_path, capfd):
    assert sorted(draw(range(20), tmp_path)) == [(unit, unit * 10) for unit in range(20)]
    assert 1 <= len(list(tmp_path.glob("worker-*"))) <= 2
    assert capfd.readouterr().err.strip().startswith("draw: 20 of 20 images in ")


def test_results_arrive_while_others_are_drawn(tmp_path):
    drawn = draw(range(40), tmp_path, workers=ONE)
    next(drawn)
    assert len(list(tmp_path.glob("done-*"))) < 40
    assert len(list(drawn)) == 39


def test_no_units_need_no_pool(tmp_path):
    assert list(draw([], tmp_path)) == []


def test_a_worker_has_several_units_in_hand_each_in_a_thread_of_as_many_threads_as_cpus():
    found = list(
        cluster.draw_units(
            SideBySide,
            range(12),
            worker_arguments={"together": 3},
            workers=ONE,
            description="side by side",
            overlapping=3,
        )
    )
    units, threads, processes, of_torch = zip(*found, strict=True)
    assert sorted(units) == list(range(12))
    assert (len(set(threads)), len(set(processes)), set(of_torch)) == (3, 1, {1})


def test_only_a_worker_with_a_gpu_has_several_units_in_hand():
    assert cluster.units_in_hand(Workers(cpus=4)) == 1
    assert cluster.units_in_hand(Workers(gpus=0.5)) == 3


def test_one_that_asks_for_it_works_alone_and_others_side_by_side():
    from raybrain.cluster.pool import Turns

    turns, inside, most = Turns(3), [], {}

    def work(number):
        with turns.turn(alone=number < 3):
            inside.append(number)
            time.sleep(0.05)
            most[number] = len(inside)
            inside.remove(number)

    threads = [threading.Thread(target=work, args=[number]) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [most[number] for number in range(3)] == [1, 1, 1]
    assert max(most.values()) == 3


@pytest.mark.parametrize("overlapping", [1, 2])
def test_a_killed_worker_loses_no_unit(tmp_path, overlapping):
    found = sorted(draw(range(20), tmp_path, kills=(3, 11), overlapping=overlapping))
    assert found == [(unit, unit * 10) for unit in range(20)]
    assert len(list(tmp_path.glob("killed-*"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("overlapping", [1, 2])
def test_a_unit_that_kills_every_worker_is_named_after_the_others_are_done(tmp_path, overlapping):
    with pytest.raises(RuntimeError, match="the worker died 4 times on 3") as caught:
        list(draw(range(8), tmp_path, kills=(3,), always=True, overlapping=overlapping))
    assert "1 of 8 units failed" in caught.value.__notes__[-1]
    assert len(list(tmp_path.glob("done-*"))) == 7


@pytest.mark.parametrize("overlapping", [1, 2])
def test_a_unit_that_fails_is_raised_after_the_others_are_done(tmp_path, overlapping):
    drawn: list[tuple[int, int]] = []
    with pytest.raises(ArithmeticError, match="cannot do 3"):
        drawn.extend(draw(range(12), tmp_path, fails=(3,), overlapping=overlapping))
    assert sorted(drawn) == [(unit, unit * 10) for unit in range(12) if unit != 3]


def test_more_failures_than_a_few_end_the_pool(tmp_path):
    with pytest.raises(ArithmeticError, match="cannot do"):
        list(draw(range(200), tmp_path, fails=range(150)))
    assert len(list(tmp_path.glob("done-*"))) < 50


def test_pools_and_tasks_side_by_side_are_each_whole(tmp_path):
    # As in a sweep: several threads of one driver, each with a pool or tasks of its own.
    found = {}

    def step(name, make):
        def keep(workers):
            found[name] = make(workers)

        return cluster.Step(name, keep, ONE)

    steps = [step(f"pool {k}", functools.partial(_drawn, tmp_path / str(k), k)) for k in range(4)]
    steps += [step(f"tasks {k}", functools.partial(_squared, k)) for k in range(4)]
    failures = cluster.run_steps(steps, description="side by side")
    assert set(failures) == {"pool 2"}
    assert "cannot do 3" in str(failures["pool 2"])
    for k in range(4):
        if k != 2:  # one fails, and only that one
            assert found[f"pool {k}"] == [(unit, unit * 10) for unit in range(10)]
        assert found[f"tasks {k}"] == [number * number for number in range(10 * k)]


def _drawn(folder, k, workers):
    folder.mkdir()
    return sorted(draw(range(10), folder, workers=workers, fails=(3,) if k == 2 else ()))


def _squared(k, workers):
    return cluster.map_tasks(square, range(10 * k), workers=workers, description="square")


def test_a_worker_that_cannot_be_made_says_why_at_once(tmp_path):
    with pytest.raises(InputError, match="a factor of 0 makes no sense"):
        list(draw(range(50), tmp_path, factor=0))


# A driver that dies


def run_python(code, **options):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        **options,
    )


def environment():
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}


@contextlib.contextmanager
def driver(code):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.slow
def test_training_goes_on_after_its_driver_was_killed(tmp_path):
    code = f"""
        from pathlib import Path
        from tests.test_cluster import train
        train(
            Path({str(tmp_path)!r}),
            seconds=3,
            on_report=lambda metrics: print(metrics["epoch"], flush=True),
        )
    """
    with driver(code) as process:
        assert process.stdout.readline().strip() == "0"
        process.send_signal(signal.SIGKILL)
    reports = []
    found = train(tmp_path, on_report=reports.append)
    assert found["x"] == FINAL
    # Ray ends the workers seconds after their driver, so another report may have been registered.
    assert 0 < found["first"] < 6
    assert [report["x"] for report in reports] == [1, 1.5, 1.75, 1.875, 1.9375, FINAL]


@pytest.mark.slow
def test_a_killed_driver_takes_its_workers_along_and_its_folder_goes_next_time(tmp_path):
    from raybrain.cluster import session

    code = f"""
        from pathlib import Path
        from tests.test_cluster import draw
        for unit, _ in draw(range(200), Path({str(tmp_path)!r})):
            print(unit, flush=True)
    """
    with driver(code) as process:
        process.stdout.readline()
        workers = [int(mark.name.partition("-")[2]) for mark in tmp_path.glob("worker-*")]
        process.send_signal(signal.SIGKILL)
    assert workers
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    done = {int(mark.name.partition("-")[2]) for mark in tmp_path.glob("done-*")}
    assert 0 < len(done) < 200
    session._remove_abandoned(Path("/tmp"))
    open_sessions = list(Path("/tmp").glob(f"rb*/{session.LOCK}"))
    assert open_sessions  # the one of these tests, and of whoever else works here


def test_sigterm_ends_the_process_through_its_open_blocks():
    code = """
        import time
        from raybrain import cluster
        with cluster.connect():
            try:
                print("ready", flush=True)
                time.sleep(600)
            except SystemExit as leaving:
                print("leaving with", leaving.code, flush=True)
                raise
    """
    with driver(code) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 143
        assert process.stdout.readline() == "leaving with 143\n"
