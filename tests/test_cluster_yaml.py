"""The cluster file against Ray's own schema, and against what the package and its docs promise."""

import copy
import re
from pathlib import Path

import pytest
import yaml

from tests.clusters import grows_from_nothing

ROOT = Path(__file__).parent.parent
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())
TYPES = CLUSTER["available_node_types"]
COMMANDS = [
    command for name, part in CLUSTER.items() if name.endswith("_commands") for command in part
]


def validated(cluster):
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(cluster))
    validate_config(prepared)
    return prepared


def test_the_file_passes_rays_own_validator():
    prepared = validated(CLUSTER)
    assert prepared["available_node_types"]["gpu_worker"]["resources"] == {"CPU": 8, "GPU": 1}


def test_the_validator_refuses_a_misspelt_key():
    from jsonschema import ValidationError

    with pytest.raises(ValidationError):
        validated({**CLUSTER, "idle_timeout": 5})


def test_no_work_is_placed_on_the_head_and_workers_go_when_idle():
    assert TYPES[CLUSTER["head_node_type"]]["resources"] == {"CPU": 0, "GPU": 0}
    workers = {name: kind for name, kind in TYPES.items() if name != CLUSTER["head_node_type"]}
    assert {kind["min_workers"] for kind in workers.values()} == {0}
    markets = [kind["node_config"]["InstanceMarketOptions"] for kind in workers.values()]
    assert markets == [{"MarketType": "spot"}] * len(workers)
    assert sum(kind["max_workers"] for kind in workers.values()) <= CLUSTER["max_workers"]
    assert CLUSTER["idle_timeout_minutes"] <= 15


def test_nodes_install_pinned_versions_and_every_ray_asks_for_a_token():
    installs = [command for command in COMMANDS if "pip install" in command]
    assert installs
    assert all("-c ~/raybrain/constraints.txt" in command for command in installs)
    pinned = (ROOT / "constraints.txt").read_text()
    for package in ("psycopg2-binary", "boto3", "s3fs"):
        assert re.search(rf"^{package}==", pinned, re.MULTILINE)
    starts = [command for command in COMMANDS if "ray start" in command]
    assert len(starts) == 2
    assert all(command.startswith("RAY_AUTH_MODE=token ") for command in starts)


def test_nothing_listens_to_the_world_and_no_secret_is_written_down():
    text = (ROOT / "cluster.yaml").read_text()
    assert "0.0.0.0" not in text
    assert all("--host 127.0.0.1" in c for c in COMMANDS if "mlflow server" in c)
    assert not re.search(r"password|secret|AKIA", text.replace("no password", ""), re.IGNORECASE)


def test_a_cluster_with_the_needs_of_nsd_can_hold_its_workers():
    from raybrain import config

    path = ROOT / "jobs" / "experiments" / "nsd.yaml"
    needs = config.load(path, schema=config.Experiment).resources
    for workers in (needs.tasks, needs.train, needs.generate, needs.tune):
        assert any(
            workers.cpus <= kind["resources"]["CPU"]
            and workers.gpus <= kind["resources"].get("GPU", 0)
            for kind in TYPES.values()
        )


def test_the_kubernetes_example_scales_as_kuberay_reads_it():
    job = yaml.safe_load((ROOT / "docs" / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    derived = grows_from_nothing(
        {"metadata": job["metadata"], "spec": job["spec"]["rayClusterSpec"]}
    )
    assert derived["idle_timeout_minutes"] == CLUSTER["idle_timeout_minutes"]
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    pinned = (ROOT / "constraints.txt").read_text()
    assert f"ray=={job['spec']['rayClusterSpec']['rayVersion']}" in pinned


def test_every_command_and_file_of_the_docs_exists():
    from raybrain.cli import COMPARE, INIT, SCHEMA, STAGES, SWEEP

    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        text = page.read_text()
        for stage in re.findall(r"^\$ (?:\S+=\S+ )*raybrain (\S+)", text, re.MULTILINE):
            assert stage in (*STAGES, SWEEP, COMPARE, INIT, SCHEMA), f"{page}: {stage}"
        if "generated" in page.parts:
            continue
        for path in re.findall(r"\b(?:jobs|tests|data_catalog)/[\w/.-]+\.(?:py|yaml)", text):
            assert (ROOT / path).is_file(), f"{page}: {path}"
