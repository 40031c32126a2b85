"""``train`` through Ray Train: groups, deaths, memory, several subjects, and the model registry."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from raybrain import cli, outputs, tracking
from raybrain.decoders import load_decoder
from raybrain.stages import fitting_data, fitting_networks
from tests.small_run import load_experiment

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("default")]

TARGET = "prompt_embeds"
NETWORK = "decode.latents.decoder={kind: residual_mlp, width: 16, depth: 1}"


def _train(experiment_file: Path, *changes: str):
    assert cli.main(["train", str(experiment_file), *changes]) == 0
    return load_experiment(experiment_file, *changes)


def _folder(experiment, target: str = TARGET) -> Path:
    return Path(outputs.decoder(experiment, target).folder)


def _losses(experiment, target: str = TARGET) -> dict[int, float]:
    """Return the validation loss of every epoch, the last report of each."""
    lines = (_folder(experiment, target) / "checkpoints" / "reports.jsonl").read_text()
    reports = [json.loads(line) for line in lines.splitlines()]
    return {report["epoch"]: report["validation_loss"] for report in reports}


def _weights(experiment, target: str = TARGET) -> bytes:
    return (_folder(experiment, target) / fitting_data.DECODER / "decoder.safetensors").read_bytes()


def test_two_workers_end_where_one_does(finished, experiment_file):
    both = _train(experiment_file, "name=group", "resources.train={min: 2, max: 2}")
    alone, together = _losses(finished), _losses(both)
    assert alone.keys() == together.keys()
    for epoch, loss in alone.items():
        assert together[epoch] == pytest.approx(loss, rel=1e-3)


def _children(process: subprocess.Popen, title: str) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.cmdline() and child.cmdline()[0].startswith(title):
                found.append(child)
        except psutil.Error:
            continue
    return found


def test_a_killed_worker_and_a_killed_driver_change_nothing(finished, experiment_file):
    # Large and slow enough to be hit in the middle.
    changes = (
        "decode.prompt_embeds.decoder={kind: residual_mlp, width: 1024, depth: 6}",
        "training.epochs=14",
        "training.batch_size=4",
    )
    undisturbed = _train(experiment_file, *changes, "name=undisturbed")
    words = ["train", str(experiment_file), *changes, "name=disturbed"]
    disturbed = load_experiment(experiment_file, *changes, "name=disturbed")
    reports = _folder(disturbed) / "checkpoints" / "reports.jsonl"
    command = [sys.executable, "-m", "raybrain.cli", *words]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)

    def epochs() -> list[int]:
        if not reports.exists():
            return []
        return [json.loads(line)["epoch"] for line in reports.read_text().splitlines()]

    def wait_for(number: int) -> None:
        deadline = time.monotonic() + 200
        while len(epochs()) < number:
            assert process.poll() is None, "the stage ended before it could be disturbed"
            assert time.monotonic() < deadline
            time.sleep(0.01)

    wait_for(3)
    (worker,) = _children(process, "ray::RayTrainWorker")
    worker.kill()
    killed_after = epochs()
    wait_for(len(killed_after) + 2)
    resumed = epochs()[len(killed_after)]
    assert killed_after[-1] - 1 <= resumed <= killed_after[-1] + 2
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = epochs()
    assert before[-1] < 14
    assert cli.main(words) == 0
    again = epochs()[len(before)]
    assert before[-1] - 1 <= again <= before[-1] + 2
    assert _losses(disturbed) == _losses(undisturbed)
    assert _weights(disturbed) == _weights(undisturbed)


def test_data_larger_than_the_memory_are_streamed_from_disk(finished, experiment_file, capsys):
    experiment = load_experiment(experiment_file, "training.memory=1e-4")
    decode = experiment.decode.prompt_embeds
    data = fitting_data.Data.of(experiment, TARGET, decode)
    assert data.exceeds_memory
    held = fitting_networks._task(data)
    streamed = fitting_networks._task_on_disk(
        data, folder=str(Path(experiment.workspace) / "rows.zarr")
    )
    assert len(streamed.betas.names) > 1  # in several blocks of voxels
    np.testing.assert_allclose(streamed.betas[:], held.betas[:], rtol=1e-6)
    np.testing.assert_allclose(streamed.targets[:], held.targets[:], rtol=1e-6)
    np.testing.assert_array_equal(streamed.voxels, held.voxels)
    np.testing.assert_allclose(streamed.validation_betas, held.validation_betas, rtol=1e-6)
    done = _train(experiment_file, "training.memory=1e-4", "name=streamed")
    assert "are streamed" in capsys.readouterr().out
    assert not (_folder(done) / fitting_networks.ROWS).exists()
    # Another order of rows, the same minimum.
    whole, parts = min(_losses(finished).values()), min(_losses(done).values())
    assert parts == pytest.approx(whole, rel=0.05)


def test_two_networks_train_side_by_side_to_the_same_bytes(finished, experiment_file):
    changes = ("name=several", NETWORK)
    several = _train(experiment_file, *changes)
    assert _weights(several) == _weights(finished)
    again = _train(
        experiment_file, "name=alone", NETWORK, "decode.prompt_embeds.decoder={kind: ridge}"
    )
    assert _weights(again, "latents") == _weights(several, "latents")


def test_subjects_share_a_trunk_and_each_gets_a_decoder(finished, experiment_file):
    changes = ("name=shared", "subjects=[subj01, subj02]")
    for stage in ("simulate", "ingest", "features", "train", "predict"):
        assert cli.main([stage, str(experiment_file), *changes]) == 0
    shared = load_experiment(experiment_file, *changes)
    own = load_decoder(_folder(shared) / fitting_data.DECODER)
    other = load_decoder(_folder(shared) / fitting_data.OTHERS / "subj02")
    trunk = [name for name in own.parameters if name.startswith("trunk.")]
    assert trunk
    for name in trunk:
        np.testing.assert_array_equal(own.parameters[name], other.parameters[name])
    assert not np.array_equal(own.parameters["enter.weight"], other.parameters["enter.weight"])


def test_a_registered_decoder_predicts_through_mlflow(finished, experiment_file, tmp_path):
    tracker = tracking.open_tracker(finished.tracking, workspace=finished.workspace)
    for target in ("latents", TARGET):
        name = f"simulated-subj01-{target}"
        seal = outputs.decoder(finished, target).seal.digest
        found = tracker.client.search_model_versions(f"name = '{name}'")
        (version, *_) = (one for one in found if one.tags["seal"] == seal)
        tags = tracker.client.get_run(version.run_id).data.tags
        assert tags["model"] == f"models:/{name}/{version.version}"
        decode = getattr(finished.decode, target)
        data = fitting_data.Data.of(finished, target, decode)
        betas = data.opened.first_betas(3, voxels=data.mask)
        session = int(data.session[0])
        question = tmp_path / f"{target}.json"
        question.write_text(json.dumps({"inputs": betas.tolist(), "params": {"session": session}}))
        answer = tmp_path / f"{target}-answer.json"
        command = [
            str(Path(sys.executable).with_name("mlflow")), "models", "predict",
            "-m", f"models:/{name}/{version.version}", "--env-manager", "local",
            "-i", str(question), "-o", str(answer),
        ]  # fmt: skip
        environment = {**os.environ, "MLFLOW_TRACKING_URI": tracker.uri}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        decoder = load_decoder(_folder(finished, target) / fitting_data.DECODER)
        wanted = decoder.predict(
            betas, session=np.full(3, session), image_id=np.arange(3), average=False
        )
        found = np.array(json.loads(answer.read_text())["predictions"], np.float32)
        np.testing.assert_allclose(found, wanted.values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "section",
    [
        "{kind: kernel_ridge, ceiling_power: 1.0, weights: {V1: 0.5}}",
        "{kind: cnn_text}",
        "{kind: cnn_image}",
        "{kind: vae}",
        "{kind: gcn}",
        "{kind: roi_graph, width: 16}",
    ],
)
def test_every_decoder_is_told_beside_ridge_and_the_mean(finished, experiment_file, section):
    kind = section.split("kind: ")[1].split("}")[0].split(",")[0]
    changes = (
        f"name={kind}",
        f"decode.latents.decoder={section}",
        "decode.latents.rois=[V1, V2, V3, hV4]",
        "reconstruct.references=[]",
        "training.lr=1e-3",
    )
    assert cli.main(["run", str(experiment_file), *changes]) == 0
    experiment = load_experiment(experiment_file, *changes)
    report = Path(outputs.report(experiment).folder)
    numbers = json.loads((report / "decoders.json").read_text())["latents"]
    assert {"mse", "mse_of_mean", "mse_of_ridge"} <= numbers.keys()
    assert f"{numbers['mse_of_ridge']:.4f}" in (report / "scores.txt").read_text()
