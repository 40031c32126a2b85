"""Jobs on clusters: with a token, stopped and submitted again, on nodes that share no folder."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from raybrain import outputs, places, tracking
from tests import clusters
from tests.small_run import load_experiment, same_results

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("default")]


def test_a_submitted_job_gives_the_bytes_of_the_direct_command(finished, experiment_file, tmp_path):
    place = f"workspace={tmp_path}/workspace"
    with clusters.head("--num-cpus=2", token=True) as cluster:
        strangers = {**cluster.environment, "RAY_AUTH_TOKEN": "b" * 64}
        known, cluster.environment = cluster.environment, strangers
        refused = cluster.job("list")
        assert refused.returncode != 0
        assert "401" in refused.stderr + refused.stdout or "token" in refused.stderr.lower()
        cluster.environment = known
        done = cluster.submit(str(experiment_file), place, job="whole")
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert cluster.status("whole") == "SUCCEEDED"
        assert "gallery" in done.stdout
        wrong = cluster.submit(str(experiment_file), "decode.latents.rois=[V9]", job="wrong")
        assert wrong.returncode != 0
        assert "V9" in wrong.stdout
    experiment = load_experiment(experiment_file, place)
    same_results(finished, experiment)
    tracker = tracking.open_tracker(experiment.tracking, workspace=experiment.workspace)
    runs = tracker.client.search_runs(
        [one.experiment_id for one in tracker.client.search_experiments()]
    )
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len(runs) == 9  # the experiment, seven stages, of which train has two targets


def test_a_stopped_job_goes_on_when_it_is_submitted_again(finished, experiment_file, tmp_path):
    place = f"workspace={tmp_path}/workspace"
    experiment = load_experiment(experiment_file, place)
    store_folder = Path(outputs.subject_store(experiment).folder)
    with clusters.head("--num-cpus=2") as cluster:
        begun = cluster.submit(str(experiment_file), place, job="first", wait=False)
        assert begun.returncode == 0, begun.stderr
        cluster.wait((store_folder / "seal.json").exists, what="ingest", seconds=300)
        assert cluster.job("stop", "first").returncode == 0
        cluster.wait(lambda: cluster.status("first") == "STOPPED", what="the stop")
        sealed = (store_folder / "seal.json").stat().st_mtime_ns
        tracker = tracking.open_tracker(experiment.tracking, workspace=experiment.workspace)
        done = cluster.submit(str(experiment_file), place, job="second")
        assert done.returncode == 0, done.stdout[-3000:]
        assert "sealed already" in done.stdout
    assert (store_folder / "seal.json").stat().st_mtime_ns == sealed
    same_results(finished, experiment)
    ids = [one.experiment_id for one in tracker.client.search_experiments()]
    assert "RUNNING" not in {run.info.status for run in tracker.client.search_runs(ids)}


@pytest.fixture
def bucket(tmp_path):
    """Yield a workspace in a bucket of a local server, and the environment that reaches it."""
    pytest.importorskip("moto")
    port = clusters.free_port()
    environment = {
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    server = subprocess.Popen(
        [str(clusters.BIN / "moto_server"), "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        import boto3

        client = boto3.client(
            "s3", endpoint_url=environment["AWS_ENDPOINT_URL"], region_name="us-east-1",
            aws_access_key_id="none", aws_secret_access_key="none",
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while True:
            try:
                client.create_bucket(Bucket="lab")
                break
            except Exception:
                assert time.monotonic() < deadline
                time.sleep(0.3)
        yield "s3://lab/workspace", environment
    finally:
        server.terminate()
        server.wait(timeout=20)


def test_nodes_that_share_no_folder_complete_the_demo_through_a_bucket(
    finished, experiment_file, tmp_path, bucket, monkeypatch
):
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("hiding the driver's folders from a node needs root")
    workspace, environment = bucket
    generator = Path("/tmp") / f"rbg{os.getpid()}"  # a model is on every node, as /models would be
    shutil.copytree(experiment_file.parent / "generator", generator)
    words = (
        f"workspace={workspace}",
        f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
        f"generator.checkpoint={generator}",
    )
    hide = f'mount -t tmpfs tmpfs {tmp_path.parents[1]} && exec "$@"'
    try:
        with clusters.head("--num-cpus=0", **environment) as cluster:
            for node in range(2):
                cluster.start(
                    f"--address={cluster.address}", "--num-cpus=1",
                    f"--temp-dir={cluster.folder}/node{node + 1}",
                    before=("unshare", "-m", "sh", "-c", hide, "sh"),
                )  # fmt: skip
            cluster.wait(lambda: len(cluster.nodes()) == 3, what="three nodes")
            done = _run_on(cluster, str(experiment_file), *words)
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        experiment = load_experiment(experiment_file, *words)
        network = outputs.decoder(experiment, "prompt_embeds").folder
        reports = places.read_text(f"{network}/checkpoints/reports.jsonl").splitlines()
        assert [json.loads(line)["epoch"] for line in reports] == [1, 2, 3]
        same_results(finished, experiment)
    finally:
        shutil.rmtree(generator)


def _run_on(cluster, *words: str) -> subprocess.CompletedProcess:
    """Run the command line on this machine, its work on the cluster."""
    return subprocess.run(
        [str(clusters.BIN / "python"), "-m", "raybrain.cli", "run", *words],
        env={**cluster.environment, "RAY_ADDRESS": cluster.address},
        cwd=cluster.folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )


def test_an_error_names_the_node_that_lacks_a_path(tmp_path):
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("hiding the driver's folders from a node needs root")
    (tmp_path / "betas.csv").write_text("1")
    code = f"""
from pathlib import Path
from raybrain import cluster
from raybrain.config import InputError, Workers
for path in ("{tmp_path}/betas.csv", "{tmp_path}/nowhere.csv"):
    try:
        cluster.map_tasks(Path.read_text, [Path(path)], workers=Workers(), description="read")
    except InputError as error:
        print("refused:", error)
    except FileNotFoundError as error:
        print("raised:", error)
"""
    hide = f'mount -t tmpfs tmpfs {tmp_path} && exec "$@"'
    with clusters.head("--num-cpus=0") as cluster:
        cluster.start(
            f"--address={cluster.address}", "--num-cpus=1",
            f"--temp-dir={cluster.folder}/node1",
            before=("unshare", "-m", "sh", "-c", hide, "sh"),
        )  # fmt: skip
        cluster.wait(lambda: len(cluster.nodes()) == 2, what="two nodes")
        address = cluster.nodes()[0]["NodeManagerAddress"]
        refused, raised = cluster.python(code, timeout=120).splitlines()
    assert refused == (
        f"refused: node {address} has no {tmp_path}/betas.csv, which the node of this command has; "
        f"put it where every node finds it: in a folder that all share, or in a bucket"
    )
    assert raised.startswith("raised: [Errno 2]")
