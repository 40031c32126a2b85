"""Runs, one below the other: an experiment, its stages, the candidates of a search."""

from __future__ import annotations

import contextlib
import os
import socket
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from raybrain.config import InputError, Tracking
from raybrain.tracking.address import artifacts_of, client_of, uri_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARENT = "mlflow.parentRunId"
NAME = "raybrain.experiment"
SUBJECT = "raybrain.subject"
STAGE = "raybrain.stage"
KIND = "mlflow.experimentKind"
"""Which of its two sets of pages MLflow shows: those of training, not those of chat agents."""
STUDY = "raybrain.study"
CANDIDATE = "raybrain.candidate"
OWNER = "raybrain.owner"
ERROR = "raybrain.error"
METRICS_PER_BATCH = 1000  # MLflow's limits
PARAMS_PER_BATCH = 100
LONGEST_PARAM = 6000
LONGEST_TAG = 5000
LONGEST_DIGEST = 36


def open_tracker(settings: Tracking, *, workspace: str) -> Tracker:
    """Return a tracker whose database exists and has answered.

    Without ``settings.uri`` this is a sqlite file in the workspace, made here and whole before
    anyone else can see it: several processes that use a new database at once would break it.

    Raises
    ------
    raybrain.config.InputError
        If the server does not answer or the address cannot be one.
    """
    uri = uri_of(settings, workspace=workspace)
    return Tracker(client=client_of(uri), uri=uri, artifacts=artifacts_of(uri, workspace=workspace))


@dataclass(frozen=True)
class Run:
    """One run in MLflow, written to by its id."""

    client: MlflowClient
    run_id: str
    mlflow_experiment: str
    """MLflow's id of the dataset's experiment."""

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record values at ``step``, all in one request."""
        self.log_curve([(step, metrics)])

    def log_curve(self, points: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Record values at several steps in as few requests as MLflow allows.

        Parameters
        ----------
        points : sequence of (int, mapping)
            Step and values.
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        values = [
            Metric(name, float(value), now, step)
            for step, metrics in points
            for name, value in metrics.items()
        ]
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

    def log_dataset(self, name: str, *, digest: str, source: str) -> None:
        """Record what the run was made from.

        Parameters
        ----------
        name : str
            Dataset and subject.
        digest : str
            Of the sealed store; MLflow keeps its first 36 characters.
        source : str
            Folder or URL of the dataset.
        """
        from mlflow.entities import Dataset, DatasetInput

        dataset = Dataset(
            name=name, digest=digest[:LONGEST_DIGEST], source_type="local", source=source
        )
        self.client.log_inputs(self.run_id, datasets=[DatasetInput(dataset=dataset)])

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

    def candidate(
        self, parent: Run, *, study: str, number: int, settings: Mapping[str, Any]
    ) -> Run:
        """Return the run of one candidate of a search, open; the same one as last time.

        Parameters
        ----------
        parent : Run
            The stage that searches, or the experiment.
        study : str
            Name of the study.
        number : int
            The candidate's number in the study.
        settings : mapping
            Dotted address -> value, recorded as parameters.
        """
        tags = {STUDY: study, CANDIDATE: str(number)}
        found = self._runs(parent.mlflow_experiment, tags=tags)
        if found:
            run = Run(self.client, found[0], parent.mlflow_experiment)
            self.client.update_run(run.run_id, status="RUNNING")
            run.set_tags({PARENT: parent.run_id, OWNER: _owner()})
            return run
        tags |= {PARENT: parent.run_id, STAGE: "candidate"}
        run = self._start(parent.mlflow_experiment, title=f"candidate {number}", tags=tags)
        run.log_settings(settings)
        return run

    def ended_candidates(self, parent: Run, *, study: str) -> set[int]:
        """Return the numbers of the candidates of a study whose runs are closed."""
        from mlflow.store.tracking import SEARCH_MAX_RESULTS_DEFAULT

        wanted = f"tags.`{STUDY}` = '{study}' and attributes.status != 'RUNNING'"
        found: set[int] = set()
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [parent.mlflow_experiment],
                wanted,
                max_results=SEARCH_MAX_RESULTS_DEFAULT,
                page_token=token,
            )
            found |= {int(run.data.tags[CANDIDATE]) for run in page}
            token = page.token
            if not token:
                return found

    def _mlflow_experiment(self, dataset: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(dataset)
        if found is None:
            location = None if self.artifacts is None else f"{self.artifacts}/{dataset}"
            try:
                return self.client.create_experiment(
                    dataset, artifact_location=location, tags={KIND: "custom_model_development"}
                )
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
