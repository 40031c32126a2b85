"""MLflow and Optuna on PostgreSQL, as on a cluster: several writers at once lose nothing."""

import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from raybrain import cli, outputs, tracking
from raybrain.cluster.study import open_storage
from raybrain.config import Tracking
from tests.clusters import BIN, ROOT, free_port
from tests.small_run import load_experiment, same_results

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
WRITERS, RUNS, STEPS, TRIALS = 4, 3, 20, 8

pytestmark = pytest.mark.skipif(
    not PROGRAMS or os.geteuid() != 0,
    reason="needs root and the programs of Debian's package: apt-get install postgresql",
)


@pytest.fixture(scope="module")
def server():
    """Yield the address of a server on loopback, without the name of a database."""
    pytest.importorskip("psycopg2")
    folder = Path(tempfile.mkdtemp(prefix="rbpg", dir="/tmp"))
    person = pwd.getpwnam("postgres")
    os.chown(folder, person.pw_uid, person.pw_gid)
    port = free_port()

    def run(program: str, *words: str) -> None:
        command = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        subprocess.run(
            [*command, str(PROGRAMS[-1] / program), *words],
            check=True, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    data = f"{folder}/data"
    try:
        run("initdb", "-D", data, "-A", "trust", "-U", "lab", "--no-sync")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -c fsync=off"
        run("pg_ctl", "-D", data, "-w", "-o", options, "-l", f"{folder}/log", "start")
        for database in ("mlflow", "optuna"):
            run("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "lab", database)
        yield f"postgresql+psycopg2://lab@127.0.0.1:{port}"
        run("pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _at_once(code: str, *words: str) -> None:
    """Run code in several processes that begin together."""
    start = str(time.time() + 8)
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), str(k), start, *words],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for k in range(WRITERS)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * WRITERS, errors


@pytest.mark.slow
def test_writers_of_runs_lose_nothing(server, tmp_path):
    settings = Tracking(uri=f"{server}/mlflow")
    tracker = tracking.open_tracker(settings, workspace=str(tmp_path))
    code = f"""
        import sys, time
        from types import SimpleNamespace
        from raybrain import tracking
        from raybrain.config import Tracking
        number, start, uri, workspace = sys.argv[1:]
        tracker = tracking.open_tracker(Tracking(uri=uri), workspace=workspace)
        time.sleep(max(0, float(start) - time.time()))
        named = SimpleNamespace(name="shared", dataset="nsd", subject=f"subj{{number}}")
        parent = tracker.experiment_run(named)
        for run in range({RUNS}):
            with tracker.stage(parent, f"train-{{run}}", settings={{"training.lr": 1e-3}}) as stage:
                for step in range({STEPS}):
                    stage.log_metrics({{"validation_loss": 1 / (step + 1)}}, step=step)
        tracker.close()
    """
    _at_once(code, settings.uri, str(tmp_path))
    (experiment,) = (one for one in tracker.client.search_experiments() if one.name == "nsd")
    runs = tracker.client.search_runs([experiment.experiment_id])
    stages = [run for run in runs if "raybrain.stage" in run.data.tags]
    trained = [run for run in stages if run.data.tags["raybrain.stage"].startswith("train")]
    assert len(trained) == WRITERS * RUNS
    assert {run.info.status for run in trained} == {"FINISHED"}
    for run in trained:
        curve = tracker.client.get_metric_history(run.info.run_id, "validation_loss")
        assert sorted(point.step for point in curve) == list(range(STEPS))


@pytest.mark.slow
def test_writers_of_a_study_lose_nothing(server):
    import optuna

    storage = f"{server}/optuna"
    study = optuna.create_study(study_name="shared", storage=open_storage(storage))
    code = f"""
        import sys, time, optuna
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        number, start, storage = sys.argv[1:]
        study = optuna.load_study(study_name="shared", storage=storage)
        time.sleep(max(0, float(start) - time.time()))

        def objective(trial):
            x = trial.suggest_float("x", 0, 1)
            trial.report(x, 1)
            return x

        study.optimize(objective, n_trials={TRIALS})
    """
    _at_once(code, storage)
    trials = study.get_trials()
    assert sorted(trial.number for trial in trials) == list(range(WRITERS * TRIALS))
    assert {trial.state.name for trial in trials} == {"COMPLETE"}
    assert all(trial.intermediate_values == {1: trial.value} for trial in trials)


@pytest.fixture
def tracking_server(server, tmp_path):
    """Yield the address of MLflow, started by the command of cluster.yaml on the test's server."""
    commands = yaml.safe_load((ROOT / "cluster.yaml").read_text())["head_start_ray_commands"]
    (command,) = (one for one in commands if "mlflow server" in one)
    words = shlex.split(re.search(r"mlflow server[^>]*", command).group())
    port = free_port()
    for option, value in (
        ("--port", str(port)),
        ("--backend-store-uri", f"{server}/mlflow"),
        ("--artifacts-destination", f"{tmp_path}/artifacts"),
    ):
        words[words.index(option) + 1] = value
    with (tmp_path / "mlflow.log").open("wb") as log:
        process = subprocess.Popen(
            [str(BIN / words[0]), *words[1:]],
            cwd=tmp_path,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while not _healthy(address):
            assert process.poll() is None, (tmp_path / "mlflow.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.5)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def _healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.filterwarnings("default")
def test_a_run_and_a_search_are_recorded_as_on_a_cluster(
    server, tracking_server, finished, experiment_file, tmp_path
):
    import optuna

    tree = yaml.safe_load(experiment_file.read_text())
    tree["name"] = "recorded"
    tree["tuning"] = {
        "candidates": 3,
        "top": 1,
        "seeds": 1,
        "space": {"training.lr": {"low": 1e-4, "high": 1e-2, "log": True}},
    }
    file = tmp_path / "recorded.yaml"
    file.write_text(yaml.safe_dump(tree))
    storage = f"{server}/optuna"
    words = (f"tracking.uri={tracking_server}", f"tuning.storage={storage}")
    assert cli.main(["run", str(file), *words]) == 0
    assert cli.main(["tune", str(file), *words]) == 0
    assert cli.main(["tune", str(file), *words, "tuning.candidates=5"]) == 0
    experiment = load_experiment(file, *words)
    same_results(finished, experiment)
    tracker = tracking.open_tracker(experiment.tracking, workspace=experiment.workspace)
    ids = [one.experiment_id for one in tracker.client.search_experiments()]
    runs = tracker.client.search_runs(ids, "tags.`raybrain.stage` != ''")
    ours = [run for run in runs if run.data.tags.get("output", "").endswith("recorded/report")]
    assert {run.info.status for run in runs} == {"FINISHED"}
    (evaluated,) = ours
    scores = tracker.client.download_artifacts(evaluated.info.run_id, "scores.txt", str(tmp_path))
    made = Path(outputs.report(experiment).folder, "scores.txt")
    assert Path(scores).read_text() == made.read_text()
    candidates = [run for run in runs if run.data.tags["raybrain.stage"] == "candidate"]
    assert len(candidates) == 5
    (name,) = (
        one.study_name for one in optuna.get_all_study_summaries(storage) if "rec" in one.study_name
    )
    states = [
        trial.state.is_finished()
        for trial in optuna.load_study(study_name=name, storage=storage).trials
    ]
    assert states == [True] * 5
    registered = {one.name for one in tracker.client.search_registered_models()}
    assert {"simulated-subj01-latents", "simulated-subj01-prompt_embeds"} <= registered
