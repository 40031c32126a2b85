"""``reconstruct`` on a machine where workers die, the driver dies, and the disk fills up."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from raybrain import cli, outputs, store
from raybrain.stages import drawing
from tests.processes import children
from tests.small_run import load_experiment

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("default")]

SETTINGS = ("reconstruct.steps=100", "reconstruct.images_per_unit=1")
UNITS = 20  # ten images of two rows


@pytest.fixture(scope="module")
def predicted(finished, tmp_path_factory) -> Path:
    """Return a workspace in which the next stage is ``reconstruct``."""
    folder = tmp_path_factory.mktemp("predicted") / "workspace"
    shutil.copytree(finished.workspace, folder)
    for name in ("reconstructions.zarr", "report"):
        shutil.rmtree(folder / "runs" / finished.name / name)
    return folder


@pytest.fixture(scope="module")
def undisturbed(predicted, experiment_file, tmp_path_factory) -> dict[str, np.ndarray]:
    place = _copy(predicted, tmp_path_factory.mktemp("undisturbed"))
    assert cli.main(["reconstruct", str(experiment_file), *SETTINGS, place]) == 0
    return _drawn(experiment_file, place)


def _copy(workspace: Path, folder: Path) -> str:
    shutil.copytree(workspace, folder / "workspace", dirs_exist_ok=True)
    return f"workspace={folder}/workspace"


def _drawn(experiment_file: Path, place: str) -> dict[str, np.ndarray]:
    folder = outputs.reconstructions(load_experiment(experiment_file, *SETTINGS, place)).folder
    return {row: store.read_rows(folder, row) for row in (drawing.SYSTEM, drawing.CEILING)}


def _files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return the units that are written, and what changes when one is written again."""
    found = {}
    for file in folder.glob("*/c/*/0/0/0/0"):
        stat = file.stat()
        found[file] = (stat.st_ino, stat.st_mtime_ns)
    return found


def _wait_for(number: int, folder: Path, *, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 200
    while len(_files(folder)) < number:
        assert process.poll() is None, "the stage ended before it could be disturbed"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_worker_and_a_killed_driver_cost_only_what_was_in_flight(
    predicted, undisturbed, experiment_file, tmp_path
):
    place = _copy(predicted, tmp_path)
    folder = Path(outputs.reconstructions(load_experiment(experiment_file, place)).folder)
    words = ["reconstruct", str(experiment_file), *SETTINGS, place]
    command = [sys.executable, "-m", "raybrain.cli", *words]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    _wait_for(3, folder, process=process)
    workers = children(process, begins="ray::MapWorker")
    assert len(workers) == 2
    before = _files(folder)
    workers[0].kill()
    _wait_for(len(before) + 4, folder, process=process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    # The surviving workers may finish what they are drawing before they notice.
    psutil.wait_procs(workers, timeout=60)
    left = _files(folder)
    assert {file: left[file] for file in before} == before
    assert len(before) + 4 <= len(left) < UNITS
    assert cli.main(words) == 0
    after = _files(folder)
    assert len(after) == UNITS
    assert {file: after[file] for file in left} == left
    for row, images in _drawn(experiment_file, place).items():
        np.testing.assert_array_equal(images, undisturbed[row])


def test_a_full_disk_is_one_sentence_and_what_was_drawn_stays(
    predicted, undisturbed, experiment_file, tmp_path, capsys
):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here: needs root")
    try:
        place = _copy(predicted, disk)
        runs = f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"  # on another disk, as on a server
        words = ["reconstruct", str(experiment_file), *SETTINGS, place, runs]
        free = shutil.disk_usage(disk).free
        filler = disk / "filler"
        filler.write_bytes(b"\1" * (free - 96 * 1024))
        capsys.readouterr()
        assert cli.main(words) == 2
        said = [line for line in capsys.readouterr().err.splitlines() if "raybrain:" in line]
        assert len(said) == 1
        assert "the disk is full" in said[0]
        folder = Path(outputs.reconstructions(load_experiment(experiment_file, place)).folder)
        left = _files(folder)
        assert 0 < len(left) < UNITS
        filler.unlink()
        assert cli.main(words) == 0
        after = _files(folder)
        assert {file: after[file] for file in left} == left
        for row, images in _drawn(experiment_file, place).items():
            np.testing.assert_array_equal(images, undisturbed[row])
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_pictures_are_written_as_they_were_drawn(finished, experiment_file):
    from PIL import Image

    assert cli.main(["export", str(experiment_file)]) == 0
    folder = Path(outputs.pictures(finished).folder)
    drawn = outputs.reconstructions(finished).folder
    for row in (drawing.SYSTEM, drawing.CEILING):
        images = store.read_rows(drawn, row)
        assert len(list((folder / row).glob("*.png"))) == images.shape[0] * images.shape[1]
        for image_id, samples in zip(store.row_ids(drawn), images, strict=True):
            last = len(samples) - 1
            found = np.asarray(Image.open(folder / row / f"{image_id}_{last}.png"))
            np.testing.assert_array_equal(found, samples[last])


def test_the_brain_chooses_among_the_samples(finished, experiment_file):
    change = ("evaluate.rerank=true", "name=reranked")
    assert cli.main(["run", str(experiment_file), *change]) == 0
    from raybrain.evaluation import RERANKED, SYSTEM, load_table

    report = outputs.report(load_experiment(experiment_file, *change)).folder
    table = load_table(Path(report, "scores.npz"))
    chosen, every = table.cells[RERANKED, "pixcorr"], table.cells[SYSTEM, "pixcorr"]
    assert chosen.shape == (1, 10)
    # Each image's choice is one of its samples.
    assert np.isclose(chosen, every, atol=1e-6).any(axis=0).all()


def test_an_ablation_compares_the_run_without_each_roi_and_with_it_alone(
    finished, experiment_file, capsys
):
    changes = (
        "name=ablated",
        "decode.latents.rois=[V1, V2]",
        "reconstruct.samples=1",
        "reconstruct.references=[]",
    )
    assert cli.main(["ablate", str(experiment_file), *changes]) == 0
    printed = capsys.readouterr().out
    folder = Path(finished.workspace) / "runs" / "ablated" / "ablation"
    found = pd.read_csv(folder / "comparison.csv")
    # Of two ROIs, without the one is with the other alone: each is drawn once.
    assert set(found["run"]) == {"ablated-without-V1", "ablated-without-V2"}
    assert "ablated-without-V1" in printed
    assert cli.main(["ablate", str(experiment_file)]) == 2
    assert "list ROIs singly" in capsys.readouterr().err
