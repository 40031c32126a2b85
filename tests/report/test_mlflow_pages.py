"""What a person sees who browses the runs: MLflow's own pages in a real browser."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from raybrain import tracking
from raybrain.config import Tracking
from raybrain.report import image_grid, write_gallery
from tests.evaluation.made import made_table
from tests.report import browser
from tests.report.test_report import made_pictures

pytestmark = pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())

IMAGES = 40
TRIALS = tracking.Described(
    name="simulated/subj01/train",
    digest="0123abcd" * 8,
    source="/data",
    context="train",
    columns={"betas": ("float", (-1, 120)), "image_id": ("string", (-1,))},
    counts={"trials": 90},
)
EXPERIMENT = SimpleNamespace(name="ventral-only", dataset="simulated", subject="subj01")


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """Return a workspace with an experiment, its stages, curves, pictures and a gallery."""
    workspace = tmp_path_factory.mktemp("workspace")
    tracker = tracking.open_tracker(Tracking(), workspace=str(workspace))
    parent = tracker.experiment_run(EXPERIMENT)
    settings = {"decode.latents.rois": ["ventral"], "training.lr": 3e-4}
    with tracker.stage(parent, "train", settings=settings) as train:
        train.log_curve([(epoch, {"validation_loss": 1 / epoch}) for epoch in range(1, 9)])
        train.log_datasets([TRIALS])
    pictures = made_pictures(images=IMAGES)
    page = write_gallery(
        workspace / "gallery.html",
        title="trial",
        table=made_table(images=IMAGES),
        seen=pictures.seen,
        rows=pictures.rows,
    )
    grid = workspace / "grid.png"
    image_grid({"seen": pictures.seen[:4]}, per_line=4, captions=["a", "b", "c", "d"], path=grid)
    with tracker.stage(parent, "evaluate", settings=settings) as evaluate:
        evaluate.log_metrics({"system.two_way": 0.851})
        evaluate.log_artifact(page)
        evaluate.log_artifact(grid)
    tracker.close()
    return SimpleNamespace(tracker=tracker, parent=parent, train=train, evaluate=evaluate)


@pytest.fixture(scope="module")
def server(logged):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("mlflow")), "ui", "--workers", "1",
        "--backend-store-uri", logged.tracker.uri, "--port", str(port),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/#/experiments/{logged.parent.mlflow_experiment}"
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def chromium():
    with browser.opened() as opened:
        opened.look(width=1600, height=1000)
        yield opened


def _shows(chromium, *texts):
    for text in texts:
        assert chromium.wait("document.body.innerText.includes(arguments[0])", text), text


def _keep(chromium, name):
    """Keep a picture of the page where someone wants to look at it."""
    if folder := os.environ.get("RAYBRAIN_SCREENSHOTS"):
        chromium.screenshot(Path(folder) / f"mlflow-{name}.png")


def test_the_experiment_lists_its_runs_by_stage(chromium, server):
    chromium.go(f"{server}/runs?compareRunsMode=TABLE")
    _shows(chromium, "simulated", "ventral-only")
    _keep(chromium, "runs")


def test_a_run_shows_settings_by_address_its_curve_and_its_data(chromium, server, logged):
    chromium.go(f"{server}/runs/{logged.train.run_id}")
    _shows(chromium, "decode.latents.rois", "training.lr", "validation_loss", "simulated/subj01")
    _keep(chromium, "run")


def test_pictures_and_gallery_are_rendered(chromium, server, logged):
    chromium.go(f"{server}/runs/{logged.evaluate.run_id}/artifacts/grid.png")
    assert chromium.wait(
        "[...document.images].some(i => i.naturalWidth > 90 && i.src.startsWith('blob:'))"
    )
    chromium.go("about:blank")  # the page chooses an artifact when it is opened anew
    chromium.go(f"{server}/runs/{logged.evaluate.run_id}/artifacts/gallery.html")
    assert chromium.wait("document.querySelector('iframe')")
    chromium.enter("iframe")
    chromium.run("document.getElementById('gallery').scrollIntoView()")
    assert chromium.wait("document.querySelector('.row img')?.naturalWidth === 24")
    chromium.enter(None)
    _keep(chromium, "gallery")


def test_our_pages_bring_no_errors(chromium):
    # MLflow's own pages ask for parts that an offline server has not; ours must not add any.
    ours = [text for text in chromium.complaints() if re.search("gallery|grid", text)]
    assert ours == []
