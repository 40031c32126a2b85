"""What recording costs the work that is recorded: at 100 metrics a second, and for each stage."""

import statistics
import time

import numpy as np
import pytest

from raybrain import tracking
from raybrain.config import Tracking
from tests.test_tracking import make_experiment

pytestmark = pytest.mark.benchmark

SECONDS = 4.0
ROUNDS = 5
PER_REPORT = 10
REPORTS_PER_SECOND = 10
MOST_SHARE = 0.02
MOST_STAGE_SECONDS = 1.0


@pytest.fixture
def tracker(tmp_path):
    return tracking.open_tracker(Tracking(), workspace=str(tmp_path))


def _epoch(steps, *, report=None):
    """Return the seconds of so many steps; report now and then, as a training loop does."""
    weights = np.random.default_rng(0).normal(size=(400, 400))
    started, due = time.perf_counter(), 0.0
    for step in range(steps):
        weights = np.tanh(weights @ weights.T / 400)
        now = time.perf_counter() - started
        if report is not None and now >= due:
            due += 1 / REPORTS_PER_SECOND
            report(step)
    return time.perf_counter() - started


def test_an_epoch_at_a_hundred_metrics_a_second_is_hardly_longer(tracker):
    once = _epoch(50) / 50
    steps = int(SECONDS / once)
    with tracker.stage(
        tracker.experiment_run(make_experiment("costs")), "train", settings={}
    ) as run:

        def report(step):
            run.log_metrics({f"metric_{k}": float(step) for k in range(PER_REPORT)}, step=step)

        pairs = [(_epoch(steps), _epoch(steps, report=report)) for _ in range(ROUNDS)]
    share = statistics.median(logged / plain - 1 for plain, logged in pairs)
    print(f"recording takes {share:.2%} of an epoch")
    assert share <= MOST_SHARE


def test_a_stage_pays_less_than_a_second(tracker, tmp_path):
    parent = tracker.experiment_run(make_experiment("stages"), running=True)
    assert parent.run_id
    (tmp_path / "report.html").write_bytes(b"x" * 5_000_000)
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        with tracker.stage(parent, "evaluate", settings={f"a.{k}": k for k in range(100)}) as run:
            run.log_metrics({f"metric_{k}": 0.5 for k in range(30)})
            run.log_artifact(tmp_path / "report.html")
        seconds.append(time.perf_counter() - started)
    started = time.perf_counter()
    tracker.close()
    sent = (time.perf_counter() - started) / ROUNDS
    print(f"a stage pays {statistics.median(seconds):.3f} s, its sending {sent:.3f} s")
    assert statistics.median(seconds) + sent <= MOST_STAGE_SECONDS
