"""A simulated cluster that grows and shrinks, its nodes killed: nothing is lost and the run ends.

Ray's own fake provider starts nodes as processes of this machine; GPUs are logical.
"""

import contextlib
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import yaml

from raybrain import cli, outputs, seal
from raybrain.stages import searching
from tests import clusters
from tests.small_run import load_experiment, same_results

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("default")]

HEAD = "f" * 51 + "00000"
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
IDENTITY = {
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
    "RAY_CLOUD_INSTANCE_ID": HEAD,
    "RAY_NODE_TYPE_NAME": "ray.head.default",
}
IDLE_SECONDS = 8
SEARCH = {
    "candidates": 4,
    "top": 1,
    "seeds": 1,
    "pruner": "none",
    "space": {"training.lr": {"low": 1e-4, "high": 1e-2, "log": True}},
}
NO_WORK = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
COMMANDS = (
    "initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray",
)  # fmt: skip
TYPES = {
    "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
    "cpu": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    "gpu": {
        "resources": {"CPU": 1, "GPU": 1},
        "node_config": {},
        "min_workers": 0,
        "max_workers": 2,
    },
}
# Work that lasts long enough to be hit in the middle.
SLOW = (
    "decode.prompt_embeds.decoder={kind: residual_mlp, width: 512, depth: 4}",
    "training.epochs=60",
    "training.batch_size=2",
    "reconstruct.steps=60",
    "reconstruct.images_per_unit=1",
    "reconstruct.samples=4",
    "simulation.trials_per_session=10",
    "resources.generate={max: 2, gpus: 1}",
    "resources.tune={max: 2, gpus: 1}",
)


@pytest.fixture
def growing(tmp_path):
    port = clusters.free_port()
    file = tmp_path / "cluster.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "cluster_name": "fake",
                "max_workers": 4,
                "upscaling_speed": 20.0,
                "idle_timeout_minutes": IDLE_SECONDS / 60,
                "provider": {
                    "type": "external",
                    "module": PROVIDER,
                    "head_node_id": HEAD,
                    "disable_node_updaters": True,
                    "launch_multiple": True,
                    "gcs_address": f"127.0.0.1:{port}",
                },
                "available_node_types": TYPES,
                "head_node_type": "ray.head.default",
                "auth": {},
                "docker": {},
                "file_mounts": {},
                "cluster_synced_files": [],
                "file_mounts_sync_continuously": False,
                "rsync_exclude": [],
                "rsync_filter": [],
                **{f"{name}_commands": [] for name in COMMANDS},
            }
        )
    )
    with clusters.head(
        "--num-cpus=0",
        f"--autoscaling-config={file}",
        RAY_FAKE_CLUSTER="1",
        port=port,
        AUTOSCALER_UPDATE_INTERVAL_S="1",
        # As `ray up` has it.
        RAY_enable_autoscaler_v2="1",
        **IDENTITY,
    ) as cluster:
        # Nodes started later must not take the head's identity.
        for name in IDENTITY:
            cluster.environment.pop(name)
        yield cluster


def _nodes(growing) -> list[psutil.Process]:
    """Return the processes, one per node, of nodes that were added to the head."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            ours = words and words[0].endswith("/raylet") and str(growing.folder) in " ".join(words)
            if ours and "--head" not in words:
                found.append(process)
    return found


def _working(growing, *, doing: str) -> list[psutil.Process]:
    """Return the nodes on which a task or an actor runs whose title begins like that."""
    found = []
    for node in _nodes(growing):
        with contextlib.suppress(psutil.Error):
            titles = {"".join(child.cmdline()[:1]) for child in node.children(recursive=True)}
            if any(one.startswith(doing) and not one.startswith(NO_WORK) for one in titles):
                found.append(node)
    return found


def _lose(node: psutil.Process) -> None:
    """Kill a node and all that runs on it, as a machine that is taken away."""
    for process in (node, *node.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            process.kill()


def _node_at_work(growing, process, output, *, nodes, said, doing="ray::") -> psutil.Process:
    """Wait until as many nodes work on a stage as it can use, and return one of them."""
    deadline = time.monotonic() + 300
    while True:
        begun = Path(output.folder, seal.BEGUN).exists()
        working = _working(growing, doing=doing)
        if begun and len(working) >= nodes:
            return working[0]
        assert process.poll() is None, f"ended with {len(working)} nodes: {said.read_text()}"
        assert time.monotonic() < deadline, f"{nodes} nodes never worked: {said.read_text()}"
        time.sleep(0.05)


@contextlib.contextmanager
def _raybrain(growing, *words, said):
    """Run a command whose work is on the cluster; what it says goes to a file."""
    with said.open("wb") as log:
        process = subprocess.Popen(
            [str(clusters.BIN / "raybrain"), *words],
            env={**growing.environment, "RAY_ADDRESS": growing.address},
            cwd=growing.folder,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_nodes_come_and_go_and_a_killed_one_in_any_stage_costs_nothing(
    growing, finished, experiment_file, tmp_path, capsys
):
    started = time.monotonic()
    place = f"workspace={tmp_path}/workspace"
    tree = yaml.safe_load(experiment_file.read_text()) | {"tuning": SEARCH}
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(tree))
    experiment = load_experiment(file, *SLOW, place)
    lost = {
        "ingest": (outputs.subject_store(experiment), 1),
        "features": (outputs.features(experiment), 1),
        "tune": (outputs.tuning(experiment), 2),
        "train": (outputs.decoder(experiment, "prompt_embeds"), 1),
        "reconstruct": (outputs.reconstructions(experiment), 2),
    }
    assert _nodes(growing) == []
    for stage in ("simulate", "ingest", "features", "tune", "train", "predict", "reconstruct"):
        said = tmp_path / f"{stage}.log"
        with _raybrain(growing, stage, str(file), *SLOW, place, said=said) as process:
            if stage in lost:
                output, nodes = lost[stage]
                _lose(_node_at_work(growing, process, output, nodes=nodes, said=said))
                assert not Path(output.folder, seal.SEAL).exists()
            assert process.wait(timeout=400) == 0, said.read_text()
        print(f"{stage} ended {time.monotonic() - started:.0f} s after the start", flush=True)
    growing.wait(lambda: not _nodes(growing), what="the end of idle nodes", seconds=90)
    undisturbed = f"workspace={tmp_path}/undisturbed"
    for stage in ("simulate", "ingest", "features", "train", "predict", "reconstruct"):
        assert cli.main([stage, str(file), *SLOW[:-2], undisturbed]) == 0
    wanted = load_experiment(file, *SLOW, undisturbed)
    same_results(experiment, wanted)
    assert Path(outputs.run_folder(experiment), searching.BEST).exists()


def test_a_search_of_groups_is_given_a_node_for_each(growing, finished, experiment_file, tmp_path):
    tree = yaml.safe_load(experiment_file.read_text())
    tree["name"] = "groups"
    tree["tuning"] = {**SEARCH, "candidates": 2, "workers": 2}
    file = tmp_path / "groups.yaml"
    file.write_text(yaml.safe_dump(tree))
    # The two workers of a candidate fill a node, so that two candidates need two.
    words = (
        "resources.tune={max: 2, cpus: 0.5, gpus: 0.5}",
        "training.epochs=400",
        "training.patience=400",
        "training.batch_size=2",
    )
    output, said = outputs.tuning(load_experiment(file, *words)), tmp_path / "tune.log"
    with _raybrain(growing, "tune", str(file), *words, said=said) as process:
        at_work = {"nodes": 2, "said": said, "doing": "ray::RayTrainWorker"}
        _node_at_work(growing, process, output, **at_work)
        process.terminate()
        assert process.wait(timeout=60) == cli.TERMINATED, said.read_text()
    # What Ray Train has asked for outlives a driver that is ended by at most 180 s.
    growing.wait(lambda: not _nodes(growing), what="the end of idle nodes", seconds=270)


def test_a_stopped_job_lets_its_nodes_go_and_goes_on_when_it_is_submitted_again(
    growing, finished, experiment_file, tmp_path
):
    place = f"workspace={tmp_path}/workspace"
    words = (str(experiment_file), place, "resources.generate={max: 2, gpus: 1}")
    experiment = load_experiment(experiment_file, *words[1:])
    network = Path(outputs.decoder(experiment, "prompt_embeds").folder)
    # Nodes of the fake provider share one session folder, and one that leaves takes along what is
    # unpacked there, the running job's directory included. So the job runs what is installed.
    begun = growing.submit(*words, job="first", wait=False, ship=False)
    assert begun.returncode == 0, begun.stderr
    growing.wait((network / seal.BEGUN).exists, what="training", seconds=200)
    assert _nodes(growing)
    assert growing.job("stop", "first").returncode == 0
    growing.wait(lambda: growing.status("first") == "STOPPED", what="the stop")
    assert not (network / seal.SEAL).exists()
    growing.wait(lambda: not _nodes(growing), what="the end of idle nodes", seconds=90)
    done = growing.submit(*words, job="second", ship=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert growing.status("second") == "SUCCEEDED"
    assert "sealed already" in done.stdout
    growing.wait(lambda: not _nodes(growing), what="the end of idle nodes", seconds=90)
    same_results(finished, experiment)


def test_what_no_node_type_can_give_is_refused_and_what_one_can_is_waited_for(
    growing, experiment_file, tmp_path
):
    place = f"workspace={tmp_path}/workspace"
    for more in ("resources.tasks={max: 2, cpus: 4}", "resources.tasks={max: 2, gpus: 2}"):
        said = tmp_path / "refused.log"
        with _raybrain(growing, "simulate", str(experiment_file), place, more, said=said) as run:
            assert run.wait(timeout=100) == 2, said.read_text()
        assert "which this cluster, whatever it adds, never has" in said.read_text()
        assert not (tmp_path / "workspace").exists()
    said = tmp_path / "waits.log"
    growing.wait(lambda: not _nodes(growing), what="the end of idle nodes", seconds=90)
    with _raybrain(growing, "simulate", str(experiment_file), place, said=said) as run:
        assert run.wait(timeout=200) == 0, said.read_text()
    assert "resources.tasks: waits for 1 x 1 CPU\n" in said.read_text()
