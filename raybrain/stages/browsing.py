"""``open``: the experiment's run in MLflow's pages."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.request
import webbrowser
from typing import TYPE_CHECKING

from raybrain import outputs, places, tracking
from raybrain.config import InputError
from raybrain.seal import digest_of
from raybrain.stages import say

if TYPE_CHECKING:
    from raybrain.config import Experiment

PAGE = "page.json"
PATIENCE = 180
"""Seconds that MLflow's pages may take to answer."""


def where(experiment: Experiment) -> str:
    """Return the address of the run's page, or what to type first where there is no server.

    The page is looked up once and then kept beside the run's outputs, for opening MLflow's store
    takes longer than a command that finds everything sealed.
    """
    settings, workspace = experiment.tracking, experiment.workspace
    file = f"{outputs.run_folder(experiment)}/{PAGE}"
    about = [tracking.uri_of(settings, workspace=workspace), tracking.identity_of(experiment)]
    run = digest_of(about)
    page = _kept(file, run=run)
    if page is None:
        page = _page(experiment)
        if page is not None:
            places.write_text(file, json.dumps({"run": run, "page": page}) + "\n")
    return tracking.where_to_look(settings, workspace=workspace, page=page)


def _kept(file: str, *, run: str) -> str | None:
    """Return the page that was found before, if it is of the same run at the same place."""
    try:
        kept = json.loads(places.read_text(file))
        return str(kept["page"]) if kept["run"] == run else None
    except (OSError, ValueError, KeyError, TypeError):  # absent, or damaged by anything
        return None


def browse(experiment: Experiment) -> None:
    """Open the run's page; without a server, show MLflow's own pages until Ctrl-C.

    Raises
    ------
    raybrain.config.InputError
        If nothing was recorded of the experiment, or the pages do not answer.
    """
    settings, workspace = experiment.tracking, experiment.workspace
    uri = tracking.uri_of(settings, workspace=workspace)
    page = _page(experiment)
    if page is None:
        raise InputError(
            f"no run of '{experiment.name}' with these settings is recorded at {uri}; type "
            f"'raybrain run' with this experiment first"
        )
    if tracking.is_server(uri):
        _open(f"{uri.rstrip('/')}{page}")
        return
    port = _free_port()
    process = subprocess.Popen(tracking.ui_command(uri, port=port), stdout=subprocess.DEVNULL)
    try:
        _wait(process, f"http://127.0.0.1:{port}/health")
        _open(f"http://127.0.0.1:{port}{page}")
        print("Ctrl-C ends MLflow's pages", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            process.wait()
    finally:
        process.terminate()
        process.wait()


def _page(experiment: Experiment) -> str | None:
    tracker = tracking.open_tracker(experiment.tracking, workspace=experiment.workspace)
    return tracker.page_of(experiment)


def _open(address: str) -> None:
    print(f"runs     {address}", flush=True)
    if sys.stdout.isatty():  # a job or a pipe has nobody who would look
        webbrowser.open(address)


def _free_port() -> int:
    for wanted in (tracking.PORT, 0):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", wanted))
            return int(listener.getsockname()[1])
    raise InputError("no port of this machine is free for MLflow's pages")


def _wait(process: subprocess.Popen[bytes], address: str) -> None:
    say("open", "starts MLflow's pages, which takes some seconds")
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
            return
        time.sleep(0.3)
    raise InputError(
        f"MLflow's pages did not start; to see why, type: {' '.join(map(str, process.args))}"  # type: ignore[arg-type]
    )
