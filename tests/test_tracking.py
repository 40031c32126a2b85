import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from raybrain import cli, config, tracking
from raybrain.api import running
from raybrain.config import Experiment, InputError, Tracking
from raybrain.shipped import DEMO
from raybrain.tracking import runs
from raybrain.tracking.address import ARTIFACTS, DATABASE
from raybrain.tracking.provenance import provenance

SETTINGS = Tracking()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return str(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def tracker(workspace):
    return tracking.open_tracker(SETTINGS, workspace=workspace)


@pytest.fixture
def experiment():
    return make_experiment("study")


def make_experiment(name, *, subject="subj01", dataset="simulated"):
    decode = {"latents": {"rois": ["V1"]}, "prompt_embeds": {"rois": ["V1"]}}
    return config.Experiment(name=name, dataset=dataset, subject=subject, decode=decode)


def in_another_process(code, *, workspace):
    """Start Python with an open tracker, parent and stage run named ``train``."""
    program = f"""
        import os, signal, sys, time
        from raybrain import cluster, config, tracking
        workspace = {workspace!r}
        tracker = tracking.open_tracker(config.Tracking(), workspace=workspace)
        decode = {{"latents": {{"rois": ["V1"]}}, "prompt_embeds": {{"rois": ["V1"]}}}}
        experiment = config.Experiment(
            name="study", dataset="simulated", subject="subj01", decode=decode
        )
        parent = tracker.experiment_run(experiment)
    """
    root = Path(tracking.__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program) + textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )


def test_database_and_artifacts_lie_in_the_workspace_wherever_python_runs(
    workspace, experiment, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    tracker = tracking.open_tracker(SETTINGS, workspace=workspace)
    with tracker.stage(tracker.experiment_run(experiment), "evaluate", settings={}) as run:
        run.log_text("seen", "notes/a.txt")
    tracker.close()
    assert list(tmp_path.iterdir()) == []
    assert Path(workspace, DATABASE).is_file()
    (kept,) = Path(workspace, ARTIFACTS).rglob("notes/a.txt")
    assert kept.read_text() == "seen"


def test_an_experiment_finds_its_parent_again_and_others_do_not(tracker, experiment):
    parent = tracker.experiment_run(experiment)
    assert tracker.experiment_run(experiment).run_id == parent.run_id
    other_subject = tracker.experiment_run(make_experiment("study", subject="subj02"))
    other_name = tracker.experiment_run(make_experiment("study2"))
    assert len({parent.run_id, other_subject.run_id, other_name.run_id}) == 3
    assert tracker.experiment_run(make_experiment("study2")).run_id == other_name.run_id


def test_each_dataset_is_one_mlflow_experiment(tracker):
    runs = [
        tracker.experiment_run(make_experiment("a", dataset=dataset))
        for dataset in ("nsd", "catalogs/nsd.yaml", "haxby")
    ]
    names = [tracker.client.get_experiment(run.mlflow_experiment).name for run in runs]
    assert names == ["nsd", "nsd", "haxby"]


def test_a_stage_records_settings_metrics_files_and_tags(tracker, experiment, tmp_path):
    parent = tracker.experiment_run(experiment)
    settings = config.flatten(experiment) | {"long": "x" * 10_000}
    (tmp_path / "figure.svg").write_text("<svg/>")
    with tracker.stage(parent, "train", settings=settings, title="train latents") as run:
        for step in range(3):
            run.log_metrics({"loss": 1 / (step + 1), "r2": float("nan")}, step=step)
        run.log_metrics({f"voxel/{number}": number for number in range(1500)})
        run.log_artifact(tmp_path / "figure.svg", "figures")
        run.log_artifact(tmp_path, "all")
        run.set_tags({"seal": "abc", "count": 3})
    found = tracker.client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "train latents"
    assert found.data.tags[runs.PARENT] == parent.run_id
    assert found.data.tags["count"] == "3"
    assert found.data.params["training.lr"] == "0.0003"
    assert found.data.params["decode.latents.rois"] == "[V1]"
    assert found.data.params["generator.configs"] == "null"  # as it is typed
    assert len(found.data.params["long"]) == 6000
    assert len(found.data.params) == len(settings)
    history = tracker.client.get_metric_history(run.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert found.data.metrics["voxel/1499"] == 1499
    files = {entry.path for entry in tracker.client.list_artifacts(run.run_id, "figures")}
    assert files == {"figures/figure.svg"}


def test_an_error_closes_the_run_as_failed_and_says_why(tracker, experiment):
    parent = tracker.experiment_run(experiment)
    with (
        pytest.raises(ZeroDivisionError),
        tracker.stage(parent, "features", settings={}) as run,
    ):
        1 / 0  # noqa: B018
    found = tracker.client.get_run(run.run_id)
    assert found.info.status == "FAILED"
    assert found.data.tags[runs.ERROR] == "ZeroDivisionError: division by zero"
    (entry,) = tracker.client.list_artifacts(run.run_id)
    assert entry.path == "traceback.txt"


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_closes_the_run_as_killed(tracker, experiment, interruption):
    parent = tracker.experiment_run(experiment)
    with (
        pytest.raises(interruption),
        tracker.stage(parent, "features", settings={}) as run,
    ):
        raise interruption
    assert tracker.client.get_run(run.run_id).info.status == "KILLED"


def test_a_run_whose_process_died_is_closed_and_one_that_lives_is_not(
    tracker, experiment, workspace
):
    parent = tracker.experiment_run(experiment)
    opens_a_stage = """
        with tracker.stage(parent, "ingest", settings={}) as run:
            print(run.run_id, flush=True)
            time.sleep(600)
    """
    process = in_another_process(opens_a_stage, workspace=workspace)
    try:
        left_open = process.stdout.readline().strip()
        with tracker.stage(parent, "ingest", settings={}):
            assert tracker.client.get_run(left_open).info.status == "RUNNING"
        process.send_signal(signal.SIGKILL)
        process.wait()
        with tracker.stage(parent, "ingest", settings={}) as mine:
            assert tracker.client.get_run(left_open).info.status == "KILLED"
            with tracker.stage(parent, "ingest", settings={}):
                assert tracker.client.get_run(mine.run_id).info.status == "RUNNING"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def working(workspace, name="study", **changes):
    decode = {"latents": {"rois": ["V1"]}, "prompt_embeds": {"rois": ["V1"]}}
    return config.Experiment(
        name=name,
        dataset="simulated",
        subject="subj01",
        decode=decode,
        workspace=workspace,
        **changes,
    )


def parent_of(tracker, experiment):
    return tracker.client.get_run(tracker.page_of(experiment).rpartition("/")[2].partition("?")[0])


def test_the_run_of_an_experiment_is_what_happens_to_it(tracker, workspace):
    experiment = working(workspace, "happens")
    seen = []
    with contextlib.suppress(ZeroDivisionError), tracking.working(experiment) as outer:
        with tracking.working(experiment) as work:
            assert work is outer
            assert tracker.page_of(experiment) is None  # nothing to do, nothing recorded
            work.begin()
            seen.append(parent_of(tracker, experiment).info.status)
            time.sleep(0.2)
        seen.append(parent_of(tracker, experiment).info.status)  # between two stages
        1 / 0  # noqa: B018
    failed = parent_of(tracker, experiment)
    assert seen == ["RUNNING", "RUNNING"]
    assert failed.info.status == "FAILED"
    assert failed.data.tags[runs.ERROR] == "ZeroDivisionError: division by zero"
    first = failed.data.metrics["seconds"]
    time.sleep(1.5)
    with tracking.working(experiment, describe=lambda status, run: f"{status} {run}") as work:
        work.begin()
        seen.append(parent_of(tracker, experiment).data.tags["mlflow.note.content"])
        time.sleep(0.2)
    again = parent_of(tracker, experiment)
    assert again.info.run_id == failed.info.run_id
    assert seen[-1] == f"RUNNING {again.info.run_id}"
    assert again.info.status == "FINISHED"
    assert runs.ERROR not in again.data.tags
    assert again.info.start_time == failed.info.start_time
    elapsed = (again.info.end_time - again.info.start_time) / 1000
    assert first + 0.2 <= again.data.metrics["seconds"] <= elapsed - 1.4  # the pause is no work
    with contextlib.suppress(KeyboardInterrupt), tracking.working(experiment) as work:
        work.begin()
        raise KeyboardInterrupt
    assert parent_of(tracker, experiment).info.status == "KILLED"


def test_another_setting_is_another_run_and_where_it_works_is_not(tracker, workspace):
    first = tracker.experiment_run(working(workspace, "settings"))
    same = working(workspace, "settings", resources={"tasks": {"max": 7}}, on_change="replace")
    assert tracker.experiment_run(same).run_id == first.run_id
    other = working(workspace, "settings", seed=1)
    assert tracker.experiment_run(other).run_id != first.run_id


def test_a_champion_is_dethroned_by_a_better_score_alone(tracker, experiment, tmp_path):
    (tmp_path / "decoder.safetensors").write_bytes(b"weights")
    held = []
    for score in (0.2, 0.1, float("nan"), 0.2, 0.3):
        with tracker.stage(tracker.experiment_run(experiment), "train", settings={}) as run:
            tracking.register_decoder(
                run,
                tmp_path,
                name="simulated-subj01-latents",
                example=np.zeros((2, 3), np.float32),
                dimensions=4,
                tags={"seal": "abc"},
                params={"decode.latents.rois": "[V1]"},
                score=score,
                about="about",
                card="the card",
            )
        champion = tracker.client.get_model_version_by_alias("simulated-subj01-latents", "champion")
        held.append(int(champion.version))
    assert held == [1, 1, 1, 1, 5]
    assert champion.description == "the card"
    assert champion.run_id == run.run_id
    assert tracker.client.get_registered_model("simulated-subj01-latents").description == "about"
    found = tracker.client.get_run(run.run_id)
    assert found.data.tags["model"] == "models:/simulated-subj01-latents/5"
    (linked,) = found.outputs.model_outputs
    model = tracker.client.get_logged_model(linked.model_id)
    assert [(one.key, one.value) for one in model.metrics] == [("held_out_r2", 0.3)]


@dataclass(frozen=True)
class Candidate:
    number: int = 3
    settings: dict = field(default_factory=dict)
    seed: int = 7


@dataclass(frozen=True)
class Outcome:
    state: str = "complete"
    values: tuple[float, ...] = (0.25,)
    epochs: int = 2
    seconds: float = 1.5
    error: str = ""


@dataclass(frozen=True)
class Event:
    candidate: Candidate
    metrics: dict | None = None
    outcome: Outcome | None = None


def test_a_candidate_has_one_run_whoever_drove_the_search(tracker, experiment):
    candidate = Candidate(settings={"training.lr": 0.01})
    with tracker.stage(tracker.experiment_run(experiment), "tune", settings={}) as parent:
        for epochs, outcome in (([1, 2], None), ([2, 3], Outcome(epochs=3))):  # restarted after 2
            log = tracking.StudyLog(
                tracker, parent=parent, study="study", objectives=["validation_loss"]
            )
            log.record([Event(candidate)])
            points = [Event(candidate, {"epoch": k, "validation_loss": 1 / k}) for k in epochs]
            log.record([*points, *([Event(candidate, outcome=outcome)] if outcome else [])])
            # Of the same value in the same millisecond MLflow keeps one.
            time.sleep(0.01)
    where = f"tags.`{runs.PARENT}` = '{parent.run_id}'"
    (found,) = tracker.client.search_runs([parent.mlflow_experiment], where)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"training.lr": "0.01", "seed": "7"}
    assert found.data.metrics["objective/validation_loss"] == 0.25
    assert found.data.metrics["epochs"] == 3
    assert found.data.tags[runs.CANDIDATE] == "3"
    history = tracker.client.get_metric_history(found.info.run_id, "validation_loss")
    assert [(point.step, point.value) for point in history] == [
        (1, 1.0),
        (2, 0.5),
        (2, 0.5),
        (3, 1 / 3),
    ]


def test_a_candidate_that_failed_says_why(tracker, experiment):
    with tracker.stage(tracker.experiment_run(experiment), "tune", settings={}) as parent:
        log = tracking.StudyLog(tracker, parent=parent, study="failing", objectives=["loss"])
        error = "Traceback\nValueError: no trials"
        candidate = Candidate(number=0, settings={})
        log.record([Event(candidate), Event(candidate, outcome=Outcome("failed", (), error=error))])
    where = f"tags.`{runs.PARENT}` = '{parent.run_id}'"
    (found,) = tracker.client.search_runs([parent.mlflow_experiment], where)
    assert found.info.status == "FAILED"
    assert found.data.tags[runs.ERROR] == "ValueError: no trials"


def test_a_database_is_whole_or_not_there(tmp_path):
    # Killed while it makes the tables, MLflow alone would leave a file it refuses to open again.
    process = in_another_process("", workspace=str(tmp_path))
    try:
        while process.poll() is None and not list(tmp_path.glob(".mlflow.db-*/made.db")):
            time.sleep(0.01)
        process.kill()
    finally:
        process.wait()
        process.stdout.close()
    assert not (tmp_path / DATABASE).exists()
    tracking.open_tracker(SETTINGS, workspace=str(tmp_path))
    with sqlite3.connect(tmp_path / DATABASE) as database:
        (check,) = database.execute("pragma integrity_check").fetchone()
    database.close()
    assert check == "ok"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("runs", "write http://server:5000 or sqlite:///"),
        ("http://127.0.0.1:9", "no MLflow answers at http://127.0.0.1:9"),
    ],
)
def test_an_address_where_nothing_is_takes_one_sentence(uri, message, tmp_path):
    with pytest.raises(InputError, match=message):
        tracking.open_tracker(Tracking(uri=uri), workspace=str(tmp_path))


def test_a_workspace_on_object_storage_needs_a_server():
    with pytest.raises(InputError, match=r"tracking\.uri=http"):
        tracking.open_tracker(SETTINGS, workspace="s3://bucket/workspace")


def test_an_upgrade_keeps_the_database_as_it_was(workspace, tracker):
    before = len(tracker.client.search_experiments())
    told = tracking.upgrade(SETTINGS, workspace=workspace)
    (copy,) = Path(workspace).glob(f"{DATABASE}.2*")
    assert str(copy) in told
    with sqlite3.connect(copy) as kept:
        (experiments,) = kept.execute("select count(*) from experiments").fetchone()
    kept.close()
    assert experiments == before
    server = Tracking(uri="https://mlflow.lab.example")
    with pytest.raises(InputError, match="kept by a server"):
        tracking.upgrade(server, workspace=workspace)
    with pytest.raises(InputError, match="no runs"):
        tracking.upgrade(SETTINGS, workspace=f"{workspace}/elsewhere")


def test_the_page_of_a_run_is_looked_up_once(tmp_path, monkeypatch):
    from raybrain.stages import browsing

    looked = []
    monkeypatch.setattr(browsing, "_page", lambda _: looked.append(1) or f"/#/runs/{len(looked)}")
    demo = Experiment.load(DEMO, f"workspace={tmp_path}")
    assert [browsing.where(demo).rpartition("/")[2] for _ in range(3)] == ["1", "1", "1"]
    elsewhere = demo.with_(f"tracking.uri=sqlite:///{tmp_path}/other.db")
    assert browsing.where(elsewhere).endswith("/2")
    assert browsing.where(demo.with_("reconstruct.guidance=3")).endswith("/3")
    (tmp_path / "runs" / "demo" / browsing.PAGE).write_text("{")
    assert browsing.where(demo).endswith("/4")


def test_where_to_look_is_the_page_of_the_run(tmp_path):
    path = f"/#/experiments/3/runs/{'a' * 32}?workflowType=machine_learning"
    page = tracking.page_of("3", "a" * 32)
    told = tracking.where_to_look(SETTINGS, workspace=str(tmp_path), page=page)
    command, _, address = told.partition(", then ")
    assert command.endswith(f"ui --workers 1 --backend-store-uri sqlite:///{tmp_path}/mlflow.db")
    assert address == f"http://127.0.0.1:5000{path}"
    server = Tracking(uri="https://mlflow.lab.example/")
    told = tracking.where_to_look(server, workspace=str(tmp_path), page=page)
    assert told == f"https://mlflow.lab.example{path}"


@pytest.mark.parametrize(
    ("words", "source", "command"),
    [
        (["demo", "seed=1"], str(DEMO), f"raybrain run {DEMO} seed=1"),
        (["plan", str(DEMO)], str(DEMO), f"raybrain plan {DEMO}"),
    ],
)
def test_a_run_says_what_was_typed_wherever_it_was_called(words, source, command, monkeypatch):
    monkeypatch.setattr(running, "run", lambda *_, **__: None)
    monkeypatch.setattr(sys, "argv", ["pytest", "other.yaml"])
    assert cli.main(words) == 0
    told = provenance()
    assert told["mlflow.source.name"] == source
    assert told["raybrain.command"] == command


def test_importing_tracking_imports_no_mlflow():
    code = "import sys, raybrain.tracking; print('mlflow' in sys.modules)"
    root = Path(tracking.__file__).parents[2]
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True
    )
    assert printed.stdout.strip() == "False"
