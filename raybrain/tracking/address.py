"""Where runs are recorded: a server, a database, or a file in the workspace."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import shlex
import shutil
import sqlite3
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from raybrain.config import InputError, Tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient

PORT = 5000
"""Of ``mlflow ui``, unless it is told another."""
FORMER = "mlruns"
"""Folder of MLflow's former store of files, which it no longer opens."""
SPOOL = "mlflow-waiting"
DATABASE = "mlflow.db"
ARTIFACTS = "mlflow-artifacts"


def page_of(mlflow_experiment: str, run_id: str) -> str:
    """Return the path of a run's page below the address of MLflow.

    Among the pages for training: in those for chat agents, where MLflow begins, the same run is
    listed as an evaluation.
    """
    return f"/#/experiments/{mlflow_experiment}/runs/{run_id}?workflowType=machine_learning"


def where_to_look(settings: Tracking, *, workspace: str, page: str | None = None) -> str:
    """Return the address of a run's page, or what to type first where no server was given.

    Parameters
    ----------
    settings : Tracking
    workspace : str
    page : str, optional
        From `page_of`; the front page when not given.
    """
    uri = uri_of(settings, workspace=workspace)
    if is_server(uri):
        return f"{uri.rstrip('/')}{page or ''}"
    command = shlex.join(ui_command(uri))
    return f"{command}, then http://127.0.0.1:{PORT}{page}" if page else command


def ui_command(uri: str, *, port: int | None = None) -> list[str]:
    """Return the words that start MLflow's pages on the runs at ``uri``.

    Parameters
    ----------
    uri : str
        Address of the runs.
    port : int, optional
        Where the pages are served; MLflow's own when not given.
    """
    beside = Path(sys.executable).parent / "mlflow"
    command = beside if beside.exists() and shutil.which("mlflow") != str(beside) else "mlflow"
    words = [str(command), "ui", "--workers", "1", "--backend-store-uri", uri]
    return words if port is None else [*words, "--port", str(port)]


def is_server(uri: str) -> bool:
    """Return whether runs are recorded by a tracking server, which has the pages as well."""
    return uri.startswith(("http://", "https://"))


def spool_of(uri: str, *, workspace: str) -> Path:
    """Return the folder for what waits to be sent: in the workspace, if that is a folder."""
    name = hashlib.sha256(uri.encode()).hexdigest()[:8]
    if "://" not in workspace:
        return Path(workspace).absolute() / SPOOL / name
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "raybrain" / SPOOL / name


def uri_of(settings: Tracking, *, workspace: str) -> str:
    """Return the address of the runs, absolute where it is a file.

    Raises
    ------
    InputError
        If the workspace is a bucket and no address is given, or what is given is no address.
    """
    given = settings.uri
    if given is None:
        if "://" in workspace:
            raise InputError(
                f"runs cannot be recorded in a database at {workspace}; give a tracking server: "
                f"tracking.uri=http://..."
            )
        return f"sqlite:///{Path(workspace).absolute() / DATABASE}"
    if given.startswith("sqlite:///"):
        return f"sqlite:///{Path(given.removeprefix('sqlite:///')).absolute()}"
    if "://" not in given:
        raise InputError(
            f"tracking.uri is '{given}', which is no address; write http://server:5000 or "
            f"sqlite:///{Path(given).absolute()}"
        )
    return given


def artifacts_of(uri: str, *, workspace: str) -> str | None:
    """Return where artifacts go, or None where a tracking server decides."""
    if is_server(uri):
        return None
    return f"{workspace if '://' in workspace else Path(workspace).absolute()}/{ARTIFACTS}"


@functools.cache
def client_of(uri: str) -> MlflowClient:
    """Return a client of a database that exists and has answered; one per process."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # MLflow tries an address for minutes before it says that nobody is there; what cannot be sent
    # waits on disk instead.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The ``noload``")  # MLflow's own
            if uri.startswith("sqlite:///"):
                _make_database(Path(uri.removeprefix("sqlite:///")))
            client = MlflowClient(tracking_uri=uri)
            client.search_experiments(max_results=1)
    except MlflowException as error:
        if "out-of-date database schema" in str(error):
            raise InputError(
                f"the runs at {uri} were recorded by an older MLflow; type: "
                f"raybrain upgrade with this experiment, which keeps a copy of a database file"
            ) from None
        reason = str(error).strip().splitlines()[0][:200]
        raise InputError(f"no MLflow answers at {uri} ({reason}); check tracking.uri") from None
    return client


def _make_database(file: Path) -> None:
    """Create a database with all of MLflow's tables, which takes seconds, in one step."""
    from mlflow import MlflowClient

    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{file.name}-", dir=file.parent) as folder:
        made, whole = Path(folder) / "made.db", Path(folder) / "whole.db"
        MlflowClient(tracking_uri=f"sqlite:///{made}").search_experiments(max_results=1)
        shutil.copyfile(made, whole)  # MLflow keeps its connection to the file it made
        with contextlib.suppress(FileExistsError):
            os.link(whole, file)  # unlike a rename, leaves a database alone that came first


def upgrade(settings: Tracking, *, workspace: str) -> str:
    """Bring a database that an older MLflow made up to date, and return what was done.

    A database file is copied first. Runs in MLflow's former folders of files, ``mlruns`` in the
    workspace, are read into the database where there is none yet.

    Raises
    ------
    raybrain.config.InputError
        If runs are recorded by a server, whose keeper does this, or there is nothing to upgrade.
    """
    uri = uri_of(settings, workspace=workspace)
    if is_server(uri):
        raise InputError(
            f"the runs at {uri} are kept by a server; whoever keeps it types: mlflow db upgrade "
            f"with the address of its database"
        )
    file = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
    former = None if "://" in workspace else Path(workspace).absolute() / FORMER
    if file is not None and not file.exists():
        if former is None or not former.is_dir():
            raise InputError(f"there are no runs at {uri} to bring up to date")
        from mlflow.store.fs2db import migrate

        migrate(former, uri, progress=False)
        return f"runs     read from {former} into {uri}; the folder is as it was"
    kept = ""
    if file is not None:
        copy = file.with_name(f"{file.name}.{time.strftime('%Y%m%d-%H%M%S')}")
        with (
            contextlib.closing(sqlite3.connect(file)) as before,
            contextlib.closing(sqlite3.connect(copy)) as after,
        ):
            before.backup(after)
        kept = f"; as it was, it is at {copy}"
    from mlflow.store.db.utils import _upgrade_db, create_sqlalchemy_engine_with_retry

    engine = create_sqlalchemy_engine_with_retry(uri)
    try:
        _upgrade_db(engine)
    finally:
        engine.dispose()
    return f"runs     {uri} is up to date{kept}"
