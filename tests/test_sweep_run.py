"""A sweep from end to end: shared once, killed, failed in part, and set side by side."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from raybrain import cli, outputs, pipeline, sweeps, tracking
from raybrain.stages import sweeping
from tests import clusters
from tests.processes import children

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    # The command line shows warnings to its user as notes, such as the alarm of ridge's grid.
    pytest.mark.filterwarnings("default"),
]

RIDGE = {"rois": ["ventral"], "decoder": {"kind": "ridge"}}
AXES = {"subject": ["subj01", "subj02"], "reconstruct.strength": [0.5, 0.8]}
UNITS = {
    "simulate": 2, "ingest": 2, "features": 2, "train": 4, "predict": 2, "reconstruct": 4,
    "evaluate": 4,
}  # fmt: skip
KILLS = 10


def write_sweep(folder: Path, experiment_file: Path, **tree) -> str:
    base = yaml.safe_load(experiment_file.read_text())
    base["workspace"] = str(folder / "workspace")
    base["decode"]["prompt_embeds"] = RIDGE
    base["reconstruct"]["samples"] = 1
    base["tracking"] = {"models": False}
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    file = folder / "sweep.yaml"
    tree = {"name": "trial", "experiment": "base.yaml", "axes": AXES, **tree}
    file.write_text(yaml.safe_dump({**tree, "compare": {"images": 4}}, sort_keys=False))
    return str(file)


def made(folder: Path) -> list[dict]:
    """Return a line for every unit that was made, in the order of their ends."""
    journal = folder / "workspace/sweeps/trial/units.jsonl"
    return [json.loads(line) for line in journal.read_text().splitlines()]


def counted(lines) -> dict[str, int]:
    stages = [line["stage"] for line in lines]
    return {stage: stages.count(stage) for stage in outputs.RUN_STAGES}


def comparison(folder: Path) -> dict[str, bytes]:
    place = folder / "workspace/sweeps/trial/comparison"
    return {
        name: (place / name).read_bytes()
        for name in ("scores.csv", "differences.csv", "decoded.csv", "beside.csv", "comparison.txt")
    }


def all_sealed(file: str) -> bool:
    units = sweeping.units_of([run.experiment for run in sweeps.load_sweep(file).runs])
    return all(unit.done for unit in units.values())


def check_recorded(file: str) -> None:
    """Look at one parent in MLflow, and a child for every run."""
    first = sweeps.load_sweep(file).runs[0].experiment
    tracker = tracking.open_tracker(first.tracking, workspace=first.workspace)
    (experiment,) = [
        one for one in tracker.client.search_experiments() if one.name == tracking.sweeps.SWEEP
    ]
    runs = tracker.client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run is not parent]
    assert len(children) == 4
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.data.params["reconstruct.strength"] for run in children} == {"0.5", "0.8"}
    assert all("pixcorr" in run.data.metrics for run in children)
    names = {file.path for file in tracker.client.list_artifacts(parent.info.run_id, "comparison")}
    assert "comparison/comparison.html" in names


def faulty_drawing():
    """Return the work of drawing that fails in one run of the four."""
    work = pipeline.WORK["reconstruct"]()

    def faulty(experiment, output, run):
        if experiment.reconstruct.strength == 0.8 and experiment.subject == "subj02":
            raise OSError("the disk is on fire")
        return work(experiment, output, run)

    return faulty


@pytest.fixture(scope="module")
def swept(experiment_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    file = write_sweep(folder, experiment_file)
    assert cli.main(["sweep", file]) == 0
    return folder, file


def test_what_runs_share_is_made_once(swept):
    folder, file = swept
    lines = made(folder)
    assert counted(lines) == UNITS
    assert len({line["output"] for line in lines}) == len(lines)
    assert all_sealed(file)
    with (folder / "workspace/sweeps/trial/comparison/scores.csv").open() as rows:
        found = list(csv.DictReader(rows))
    assert {row["subject"] for row in found} == {"subj01", "subj02", "mean of 2"}
    assert {row["reconstruct.strength"] for row in found} == {"0.5", "0.8"}


def test_mlflow_has_one_parent_and_a_child_for_every_run(swept):
    _, file = swept
    check_recorded(file)


def test_a_finished_sweep_is_told_again_in_seconds_without_a_cluster(swept, monkeypatch, capsys):
    folder, file = swept
    before, tables = made(folder), comparison(folder)
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray was started"))
    started = time.process_time()
    assert cli.main(["sweep", file]) == 0
    assert time.process_time() - started < 0.3 * 4 + 2
    assert "Scores under lite0-v1" in capsys.readouterr().out
    assert made(folder) == before
    assert comparison(folder) == tables
    assert cli.main(["plan", file]) == 0
    printed = capsys.readouterr().out
    assert "all is done" in printed
    assert "evaluate" in printed


def test_a_longer_axis_makes_only_what_is_new(swept, experiment_file):
    folder, _ = swept
    before = made(folder)
    axes = {**AXES, "reconstruct.strength": [0.5, 0.8, 0.65]}
    assert cli.main(["sweep", write_sweep(folder, experiment_file, axes=axes)]) == 0
    new = made(folder)[len(before) :]
    assert counted(new) == {**dict.fromkeys(outputs.RUN_STAGES, 0), "reconstruct": 2, "evaluate": 2}
    # The tests below compare with the sweep as it was.
    assert cli.main(["sweep", write_sweep(folder, experiment_file)]) == 0


def test_a_run_that_fails_is_told_and_the_others_go_on(
    experiment_file, tmp_path, capsys, monkeypatch
):
    file = write_sweep(tmp_path, experiment_file)
    faulty = faulty_drawing()
    monkeypatch.setitem(pipeline.WORK, "reconstruct", lambda: faulty)
    assert cli.main(["sweep", file]) == 2
    printed = capsys.readouterr()
    fault = "trial-subj02-0.8: reconstruct: OSError: the disk is on fire"
    assert fault in printed.out
    assert "1 of 4 runs of 'trial' failed" in printed.err
    assert "Scores under lite0-v1" in printed.out
    assert cli.main(["plan", file]) == 0
    plan = capsys.readouterr().out
    assert "failed" in plan
    assert "the disk is on fire" in plan
    assert plan.count("\ndone") == 3
    before = made(tmp_path)
    monkeypatch.undo()
    assert cli.main(["sweep", file]) == 0
    assert counted(made(tmp_path)[len(before) :]) == {
        **dict.fromkeys(outputs.RUN_STAGES, 0), "reconstruct": 1, "evaluate": 1,
    }  # fmt: skip
    assert counted(made(tmp_path)) == UNITS


def test_more_than_the_cluster_can_ever_have_is_refused_and_nothing_is_written(
    experiment_file, tmp_path, capsys
):
    file = write_sweep(tmp_path, experiment_file)
    assert cli.main(["sweep", file, "resources.generate.gpus=64"]) == 2
    error = capsys.readouterr().err
    assert "resources.generate asks for a worker of 1 CPU and 64 GPUs" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "workspace").exists()


def start(file: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "raybrain", "sweep", file],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )


def test_a_sweep_killed_again_and_again_ends_with_the_same_tables(swept, experiment_file, tmp_path):
    folder, _ = swept
    file = write_sweep(tmp_path, experiment_file)
    chance = random.Random(7)
    undisturbed = comparison(folder)
    for _ in range(KILLS):
        process = start(file)
        deadline = time.monotonic() + chance.uniform(8, 60)
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(chance.uniform(0.5, 4))
            alive = children(process, begins="ray::")
            if alive and chance.random() < 0.3:
                chance.choice(alive).kill()
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
    assert cli.main(["sweep", file]) == 0
    assert all_sealed(file)
    lines = made(tmp_path)
    # A line is written after its seal, so a kill between the two may cost a line but never a unit.
    assert len({line["output"] for line in lines}) == len(lines)
    for name, table in comparison(tmp_path).items():
        assert table == undisturbed[name], name


def test_a_sweep_whose_nodes_die_ends_with_the_same_tables(swept, experiment_file, tmp_path):
    folder, _ = swept
    file = write_sweep(tmp_path, experiment_file)
    chance = random.Random(3)
    with clusters.head("--num-cpus=0") as ray:
        address = f"--address={ray.address}"
        for _ in range(2):
            ray.start(address, "--num-cpus=1")
        ray.wait(lambda: len(ray.nodes()) == 3, what="two workers")
        process = start(file, RAY_ADDRESS=ray.address, **{
            name: value for name, value in ray.environment.items() if name.startswith("RAY_")
        })  # fmt: skip
        for _ in range(3):
            time.sleep(chance.uniform(20, 60))
            if process.poll() is not None:
                break
            victim = chance.choice([one for one in ray.processes[1:] if one.poll() is None])
            os.killpg(victim.pid, signal.SIGKILL)
            ray.start(address, "--num-cpus=1")
        assert process.wait(timeout=1800) == 0
    lines = made(tmp_path)
    assert counted(lines) == UNITS
    for name, table in comparison(tmp_path).items():
        assert table == comparison(folder)[name], name


def test_an_interrupted_sweep_is_told_apart_from_one_under_way(experiment_file, tmp_path, capsys):
    file = write_sweep(tmp_path, experiment_file)
    process = start(file)
    state = tmp_path / "workspace/sweeps/trial/state.json"
    deadline = time.monotonic() + 300
    while not state.exists() or "running" not in state.read_text():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert cli.main(["plan", file]) == 0
    assert "\nrunning" in capsys.readouterr().out
    assert cli.main(["sweep", file]) == 2
    assert "the sweep 'trial' (process" in capsys.readouterr().err
    process.kill()
    process.wait()
    assert cli.main(["plan", file]) == 0
    assert "\ninterrupted" in capsys.readouterr().out
