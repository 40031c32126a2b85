"""Everything that is written to MLflow: who ran what, with which settings, and what came of it.

One MLflow experiment per dataset; one parent run per raybrain experiment, found again when it is
rerun; below it one run per stage. The client is always told which run it writes to: MLflow's
notion of an active run depends on the process and on the environment.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from raybrain.config import InputError, Tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient

DATABASE = "mlflow.db"
ARTIFACTS = "mlflow-artifacts"
PARENT = "mlflow.parentRunId"
NAME = "raybrain.experiment"
SUBJECT = "raybrain.subject"
STAGE = "raybrain.stage"
OWNER = "raybrain.owner"
ERROR = "raybrain.error"
METRICS_PER_BATCH = 1000  # MLflow's limits
PARAMS_PER_BATCH = 100
LONGEST_PARAM = 6000
LONGEST_TAG = 5000


def open_tracker(settings: Tracking, *, workspace: str) -> Tracker:
    """Return a tracker whose database exists and has answered.

    Without ``settings.uri`` this is a sqlite file in the workspace, made here and whole before
    anyone else can see it: several processes that use a new database at once would break it.

    Raises
    ------
    raybrain.config.InputError
        If the server does not answer or the address cannot be one.
    """
    uri = _uri(settings, workspace=workspace)
    return Tracker(client=_client(uri), uri=uri, artifacts=_artifacts(uri, workspace=workspace))


def ui_command(settings: Tracking, *, workspace: str) -> str:
    """Return what to type, or where to go, to look at the runs."""
    uri = _uri(settings, workspace=workspace)
    if uri.startswith(("http://", "https://")):
        return uri
    beside = Path(sys.executable).parent / "mlflow"
    command = beside if beside.exists() and shutil.which("mlflow") != str(beside) else "mlflow"
    return f"{command} ui --workers 1 --backend-store-uri {uri}"


@dataclass(frozen=True)
class Run:
    """One run in MLflow, written to by its id."""

    client: MlflowClient
    run_id: str
    mlflow_experiment: str
    """MLflow's id of the dataset's experiment."""

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record values at ``step``, all in one request."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        values = [Metric(name, float(value), now, step) for name, value in metrics.items()]
        for start in range(0, len(values), METRICS_PER_BATCH):
            self.client.log_batch(self.run_id, metrics=values[start : start + METRICS_PER_BATCH])

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        """Record settings by dotted address; MLflow does not let them change afterwards."""
        from mlflow.entities import Param

        params = [Param(address, str(value)[:LONGEST_PARAM]) for address, value in settings.items()]
        for start in range(0, len(params), PARAMS_PER_BATCH):
            self.client.log_batch(self.run_id, params=params[start : start + PARAMS_PER_BATCH])

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Keep a copy of a file, or of a whole folder, with the run."""
        if Path(path).is_dir():
            self.client.log_artifacts(self.run_id, str(path), artifact_path=folder)
        else:
            self.client.log_artifact(self.run_id, str(path), artifact_path=folder)

    def log_text(self, text: str, path: str) -> None:
        """Keep ``text`` as a file of the run."""
        self.client.log_text(self.run_id, text, path)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags; earlier values of the same names are replaced."""
        from mlflow.entities import RunTag

        values = [RunTag(name, str(value)[:LONGEST_TAG]) for name, value in tags.items()]
        for start in range(0, len(values), PARAMS_PER_BATCH):
            self.client.log_batch(self.run_id, tags=values[start : start + PARAMS_PER_BATCH])

    def end(self, status: str) -> None:
        """Close the run as FINISHED, FAILED or KILLED."""
        self.client.set_terminated(self.run_id, status)


class Named(Protocol):
    """What an experiment is found by, such as `raybrain.config.Experiment`."""

    @property
    def name(self) -> str:
        """What the user calls it."""

    @property
    def dataset(self) -> str:
        """Name or entry file of the dataset."""

    @property
    def subject(self) -> str:
        """Whose data it is about."""


@dataclass(frozen=True)
class Tracker:
    """Where the runs of a workspace are recorded."""

    client: MlflowClient
    uri: str
    artifacts: str | None
    """Where artifacts go; None where a tracking server decides."""

    def experiment_run(self, experiment: Named) -> Run:
        """Return the parent of all stages of ``experiment``, the same one as last time."""
        mlflow_experiment = self._mlflow_experiment(Path(experiment.dataset).stem)
        tags = {NAME: experiment.name, SUBJECT: experiment.subject}
        found = self._runs(mlflow_experiment, tags={**tags, STAGE: "experiment"})
        if found:
            return Run(self.client, found[0], mlflow_experiment)
        run = self._start(
            mlflow_experiment, title=experiment.name, tags={**tags, STAGE: "experiment"}
        )
        run.end("FINISHED")  # its stages are what runs
        return run

    @contextlib.contextmanager
    def stage(
        self, parent: Run, stage: str, *, settings: Mapping[str, Any], title: str | None = None
    ) -> Iterator[Run]:
        """Keep a run for one stage open inside the block, and close it whatever happens.

        FINISHED at the end of the block; FAILED with the message as a tag and the traceback as an
        artifact if it raises; KILLED on Ctrl-C and SIGTERM. A run of this stage that was left
        open by a process that is gone is closed as KILLED first.

        Parameters
        ----------
        parent : Run
            From `experiment_run`.
        stage : str
            The verb.
        settings : mapping
            Dotted address -> value, recorded as parameters.
        title : str, optional
            Name to show; the stage when not given.
        """
        tags = {PARENT: parent.run_id, STAGE: stage}
        self._close_abandoned(parent.mlflow_experiment, tags=tags)
        run = self._start(parent.mlflow_experiment, title=title or stage, tags=tags)
        try:
            run.log_settings(settings)
            yield run
        except Exception as error:
            with contextlib.suppress(Exception):  # the stage's own error matters more
                run.set_tags({ERROR: f"{type(error).__name__}: {error}"})
                run.log_text("".join(traceback.format_exception(error)), "traceback.txt")
            with contextlib.suppress(Exception):
                run.end("FAILED")
            raise
        except BaseException:
            with contextlib.suppress(Exception):
                run.end("KILLED")
            raise
        run.end("FINISHED")

    def _mlflow_experiment(self, dataset: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(dataset)
        if found is None:
            location = None if self.artifacts is None else f"{self.artifacts}/{dataset}"
            try:
                return self.client.create_experiment(dataset, artifact_location=location)
            except MlflowException:
                found = self.client.get_experiment_by_name(dataset)  # another process was faster
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise InputError(
                f"the MLflow experiment '{dataset}' at {self.uri} was deleted; type: "
                f"mlflow experiments restore --experiment-id {found.experiment_id}"
            )
        return found.experiment_id

    def _runs(
        self, mlflow_experiment: str, *, tags: Mapping[str, str], status: str = ""
    ) -> list[str]:
        wanted = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
        if status:
            wanted.append(f"attributes.status = '{status}'")
        found = self.client.search_runs([mlflow_experiment], " and ".join(wanted))
        return [run.info.run_id for run in found]

    def _start(self, mlflow_experiment: str, *, title: str, tags: Mapping[str, str]) -> Run:
        run = self.client.create_run(
            mlflow_experiment, run_name=title, tags={**tags, OWNER: _owner()}
        )
        return Run(self.client, run.info.run_id, mlflow_experiment)

    def _close_abandoned(self, mlflow_experiment: str, *, tags: Mapping[str, str]) -> None:
        for run_id in self._runs(mlflow_experiment, tags=tags, status="RUNNING"):
            owner = self.client.get_run(run_id).data.tags.get(OWNER, "")
            if not _alive(owner):
                run = Run(self.client, run_id, mlflow_experiment)
                run.set_tags({ERROR: "the process ended without closing this run"})
                run.end("KILLED")


def _uri(settings: Tracking, *, workspace: str) -> str:
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


def _artifacts(uri: str, *, workspace: str) -> str | None:
    if uri.startswith(("http://", "https://")):
        return None
    return f"{workspace if '://' in workspace else Path(workspace).absolute()}/{ARTIFACTS}"


@functools.cache
def _client(uri: str) -> MlflowClient:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import logging

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


def _owner() -> str:
    import psutil

    started = psutil.Process().create_time()
    return f"{socket.gethostname()} {os.getpid()} {started:.0f}"


def _alive(owner: str) -> bool:
    """Return whether the process that opened a run still runs; on another host, it does not."""
    import psutil

    host, _, process = owner.partition(" ")
    number, _, started = process.partition(" ")
    if host != socket.gethostname() or not number.isdigit():
        return False
    try:
        return f"{psutil.Process(int(number)).create_time():.0f}" == started
    except psutil.Error:
        return False
