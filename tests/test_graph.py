"""Work that depends on other work: order, room, failures, and how well two slots are used."""

import contextlib
import threading
import time

import pytest

from raybrain import cluster
from raybrain.cluster import graph
from raybrain.cluster.graph import Room, Step, width_of
from raybrain.config import Workers


@pytest.fixture
def room(monkeypatch):
    """Return what sets the room that steps find, with no Ray behind it."""
    monkeypatch.setattr(graph, "connect", contextlib.nullcontext)

    def room(cpus=2.0, gpus=0.0, *, own=True):
        monkeypatch.setattr(graph, "_room", lambda **_: Room(cpus, gpus))
        monkeypatch.setattr(graph, "starts_its_own", lambda: own)

    room()
    return room


class Work:
    """Counts what is under way, and can be told to take time or to fail."""

    def __init__(self):
        self.lock = threading.Lock()
        self.begun, self.ended, self.granted = [], [], {}
        self.cpus = self.most = 0.0

    def step(self, key, *after, seconds=0.0, error=None, workers=None, **options):
        def make(granted):
            with self.lock:
                self.begun.append(key)
                self.granted[key] = granted
                self.cpus += granted.max * granted.cpus
                self.most = max(self.most, self.cpus)
            time.sleep(seconds)
            with self.lock:
                self.cpus -= granted.max * granted.cpus
                self.ended.append(key)
            if error is not None:
                raise error

        return Step(key, make, workers or Workers(), frozenset(after), **options)


def test_nothing_begins_before_what_it_needs_has_ended(room):
    work = Work()
    seen = []

    def noted(key, *after):
        step = work.step(key, *after, seconds=0.01)

        def make(granted):
            seen.append((key, set(work.ended)))
            step.make(granted)

        return Step(key, make, step.workers, step.after)

    steps = [noted("d", "b", "c"), noted("b", "a"), noted("c", "a"), noted("a", "there already")]
    assert cluster.run_steps(steps, description="try") == {}
    assert sorted(work.ended) == ["a", "b", "c", "d"]
    for key, ended in seen:
        (step,) = (one for one in steps if one.key == key)
        assert step.after - {"there already"} <= ended


def test_a_failure_holds_up_what_needs_it_and_nothing_else(room):
    work, told = Work(), []
    fault = OSError("a disk is gone")
    steps = [
        work.step("a", error=fault), work.step("b", "a"), work.step("c", "b"),
        work.step("x"), work.step("y", "x"), work.step("z", "y", "c"),
    ]  # fmt: skip
    failures = cluster.run_steps(
        steps, description="try", on_change=lambda key, state, error: told.append((key, state))
    )
    assert failures == {"a": fault}
    assert sorted(work.ended) == ["a", "x", "y"]
    assert {key for key, state in told if state == "blocked"} == {"b", "c", "z"}
    assert {key for key, state in told if state == "done"} == {"x", "y"}
    assert [key for key, state in told if state == "failed"] == ["a"]


def test_steps_that_need_each_other_are_refused(room):
    work = Work()
    with pytest.raises(ValueError, match="need each other: "):
        cluster.run_steps([work.step("a", "b"), work.step("b", "a")], description="try")
    assert work.begun == []


def test_no_more_is_under_way_than_there_is_room_for(room):
    room(cpus=3.0)
    work = Work()
    wide = Workers(min=1, max=8)
    steps = [work.step(str(k), seconds=0.02, workers=wide) for k in range(9)]
    cluster.run_steps(steps, description="try")
    assert work.most == 3.0
    assert len(work.ended) == 9


def test_gpu_work_and_cpu_work_overlap(room):
    room(cpus=4.0, gpus=1.0)
    work = Work()
    drawing = Workers(min=1, max=1, cpus=1, gpus=1)
    both = threading.Barrier(2, timeout=20)  # broken unless the two are under way together

    def meeting(key, workers):
        step = work.step(key, workers=workers)

        def make(granted):
            both.wait()
            step.make(granted)

        return Step(key, make, workers)

    steps = [
        meeting("draw", drawing),
        work.step("draw too", workers=drawing),
        meeting("fit", Workers()),
    ]
    assert cluster.run_steps(steps, description="try") == {}
    assert len(work.ended) == 3


def test_what_asks_for_more_than_there_is_runs_alone(room):
    work = Work()
    greedy = Workers(min=4, max=4)
    steps = [work.step("a", workers=greedy), work.step("b"), work.step("c", workers=greedy)]
    cluster.run_steps(steps, description="try")
    assert sorted(work.ended) == ["a", "b", "c"]
    assert work.granted["a"].max == 4


def test_threads_are_those_of_the_settings_however_small_the_machine(room):
    work = Work()
    cluster.run_steps([work.step("a", workers=Workers(max=3, cpus=8))], description="try")
    assert (work.granted["a"].cpus, work.granted["a"].max) == (8, 1)


def test_a_joined_cluster_is_asked_for_all_that_a_step_can_use(room):
    room(cpus=16.0, own=False)
    work = Work()
    cluster.run_steps([work.step("a", workers=Workers(min=1, max=8))], description="try")
    assert work.granted["a"].max == 8
    room(cpus=0.0, own=False)
    steps = [work.step(f"b{k}", workers=Workers(cpus=4)) for k in range(20)]
    cluster.run_steps(steps, description="try")  # a cluster that has no node yet
    assert len(work.ended) == 21
    assert work.most <= max(8.0, graph.LEAST_AHEAD * 4)


def test_the_first_goes_first_then_the_longest_chain(room):
    room(cpus=1.0)
    work = Work()
    steps = [
        work.step("short"), work.step("long"), work.step("longer", "long"),
        work.step("longest", "longer"), work.step("wanted first", first=True),
    ]  # fmt: skip
    cluster.run_steps(steps, description="try")
    assert work.begun[:2] == ["wanted first", "long"]


def test_work_in_the_drivers_own_process_is_limited_by_its_machine(room, monkeypatch):
    room(cpus=64.0)
    monkeypatch.setattr(graph, "_at_once_in_driver", lambda: 2)
    work = Work()
    steps = [work.step(str(k), seconds=0.02, in_driver=True) for k in range(8)]
    cluster.run_steps(steps, description="try")
    assert work.most == 2.0


@pytest.mark.parametrize(
    ("workers", "free", "sharing", "count"),
    [
        ({"min": 1, "max": 8}, (8, 0), 1, 8),
        ({"min": 1, "max": 8}, (8, 0), 4, 2),
        ({"min": 1, "max": 8}, (8, 0), 100, 1),
        ({"min": 3, "max": 8}, (8, 0), 100, 3),
        ({"min": 3, "max": 8}, (2, 0), 1, 0),
        ({"min": 1, "max": 8, "cpus": 4}, (8, 0), 1, 2),
        ({"min": 1, "max": 8, "cpus": 1, "gpus": 1}, (8, 3), 1, 3),
        ({"min": 1, "max": 8, "cpus": 1, "gpus": 0.5}, (2, 3), 1, 2),
        ({"min": 1, "max": 1}, (-3, 0), 1, 0),
    ],
)
def test_what_is_free_is_shared_fairly(workers, free, sharing, count):
    assert width_of(Workers(**workers), free=Room(*free), sharing=sharing) == count


def test_twenty_four_runs_keep_two_slots_busy(room):
    work = Work()
    rng_seconds = [0.05 + 0.013 * (k * 7 % 5) for k in range(24)]
    steps = []
    for k, seconds in enumerate(rng_seconds):
        steps += [
            work.step(f"fit {k}", seconds=seconds),
            work.step(f"draw {k}", f"fit {k}", seconds=seconds, workers=Workers(max=2)),
            work.step(f"score {k}", f"draw {k}", seconds=seconds / 2),
        ]
    started = time.monotonic()
    cluster.run_steps(steps, description="try")
    # Sleep costs no processor, so this is what the scheduling alone adds.
    assert time.monotonic() - started <= 1.15 * sum(2.5 * one for one in rng_seconds) / 2 + 0.5


def test_parts_of_a_whole_show_no_progress_of_their_own(room, capsys):
    from raybrain.cluster import Progress

    def make(_):
        with Progress(total=1, description="a part", unit="tasks") as progress:
            progress.advance()

    cluster.run_steps([Step("one", make, Workers())], description="the whole")
    said = capsys.readouterr().err
    assert "the whole: 1 of 1 units" in said
    assert "a part" not in said
