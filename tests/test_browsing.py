"""A person who browses finished runs: what MLflow holds, and what its pages show in a browser."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from raybrain import cli, config, tracking
from raybrain.stages import browsing
from tests.report import browser
from tests.small_run import load_experiment
from tests.test_outbox import free_port, served_pages

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("default")]

HEADLINES = ("two_way", "distance", "pixcorr", "ssim")  # ten images are too few for 50-way
CHANGED = {"reconstruct.guidance": "4.0", "reconstruct.strength": "0.75"}
RAY_ENDS = 8
"""Seconds that the command goes on after its run was closed, which a longer run does not notice."""


@dataclass
class Recorded:
    tracker: tracking.Tracker
    first: object
    second: object
    """MLflow's runs of two experiments that differ in `CHANGED`."""
    wall: float
    """Seconds that the second took."""
    experiment: config.Experiment


@pytest.fixture(scope="module")
def recorded(finished, experiment_file):
    changes = ("name=stronger", *(f"{name}={value}" for name, value in CHANGED.items()))
    started = time.monotonic()
    assert cli.main(["run", str(experiment_file), *changes]) == 0
    wall = time.monotonic() - started
    other = load_experiment(experiment_file, *changes)
    tracker = tracking.open_tracker(finished.tracking, workspace=finished.workspace)
    ids = [tracker.page_of(one).rpartition("/")[2].partition("?")[0] for one in (finished, other)]
    first, second = map(tracker.client.get_run, ids)
    return Recorded(tracker, first, second, wall, other)


def test_the_run_of_an_experiment_tells_the_whole(recorded):
    run = recorded.second
    assert run.info.status == "FINISHED"
    leaves = config.flatten(recorded.experiment)
    assert run.data.params == {name: config.as_text(value) for name, value in leaves.items()}
    for name in HEADLINES:
        assert {name, f"{name}.floor", f"{name}.ceiling"} <= run.data.metrics.keys()
    assert {"latents.r2", "prompt_embeds.r2", "seconds"} <= run.data.metrics.keys()
    seconds = (run.info.end_time - run.info.start_time) / 1000
    assert abs(seconds - recorded.wall) < 0.05 * recorded.wall + RAY_ENDS
    assert run.data.metrics["seconds"] == pytest.approx(seconds, abs=1)
    tags = run.data.tags
    assert tags["mlflow.user"]
    assert tags["raybrain.dataset"] == "simulated"
    assert tags["version.mlflow"]
    assert "mlflow.source.name" in tags
    told = tags["mlflow.note.content"]
    assert f"get-artifact?path=grid.png&run_uuid={run.info.run_id}" in told
    assert re.search(r"\| two-way, pooled \| 50\.0% \|", told)
    assert "CC BY-SA 4.0" in told


def test_data_are_inputs_with_digest_and_schema(recorded):
    inputs = recorded.second.inputs.dataset_inputs
    contexts = {one.tags[0].value: one.dataset for one in inputs}
    assert set(contexts) == {"train", "validation", "test"}
    assert len({one.digest for one in contexts.values()}) == 3
    for context, dataset in contexts.items():
        assert dataset.name == f"simulated/subj01/{context}"
        columns = json.loads(dataset.schema)["mlflow_colspec"]
        assert {"betas", "image_id"} <= {one["name"] for one in columns}
        assert json.loads(dataset.profile)["num_rows"] > 0


def test_no_run_has_more_metrics_than_a_person_reads(recorded):
    tracker, parent = recorded.tracker, recorded.second
    where = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    stages = tracker.client.search_runs([parent.info.experiment_id], where)
    assert {"train latents", "train prompt_embeds", "predict", "reconstruct", "evaluate"} == {
        one.info.run_name for one in stages
    }
    for run in (parent, *stages):
        own = [name for name in run.data.metrics if not name.startswith("system/")]
        assert len(own) <= 30, run.info.run_name
        assert not [name for name in own if name.endswith((".low", ".high"))]
    (evaluated,) = (one for one in stages if one.info.run_name == "evaluate")
    text = tracker.client.download_artifacts(evaluated.info.run_id, "scores.json")
    table = json.loads(Path(text).read_text())
    assert {"row", "metric", "value", "low", "high"} <= set(table["columns"])
    assert any(name.startswith("system/cpu") for name in evaluated.data.metrics)


def test_a_network_is_seen_to_learn(finished, experiment_file):
    changes = ("name=learning", "decode.latents.decoder={kind: residual_mlp, width: 16}")
    assert cli.main(["train", str(experiment_file), *changes]) == 0
    tracker = tracking.open_tracker(finished.tracking, workspace=finished.workspace)
    other = load_experiment(experiment_file, *changes)
    parent = tracker.client.get_run(tracker.page_of(other).rpartition("/")[2].partition("?")[0])
    where = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' and tags.target = 'latents'"
    (run,) = tracker.client.search_runs([parent.info.experiment_id], where)
    history = tracker.client.get_metric_history(run.info.run_id, "validation_loss")
    assert [one.step for one in history] == [1, 2, 3]
    names = [one.path for one in tracker.client.list_artifacts(run.info.run_id, "images")]
    steps = {int(name.split("+step+")[1].split("+")[0]) for name in names}
    assert steps == {1, 2, 3}
    assert all(name.startswith("images/validation~") for name in names)


def test_the_champion_predicts_in_a_fresh_process_without_the_stores(recorded, tmp_path):
    name = "simulated-subj01-latents"
    version = recorded.tracker.client.get_model_version_by_alias(name, "champion")
    assert "What not to conclude" in version.description
    assert "R², test images" in version.description
    model = recorded.tracker.client.get_logged_model(version.tags["raybrain.model_id"])
    assert {"held_out_r2", "test_r2_mean"} <= {one.key for one in model.metrics}
    assert model.source_run_id == version.run_id
    code = f"""
import mlflow, numpy as np
model = mlflow.pyfunc.load_model("models:/{name}@champion")
betas = model.input_example
print(model.predict(np.asarray(betas, np.float32)).shape)
"""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": recorded.tracker.uri}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith("(2, ")


@dataclass
class Swept:
    parent: object
    children: list[object]
    """MLflow's runs of a sweep of two strengths."""
    wall: float
    """Seconds that the sweep took."""


@pytest.fixture(scope="module")
def swept(recorded, experiment_file):
    file = experiment_file.parent / "strengths.yaml"
    axes = {"reconstruct.strength": [0.4, 0.9]}
    tree = {"name": "strengths", "experiment": experiment_file.name, "axes": axes}
    file.write_text(yaml.safe_dump(tree))
    started = time.monotonic()
    assert cli.main(["sweep", str(file)]) == 0
    wall = time.monotonic() - started
    client = recorded.tracker.client
    experiment = client.get_experiment_by_name(tracking.sweeps.SWEEP)
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    return Swept(parent, [run for run in runs if run is not parent], wall)


@pytest.fixture(scope="module")
def pages(recorded, swept):
    if browser.missing():
        pytest.skip(browser.missing())
    with served_pages(recorded.tracker.uri, free_port()) as address, browser.opened() as chromium:
        chromium.look(width=1900, height=1200)
        yield chromium, address


def shows(chromium, *texts):
    for text in texts:
        assert chromium.wait("document.body.innerText.includes(arguments[0])", text), text


def test_the_list_is_filled_and_sorts_by_the_headline(pages, recorded):
    chromium, address = pages
    runs = sorted((recorded.first, recorded.second), key=lambda run: run.data.metrics["two_way"])
    order = urllib.parse.quote("metrics.`two_way`")
    for ascending in (True, False):
        chromium.go("about:blank")
        chromium.go(
            f"{address}/#/experiments/{recorded.first.info.experiment_id}/runs"
            f"?workflowType=machine_learning&compareRunsMode=TABLE&orderByKey={order}"
            f"&orderByAsc={str(ascending).lower()}"
        )
        shows(chromium, "small", "stronger", "simulated/subj01/train", "small.yaml")
        text = chromium.run("return document.body.innerText")
        wanted = [run.info.run_name for run in (runs if ascending else runs[::-1])]
        assert sorted(wanted, key=lambda name: re.search(rf"(?m)^{name}$", text).start()) == wanted


def test_two_runs_compared_show_what_differs(pages, recorded):
    chromium, address = pages
    ids = json.dumps([recorded.first.info.run_id, recorded.second.info.run_id])
    experiments = json.dumps([recorded.first.info.experiment_id])
    query = urllib.parse.urlencode({"runs": ids, "experiments": experiments})
    chromium.go(f"{address}/#/compare-runs?{query}")
    shows(chromium, *CHANGED, *CHANGED.values(), "two_way")


def test_the_run_page_shows_description_picture_and_grid(pages, recorded):
    chromium, address = pages
    run = recorded.second.info
    page = f"{address}/#/experiments/{run.experiment_id}/runs/{run.run_id}"
    chromium.go("about:blank")
    chromium.go(page)
    shows(chromium, "Simulated subject that looks at OpenMoji", "two-way, pooled")
    assert chromium.wait(
        "[...document.images].some(i => i.src.includes('grid.png') && i.naturalWidth > 90)"
    )
    chromium.go("about:blank")
    chromium.go(f"{page}/model-metrics?workflowType=machine_learning")
    assert chromium.wait(
        "[...document.images].some(i => i.naturalWidth > 200 && /path=images/.test(i.src))"
    )


def test_the_model_page_shows_description_and_alias(pages, recorded):
    chromium, address = pages
    chromium.go(f"{address}/#/models/simulated-subj01-latents")
    shows(chromium, "champion", "held out")


def test_a_sweep_is_browsed_as_one_parent_with_its_runs(pages, recorded, swept):
    chromium, address = pages
    seconds = (swept.parent.info.end_time - swept.parent.info.start_time) / 1000
    assert abs(seconds - swept.wall) < 0.05 * swept.wall + RAY_ENDS
    order = urllib.parse.quote("metrics.`two_way`")
    chromium.go("about:blank")
    chromium.go(
        f"{address}/#/experiments/{swept.parent.info.experiment_id}/runs"
        f"?workflowType=machine_learning&compareRunsMode=TABLE&orderByKey={order}&orderByAsc=false"
    )
    shows(chromium, *(run.info.run_name for run in (swept.parent, *swept.children)))
    chromium.go("about:blank")
    chromium.go(
        f"{address}/#/experiments/{swept.parent.info.experiment_id}/runs/{swept.parent.info.run_id}"
    )
    shows(chromium, *(run.data.params["reconstruct.strength"] for run in swept.children))


def test_the_runs_of_a_sweep_are_compared_by_what_varies(pages, swept):
    chromium, address = pages
    ids = json.dumps([run.info.run_id for run in swept.children])
    experiments = json.dumps([swept.parent.info.experiment_id])
    query = urllib.parse.urlencode({"runs": ids, "experiments": experiments})
    chromium.go("about:blank")
    chromium.go(f"{address}/#/compare-runs?{query}")
    shows(chromium, "Parallel Coordinates Plot", "reconstruct.strength", "0.4", "0.9", "two_way")


def test_the_comparison_opens_from_its_artifacts(pages, swept):
    chromium, address = pages
    chromium.go(
        f"{address}/get-artifact?path=comparison%2Fcomparison.html"
        f"&run_uuid={swept.parent.info.run_id}"
    )
    shows(chromium, "reconstruct.strength", "0.9")


def test_our_artifacts_bring_no_errors(pages):
    chromium, _ = pages
    ours = [
        text for text in chromium.complaints() if re.search("comparison|gallery|grid|images/", text)
    ]
    assert ours == []


def test_where_to_look_is_told(recorded, finished):
    told = browsing.where(finished)
    assert told.endswith(
        f"/#/experiments/{recorded.first.info.experiment_id}/runs/{recorded.first.info.run_id}"
        "?workflowType=machine_learning"
    )
