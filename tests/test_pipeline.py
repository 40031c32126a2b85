"""The whole path at small sizes, killed and started again."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import optuna
import pytest
import yaml

from raybrain import cli, cluster, outputs, seal, store, tracking
from raybrain.config import Experiment
from raybrain.stages import searching
from tests.small_run import contents_of, load_experiment, outputs_of

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    # The command line shows warnings to its user as notes, such as the alarm of ridge's grid.
    pytest.mark.filterwarnings("default"),
]

SEARCH = {
    "candidates": 6,
    "top": 2,
    "seeds": 2,
    "pruner": "none",
    "space": {
        "training.lr": {"low": "1e-4", "high": "1e-2", "log": True},
        "decode.prompt_embeds.decoder.kind": {"choices": ["residual_mlp", "ridge"]},
        "decode.prompt_embeds.decoder.width": {
            "low": 8,
            "high": 32,
            "when": {"decode.prompt_embeds.decoder.kind": "residual_mlp"},
        },
        "decode.prompt_embeds.rois": {"choices": [["ventral"], ["early", "ventral"]]},
        "decode.prompt_embeds.repeats": {"choices": ["average", "trial"]},
    },
}

STAGES = ("simulate", "ingest", "features", "train", "predict", "reconstruct", "evaluate")


def _sealed_at(experiment: Experiment) -> dict[str, float]:
    return {folder: Path(folder, seal.SEAL).stat().st_mtime for folder in outputs_of(experiment)}


def test_a_run_seals_every_output_and_ends_with_table_and_gallery(finished):
    for folder, output in outputs_of(finished).items():
        assert seal.status(folder, wanted=output.seal).state == "sealed", folder
    report = Path(outputs.report(finished).folder)
    table = (report / "scores.txt").read_text()
    for row in ("mean image", "nearest training", "shuffled brain", "system", "ceiling"):
        assert row in table
    for line in ("latents single trials", "retrieval by latents among 10"):
        assert line in table
    numbers = json.loads((report / "decoders.json").read_text())
    assert 0 < numbers["latents"]["r2_ceiling_mean"] < 1
    assert numbers["latents single trials"]["n"] == 3 * numbers["latents"]["n"]
    assert (report / "gallery.html").stat().st_size > 10_000


def test_every_image_and_sample_is_drawn_with_its_lineage(finished):
    folder = outputs.reconstructions(finished).folder
    drawn = store.read_rows(folder, "system")
    assert drawn.shape[1:] == (2, 32, 32, 3)
    assert len(drawn) == len(store.row_ids(folder))
    # Two samples of an image differ by their noise, and no image was left blank.
    assert (drawn[:, 0] != drawn[:, 1]).any(axis=(1, 2, 3)).all()
    assert drawn.std(axis=(2, 3, 4)).min() > 0
    attributes = store.open_sealed(folder).attrs.asdict()
    assert attributes["store"] == outputs.subject_store(finished).seal.digest
    assert attributes["seed"] == 0


def test_test_images_are_in_no_training_trial(finished):
    path = outputs.subject_store(finished).folder
    training = store.open_store(path, splits="training").trials
    test = store.open_store(path, splits="test").trials
    assert set(training["split"]) == {"train", "validation"}
    assert not set(training["image_id"]) & set(test["image_id"])


def test_a_second_run_touches_nothing_and_starts_no_cluster(finished, experiment_file, monkeypatch):
    before = _sealed_at(finished)
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray was started"))
    assert cli.main(["run", str(experiment_file)]) == 0
    assert _sealed_at(finished) == before


def test_plan_writes_nothing_and_names_what_is_next(finished, experiment_file, capsys):
    before = _sealed_at(finished)
    assert cli.main(["plan", str(experiment_file)]) == 0
    assert "all is done" in capsys.readouterr().out
    assert cli.main(["plan", str(experiment_file), "reconstruct.guidance=3"]) == 0
    printed = capsys.readouterr().out
    assert "reconstruct.guidance was 2.0, now 3.0" in printed
    assert "next         raybrain reconstruct" in printed
    assert _sealed_at(finished) == before


def test_a_changed_setting_is_refused_by_name_unless_it_may_replace(
    finished, experiment_file, capsys
):
    words = ["reconstruct", str(experiment_file), "reconstruct.strength=0.75", "on_change=refuse"]
    assert cli.main(words) == 2
    assert "reconstruct.strength was 0.5, now 0.75" in capsys.readouterr().err


def test_a_changed_setting_redoes_only_what_depends_on_it(finished, experiment_file):
    before = _sealed_at(finished)
    change = "evaluate.bootstrap=300"
    assert cli.main(["run", str(experiment_file), change]) == 0
    after = _sealed_at(load_experiment(experiment_file, change))
    redone = {Path(folder).name for folder in after if after[folder] != before[folder]}
    assert redone == {"report"}
    assert cli.main(["run", str(experiment_file)]) == 0


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param(stage, marks=[] if stage == "reconstruct" else [pytest.mark.slow])
        for stage in STAGES
    ],
)
def test_a_run_killed_in_a_stage_completes_with_the_same_bytes(
    finished, experiment_file, stage, tmp_path
):
    place = f"workspace={tmp_path}/workspace"
    killed = load_experiment(experiment_file, place)
    folder = next(o.folder for o in outputs_of(killed).values() if o.stage == stage)
    command = [sys.executable, "-m", "raybrain.cli", "run", str(experiment_file), place]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 400
    while not Path(folder, seal.BEGUN).exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    if stage == "reconstruct":
        while not list(Path(folder).glob("system/c/*")):
            time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wanted = outputs_of(killed)[folder].seal
    assert seal.status(folder, wanted=wanted).state == "unfinished"
    assert cli.main(["run", str(experiment_file), place]) == 0
    undisturbed = contents_of(finished)
    for name, values in contents_of(load_experiment(experiment_file, place)).items():
        np.testing.assert_array_equal(values, undisturbed[name], err_msg=name)


def test_the_layout_of_things_runs_to_the_scores_as_well(experiment_file, tmp_path):
    changes = (
        "dataset=simulated-things",
        "subject=sub-01",
        "simulation.layout=things",
        f"workspace={tmp_path}/workspace",
    )
    assert cli.main(["run", str(experiment_file), *changes]) == 0
    report = Path(outputs.report(load_experiment(experiment_file, *changes)).folder)
    assert "ceiling" in (report / "scores.txt").read_text()


@pytest.fixture
def search_file(finished, experiment_file, tmp_path) -> Path:
    tree = yaml.safe_load(experiment_file.read_text()) | {"name": tmp_path.name, "tuning": SEARCH}
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def _candidate_runs(experiment: Experiment) -> list:
    tracker = tracking.open_tracker(experiment.tracking, workspace=experiment.workspace)
    output = outputs.tuning(experiment)
    found = tracker.client.search_experiments()
    study = searching.study_name(experiment, output)
    return tracker.client.search_runs(
        [one.experiment_id for one in found], f"tags.`raybrain.study` = '{study}'"
    )


def test_a_search_writes_an_experiment_that_is_no_worse_than_its_own(search_file, capsys):
    assert cli.main(["tune", str(search_file)]) == 0
    printed = capsys.readouterr().out
    experiment = load_experiment(search_file)
    assert len(_candidate_runs(experiment)) == SEARCH["candidates"]
    assert {run.info.status for run in _candidate_runs(experiment)} == {"FINISHED"}
    losses = {
        int(run.data.tags["raybrain.candidate"]): run.data.metrics["objective/validation_loss"]
        for run in _candidate_runs(experiment)
    }
    assert min(losses.values()) <= losses[0]
    best = Path(outputs.run_folder(experiment), searching.BEST)
    assert str(best) in printed
    assert cli.main(["train", str(best)]) == 0
    # The candidate's own command gives the candidate's own fit.
    start = next(line.index("settings") for line in printed.splitlines() if "over seeds" in line)
    line = next(line for line in printed.splitlines() if line.lstrip().startswith("0 "))
    command = next(line for line in printed.splitlines() if line.startswith("to fit one"))
    words = shlex.split(command.split("raybrain ")[1].replace("SETTINGS", line[start:]))
    assert cli.main(words) == 0
    assert load_experiment(Path(words[1]), *words[2:]).decode == experiment.decode


def test_kernels_and_what_voxels_weigh_are_searched_as_any_setting(search_file):
    tree = yaml.safe_load(search_file.read_text())
    tree["decode"]["latents"] = {"rois": ["V1", "V2"], "decoder": {"kind": "kernel_ridge"}}
    address = "decode.latents.decoder"
    space = {
        f"{address}.width": {"choices": [0.5, 2.0]},
        f"{address}.ceiling_power": {"choices": [0.0, 1.0]},
        f"{address}.weights.V1": {"choices": [0.5]},
    }
    grid = {"sampler": "grid", "candidates": 4, "top": 1, "seeds": 1, "pruner": "none"}
    tree["tuning"] = {**grid, "space": space}
    search_file.write_text(yaml.safe_dump(tree))
    assert cli.main(["tune", str(search_file)]) == 0
    losses = {
        tuple(run.data.params[f"{address}.{name}"] for name in ("width", "ceiling_power")): (
            run.data.metrics["objective/validation_loss"]
        )
        for run in _candidate_runs(load_experiment(search_file))
    }
    assert len(losses) == 4
    assert len(set(losses.values())) == 4  # each weighed and widened for itself


def test_candidates_of_two_workers_are_searched_as_well(search_file):
    tree = yaml.safe_load(search_file.read_text())
    few = {"workers": 2, "candidates": 2, "top": 1, "seeds": 1}
    tree["tuning"] |= {**few, "space": {"training.lr": {"low": 1e-4, "high": 1e-2}}}
    tree["resources"]["tune"] = {"max": 1}
    search_file.write_text(yaml.safe_dump(tree))
    assert cli.main(["tune", str(search_file)]) == 0
    runs = _candidate_runs(load_experiment(search_file))
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len(runs) == 2


def test_a_search_killed_halfway_repeats_no_candidate_and_leaves_no_open_run(search_file):
    experiment = load_experiment(search_file)
    storage = cluster.storage_of(experiment.tuning, workspace=experiment.workspace)
    study = searching.study_name(experiment, outputs.tuning(experiment))
    command = [sys.executable, "-m", "raybrain.cli", "tune", str(search_file)]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    before = {}
    while len(before) < 2:
        assert process.poll() is None, "the search ended before it could be killed"
        time.sleep(0.05)
        with contextlib.suppress(KeyError):
            before = _completed(study, storage)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = _completed(study, storage)
    assert 2 <= len(before) < SEARCH["candidates"]
    assert cli.main(["tune", str(search_file)]) == 0
    after = _completed(study, storage)
    assert len(after) == SEARCH["candidates"]
    assert {number: after[number] for number in before} == before
    runs = _candidate_runs(experiment)
    assert sorted(int(run.data.tags["raybrain.candidate"]) for run in runs) == sorted(after)
    assert {run.info.status for run in runs} == {"FINISHED"}


def _completed(study: str, storage: str) -> dict:
    found = optuna.load_study(study_name=study, storage=storage)
    return {
        trial.number: (trial.params, trial.value, trial.datetime_complete)
        for trial in found.trials
        if trial.state == optuna.trial.TrialState.COMPLETE
    }


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"decode.latents.rois": {"choices": [["early"], ["V9"]]}}, "V9"),
        ({"reconstruct.strength": {"low": 0.1, "high": 0.9}}, "cannot be searched"),
        ({"trainings.lr": {"low": 0.1, "high": 0.9}}, "'trainings' is not a setting; did you mean"),
    ],
)
def test_a_search_of_what_does_not_exist_is_refused_before_anything_is_written(
    finished, search_file, space, message, capsys
):
    tree = yaml.safe_load(search_file.read_text())
    tree["tuning"]["space"] = space
    search_file.write_text(yaml.safe_dump(tree))
    assert cli.main(["tune", str(search_file)]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not Path(outputs.run_folder(finished)).with_name(tree["name"]).exists()
