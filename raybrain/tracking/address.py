"""Where runs are recorded: a server, a database, or a file in the workspace."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shlex
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from raybrain.config import InputError, Tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient

DATABASE = "mlflow.db"
ARTIFACTS = "mlflow-artifacts"


def ui_command(settings: Tracking, *, workspace: str) -> str:
    """Return what to type, or where to go, to look at the runs."""
    uri = uri_of(settings, workspace=workspace)
    if uri.startswith(("http://", "https://")):
        return uri
    beside = Path(sys.executable).parent / "mlflow"
    command = beside if beside.exists() and shutil.which("mlflow") != str(beside) else "mlflow"
    return f"{shlex.quote(str(command))} ui --workers 1 --backend-store-uri {shlex.quote(uri)}"


def uri_of(settings: Tracking, *, workspace: str) -> str:
    """Return the address of the runs, absolute where it is a file."""
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
    if uri.startswith(("http://", "https://")):
        return None
    return f"{workspace if '://' in workspace else Path(workspace).absolute()}/{ARTIFACTS}"


@functools.cache
def client_of(uri: str) -> MlflowClient:
    """Return a client of a database that exists and has answered; one per process."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        with _few_retries(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The ``noload``")  # MLflow's own
            if uri.startswith("sqlite:///"):
                _make_database(Path(uri.removeprefix("sqlite:///")))
            client = MlflowClient(tracking_uri=uri)
            client.search_experiments(max_results=1)
    except MlflowException as error:
        if "out-of-date database schema" in str(error):
            raise InputError(
                f"the runs at {uri} were recorded by an older MLflow; "
                f"keep a copy and type: mlflow db upgrade {uri}"
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


@contextlib.contextmanager
def _few_retries() -> Iterator[None]:
    # MLflow tries an address for minutes before it says that nobody is there.
    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    before = os.environ.get(name)
    os.environ[name] = before or "2"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
