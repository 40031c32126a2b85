"""What is recorded arrives once and in order, whatever happens to MLflow or to the process."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from raybrain import tracking
from raybrain.config import Tracking
from raybrain.tracking import outbox
from raybrain.tracking.redaction import redacted
from raybrain.tracking.runs import Tracker
from tests.test_tracking import in_another_process, make_experiment

EPOCHS = 40


class Failing:
    """A client that fails when told to: before the request, or after it was carried out."""

    def __init__(self, client):
        self._client, self.down, self.answer_lost, self.calls = client, False, False, 0

    def __getattr__(self, name):
        method = getattr(self._client, name)
        if not callable(method):
            return method

        def call(*arguments, **named):
            self.calls += 1
            if self.down:
                raise ConnectionError("nobody answers")
            found = method(*arguments, **named)
            if self.answer_lost:
                self.answer_lost = False
                raise ConnectionError("the answer was lost")
            return found

        return call


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return tracking.open_tracker(Tracking(), workspace=str(tmp_path_factory.mktemp("outbox")))


@pytest.fixture
def failing(database, tmp_path, monkeypatch):
    monkeypatch.setattr(outbox, "GATHERED", 0.01)
    monkeypatch.setattr(outbox, "LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(outbox, "PATIENCE", 1.0)
    client = Failing(database.client)
    tracker = Tracker(
        client, uri=database.uri, artifacts=database.artifacts, spool=tmp_path / "waiting"
    )
    yield tracker, client
    client.down = False
    tracker.close()


def curve(client, run, name="loss"):
    return [(one.step, one.value) for one in client.get_metric_history(run.run_id, name)]


def test_every_metric_is_there_once_though_the_server_was_away(failing, tmp_path, capsys):
    tracker, client = failing
    with tracker.stage(
        tracker.experiment_run(make_experiment("away")), "train", settings={}
    ) as run:
        for epoch in range(EPOCHS):
            client.down = 10 <= epoch < 30
            client.answer_lost = epoch % 7 == 3
            run.log_metrics({"loss": 1 / (epoch + 1), "r2": float("nan")}, step=epoch)
            run.set_tags({"epoch": epoch})
            time.sleep(0.03)
        assert any((tmp_path / "waiting").iterdir())
        client.down = False
    assert curve(tracker.client, run) == [(k, 1 / (k + 1)) for k in range(EPOCHS)]
    found = tracker.client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.tags["epoch"] == str(EPOCHS - 1)
    assert len(tracker.client.get_metric_history(run.run_id, "r2")) == EPOCHS
    tracker.close()
    assert not (tmp_path / "waiting").exists()
    said = capsys.readouterr().err
    assert said.count("does not answer") == 1
    assert said.count("answers again") == 1


def test_a_run_that_was_made_without_an_answer_is_not_made_twice(failing):
    tracker, client = failing
    parent = tracker.experiment_run(make_experiment("lost"))
    assert parent.run_id
    client.answer_lost = True
    with tracker.stage(parent, "predict", settings={}) as run:
        assert run.run_id
    where = f"tags.`mlflow.parentRunId` = '{parent.run_id}'"
    assert len(tracker.client.search_runs([parent.mlflow_experiment], where)) == 1


def test_what_the_server_refuses_is_told_and_the_rest_arrives(failing):
    tracker, _ = failing
    parent = tracker.experiment_run(make_experiment("refused"))
    with tracker.stage(parent, "train", settings={}) as run:
        run.log_metrics({"loss": 1.0}, step=0)
        run.log_metrics({"not : allowed ?": 1.0}, step=0)
        run.log_metrics({"loss": 0.5}, step=1)
    assert curve(tracker.client, run) == [(0, 1.0), (1, 0.5)]
    with pytest.warns(UserWarning, match="refused a record: batch"):
        tracker.close()


def test_what_waits_when_the_command_ends_is_sent_by_the_next_one(
    failing, database, tmp_path, capsys
):
    tracker, client = failing
    parent = tracker.experiment_run(make_experiment("later"))
    assert parent.run_id
    client.down = True
    with tracker.stage(parent, "train", settings={"training.lr": 0.1}) as run:
        run.log_metrics({"loss": 0.25}, step=3)
        run.log_text("kept", "note.txt")
    tracker.close()
    assert "records wait in" in capsys.readouterr().err
    # As when the process ends: nobody holds the folder any more.
    for journal in (tracker._outbox._journal,):
        journal.close()
    tracker._outbox._waiting.clear()
    tracker._outbox._journal = None
    after = Tracker(
        database.client, uri=database.uri, artifacts=database.artifacts, spool=tmp_path / "waiting"
    )
    where = f"tags.`mlflow.parentRunId` = '{parent.run_id}'"
    (found,) = after.client.search_runs([parent.mlflow_experiment], where)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"training.lr": "0.1"}
    assert found.data.metrics == {"loss": 0.25}
    assert [one.path for one in after.client.list_artifacts(found.info.run_id)] == ["note.txt"]
    assert not (tmp_path / "waiting").exists() or not list((tmp_path / "waiting").iterdir())
    client.down = False


def test_a_killed_process_loses_nothing(tmp_path):
    code = """
        with tracker.stage(parent, "train", settings={}) as run:
            print(run.run_id, flush=True)
            tracker._outbox._sender.send = lambda records, *_, **__: 0  # nobody answers any more
            for epoch in range(20):
                run.log_metrics({"loss": float(epoch)}, step=epoch)
            print("recorded", flush=True)
            time.sleep(600)
    """
    process = in_another_process(code, workspace=str(tmp_path))
    try:
        run_id = process.stdout.readline().strip()
        assert process.stdout.readline().strip() == "recorded"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    tracker = tracking.open_tracker(Tracking(), workspace=str(tmp_path))
    history = tracker.client.get_metric_history(run_id, "loss")
    assert [one.step for one in history] == list(range(20))


SECRETS = {
    "RAYBRAIN_TEST_TOKEN": "hunter2-token",
    "PGPASSWORD": "hunter3-password",
    "AWS_SECRET_ACCESS_KEY": "hunter4/secret+key",
    "MLFLOW_TRACKING_PASSWORD": "hunter5-password",
}


def test_no_secret_reaches_what_is_recorded(tmp_path, monkeypatch, capsys):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    uri = "postgresql://lab:hunter6@db.example/runs and https://hunter7@mlflow.example/?sig=1"
    uri += " and https://bucket.example/a?X-Amz-Signature=hunter8&b=1"
    everything = " ".join([*SECRETS.values(), uri, "Authorization: Bearer hunter9hunter9"])
    tracker = tracking.open_tracker(Tracking(), workspace=str(tmp_path))
    parent = tracker.experiment_run(make_experiment("secrets"))
    with (
        contextlib.suppress(RuntimeError),
        tracker.stage(parent, "train", settings={"generator.checkpoint": everything}) as run,
    ):
        run.set_tags({"output": everything})
        run.describe(everything)
        run.log_text(everything, "note.txt")
        run.log_table({"what": [everything]}, "table.json")
        raise RuntimeError(f"could not reach {everything}")
    tracker.close()
    assert tracker.client.get_run(run.run_id).info.status == "FAILED"
    files = [one for one in tmp_path.rglob("*") if one.is_file()]
    assert any(one.name == "traceback.txt" for one in files)
    for file in files:
        assert b"hunter" not in file.read_bytes(), file
    captured = capsys.readouterr()
    assert "hunter" not in captured.out + captured.err


def test_what_is_no_secret_stays():
    kept = "postgresql://lab@10.0.0.1/runs?sslmode=require s3://bucket/key https://a.example/x?y=1"
    assert redacted(kept) == kept


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def served_pages(uri, port, *words):
    """Keep MLflow's server running inside the block; yield its address."""
    command = [
        str(Path(sys.executable).with_name("mlflow")), "server", "--workers", "1",
        "--backend-store-uri", uri, "--port", str(port), *words,
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 240
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # as a machine that goes away
        process.wait()


@pytest.mark.slow
def test_a_server_that_is_stopped_and_started_midway_has_every_metric_once(tmp_path):
    again = (f"sqlite:///{tmp_path}/served.db", free_port())
    place = ("--artifacts-destination", f"{tmp_path}/artifacts")
    with served_pages(*again, *place) as address:
        settings = Tracking(uri=address)
        tracker = tracking.open_tracker(settings, workspace=str(tmp_path / "workspace"))
        parent = tracker.experiment_run(make_experiment("served"), running=True)
        ended = threading.Event()
        logged = []

        def train():
            with tracker.stage(parent, "train", settings={"training.lr": 0.1}) as run:
                while not ended.is_set() or len(logged) < 100:
                    run.log_metrics({"loss": 1 / (len(logged) + 1)}, step=len(logged))
                    logged.append(run)
                    time.sleep(0.01)
                run.log_text("kept", "note.txt")

        thread = threading.Thread(target=train)
        thread.start()
        while len(logged) < 50:
            time.sleep(0.01)
    while len(logged) < 100:  # while nobody answers
        time.sleep(0.01)
    with served_pages(*again, *place):
        ended.set()
        thread.join()
        parent.end("FINISHED")
        deadline = time.monotonic() + 60
        while not tracker._outbox.flush() and time.monotonic() < deadline:
            time.sleep(0.1)
        run = logged[0]
        history = tracker.client.get_metric_history(run.run_id, "loss")
        assert [one.step for one in history] == list(range(len(logged)))
        found = tracker.client.get_run(run.run_id)
        assert found.info.status == "FINISHED"
        assert found.data.tags["mlflow.parentRunId"] == parent.run_id
        assert [one.path for one in tracker.client.list_artifacts(run.run_id)] == ["note.txt"]
        assert tracker.client.get_run(parent.run_id).info.status == "FINISHED"
        tracker.close()
