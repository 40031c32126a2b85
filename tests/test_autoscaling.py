"""A simulated cluster that grows and shrinks, its nodes killed: nothing is lost and the run ends.

Ray's own fake provider starts nodes as processes of this machine; GPUs are logical.
"""

import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from raybrain import cli, outputs, seal, store
from raybrain.stages import searching
from tests import clusters
from tests.small_run import load_experiment
from tests.test_pipeline import SEARCH

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("default")]

HEAD = "f" * 51 + "00000"
IDLE_SECONDS = 8
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
    "training.epochs=12",
    "training.batch_size=4",
    "reconstruct.steps=60",
    "reconstruct.images_per_unit=1",
    "simulation.trials_per_session=10",
    "resources.generate={max: 2, gpus: 1}",
    "resources.tune={max: 2, gpus: 1}",
)


@pytest.fixture
def growing(tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "cluster_name": "fake",
                "max_workers": 4,
                "upscaling_speed": 20.0,
                "idle_timeout_minutes": IDLE_SECONDS / 60,
                "provider": {"type": "fake_multinode", "head_node_id": HEAD},
                "available_node_types": TYPES,
                "head_node_type": "ray.head.default",
            }
        )
    )
    with clusters.head(
        "--num-cpus=0",
        f"--autoscaling-config={file}",
        RAY_FAKE_CLUSTER="1",
        RAY_OVERRIDE_NODE_ID_FOR_TESTING=HEAD,
        AUTOSCALER_UPDATE_INTERVAL_S="1",
    ) as cluster:
        # Nodes started later must not take the head's identity.
        cluster.environment.pop("RAY_OVERRIDE_NODE_ID_FOR_TESTING")
        yield cluster


def _workers(growing) -> list[dict]:
    return [node for node in growing.nodes() if node["NodeID"] != HEAD]


def _raylets(growing) -> list[psutil.Process]:
    """Return the processes of nodes that were added."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if words and words[0].endswith("/raylet") and any(str(growing.folder) in w for w in words):
            found.append(process)
    return [one for one in found if "--head" not in one.cmdline()]


def _kill_a_node(growing) -> str:
    """Kill a node on which something runs and return its id."""
    workers = _workers(growing)
    assert workers, "no node is up"
    chosen = workers[0]
    for process in _raylets(growing):
        if any(chosen["RayletSocketName"] in word for word in process.cmdline()):
            process.kill()
            return chosen["NodeID"]
    raise AssertionError("the node has no process")


def test_nodes_come_and_go_and_a_killed_one_in_any_stage_costs_nothing(
    growing, finished, experiment_file, tmp_path, capsys
):
    place = f"workspace={tmp_path}/workspace"
    tree = yaml.safe_load(experiment_file.read_text()) | {"tuning": SEARCH}
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(tree))
    experiment = load_experiment(file, *SLOW, place)
    stages = {
        "ingest": outputs.subject_store(experiment),
        "features": outputs.features(experiment),
        "tune": outputs.tuning(experiment),
        "train": outputs.decoder(experiment, "prompt_embeds"),
        "reconstruct": outputs.reconstructions(experiment),
    }
    assert _workers(growing) == []
    killed, sizes = {}, {}
    for stage in ("simulate", "ingest", "features", "tune", "train", "predict", "reconstruct"):
        words = [str(clusters.BIN / "python"), "-m", "raybrain.cli", stage, str(file), *SLOW, place]
        process = subprocess.Popen(
            words,
            env={**growing.environment, "RAY_ADDRESS": growing.address},
            cwd=growing.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if stage in stages:
            folder = Path(stages[stage].folder)
            deadline = time.monotonic() + 300
            while not (folder / seal.BEGUN).exists() or not _workers(growing):
                assert process.poll() is None, process.stdout.read()
                assert time.monotonic() < deadline, f"no node came for {stage}"
                time.sleep(0.2)
            time.sleep(2)
            sizes[stage] = len(_workers(growing))
            killed[stage] = (_kill_a_node(growing), (folder / seal.SEAL).exists())
        said, _ = process.communicate(timeout=600)
        assert process.returncode == 0, said
    print(f"\nnodes when one was killed: {sizes}; sealed before: {killed}")
    assert all(count >= 1 for count in sizes.values())
    growing.wait(lambda: not _workers(growing), what="the end of idle nodes", seconds=90)
    undisturbed = f"workspace={tmp_path}/undisturbed"
    for stage in ("simulate", "ingest", "features", "train", "predict", "reconstruct"):
        assert cli.main([stage, str(file), *SLOW[:-2], undisturbed]) == 0
    wanted = load_experiment(file, *SLOW, undisturbed)
    for name in ("latents", "prompt_embeds"):
        np.testing.assert_array_equal(
            store.read_rows(outputs.predictions(experiment).folder, name),
            store.read_rows(outputs.predictions(wanted).folder, name),
        )
    for row in ("system", "ceiling"):
        np.testing.assert_array_equal(
            store.read_rows(outputs.reconstructions(experiment).folder, row),
            store.read_rows(outputs.reconstructions(wanted).folder, row),
        )
    assert Path(outputs.run_folder(experiment), searching.BEST).exists()
