"""Runs, one below the other: an experiment, its stages, the candidates of a search."""

from __future__ import annotations

import contextlib
import functools
import tempfile
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from raybrain.config import InputError, Tracking, as_text, flatten
from raybrain.tracking.address import artifacts_of, client_of, page_of, spool_of, uri_of
from raybrain.tracking.outbox import Outbox
from raybrain.tracking.owner import owner
from raybrain.tracking.provenance import provenance
from raybrain.tracking.sending import Sender, placeholder
from raybrain.tracking.tags import (
    CANDIDATE,
    DATASET,
    DESCRIPTION,
    ERROR,
    KIND,
    NAME,
    OWNER,
    PARENT,
    SETTINGS,
    STAGE,
    STUDY,
    SUBJECT,
)

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

    from raybrain.tracking.datasets import Described

CLASSIC = "custom_model_development"


def open_tracker(settings: Tracking, *, workspace: str) -> Tracker:
    """Return a tracker whose database exists and has answered; one per process.

    Without ``settings.uri`` this is a sqlite file in the workspace, made here and whole before
    anyone else can see it: several processes that use a new database at once would break it.

    Raises
    ------
    raybrain.config.InputError
        If the server does not answer or the address cannot be one.
    """
    uri = uri_of(settings, workspace=workspace)
    return _tracker(uri, artifacts_of(uri, workspace=workspace), spool_of(uri, workspace=workspace))


@functools.cache
def _tracker(uri: str, artifacts: str | None, spool: Path) -> Tracker:
    return Tracker(client_of(uri), uri=uri, artifacts=artifacts, spool=spool)


class Run:
    """One run in MLflow; what is written to it is sent in order by a thread of its own.

    Parameters
    ----------
    outbox : Outbox
        Takes what is written.
    tracker : Tracker
        Where the run is.
    key : str
        Stands for the run until MLflow has given it an id.
    mlflow_experiment : str
        MLflow's id of the dataset's experiment.
    parent : Run, optional
        The experiment's run, which tells what its stages found.
    """

    def __init__(
        self,
        outbox: Outbox,
        *,
        tracker: Tracker,
        key: str,
        mlflow_experiment: str,
        parent: Run | None = None,
    ) -> None:
        self._outbox, self._tracker, self.key = outbox, tracker, key
        self.mlflow_experiment, self.parent = mlflow_experiment, parent

    @property
    def client(self) -> MlflowClient:
        """A client that finds all that was written before."""
        return self._tracker.client

    @property
    def run_id(self) -> str:
        """MLflow's id; waits for what was written before.

        Raises
        ------
        raybrain.config.InputError
            If the run could not be made yet, as the server does not answer.
        """
        known = self.known_id()
        if known is None:
            raise InputError(f"MLflow at {self._tracker.uri} does not answer; try again later")
        return known

    def known_id(self) -> str | None:
        """Return MLflow's id, or None while the server does not answer."""
        if self._outbox.run_of(self.key) is None:
            self._outbox.flush()
        return self._outbox.run_of(self.key)

    def page(self) -> str | None:
        """Return the path of the run's page in MLflow, or None while the server is silent."""
        run_id = self.known_id()
        return None if run_id is None else page_of(self.mlflow_experiment, run_id)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record values at ``step``.

        Parameters
        ----------
        metrics : mapping of str to float
            Values by name, each in its own unit.
        step : int
            Where on the curve they belong, such as the number of the epoch.
        """
        self.log_curve([(step, metrics)])

    def log_curve(self, points: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Record values at several steps.

        Parameters
        ----------
        points : sequence of (int, mapping)
            Step and values.
        """
        now = _now()
        values = [
            [name, float(value), now, int(step)]
            for step, metrics in points
            for name, value in metrics.items()
        ]
        if values:
            self._put("batch", metrics=values)

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        """Record settings by dotted address, as they are typed; those recorded before stay."""
        if settings:
            self._put("batch", params={name: as_text(value) for name, value in settings.items()})

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Keep a copy of a file, or of the contents of a folder, with the run."""
        self._put("artifact", file=str(self._outbox.staged(Path(path))), folder=folder)

    def log_text(self, text: str, path: str) -> None:
        """Keep ``text`` as a file of the run."""
        self._put("text", text=text, path=path)

    def log_image(self, image: np.ndarray, name: str, *, step: int = 0) -> None:
        """Show a picture in MLflow's image grid; pictures of one name are stepped through.

        Parameters
        ----------
        image : ndarray of uint8, shape (y, x, rgb)
        name : str
            Letters, digits, ``_ - . /`` and spaces; others become ``_``.
        step : int
            Its place on the slider.
        """
        from PIL import Image

        allowed = "".join(
            one if (one.isalnum() and one.isascii()) or one in "_-./ " else "_" for one in name
        )
        with tempfile.TemporaryDirectory(prefix="rb") as place:
            file = Path(place, "picture.png")
            Image.fromarray(image).save(file)
            staged = self._outbox.staged(file)
        self._put("image", file=str(staged), name=allowed, step=int(step))

    def log_table(self, columns: Mapping[str, Sequence[Any]], path: str) -> None:
        """Keep a table as an artifact that MLflow shows as one; ``path`` ends in .json."""
        self._put(
            "table", columns={name: list(column) for name, column in columns.items()}, path=path
        )

    def log_datasets(self, datasets: Sequence[Described]) -> None:
        """Record what the run was made from or tried on."""
        if datasets:
            self._put("inputs", datasets=[one.record() for one in datasets])

    def log_record(self, kind: str, **content: Any) -> None:
        """Record something of another kind, which `raybrain.tracking.sending` knows to send."""
        self._put(kind, **content)

    def staged(self, path: Path) -> Path:
        """Return a copy of a file or folder that stays until a record of it was sent."""
        return self._outbox.staged(path)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags; earlier values of the same names are replaced."""
        if tags:
            self._put("batch", tags={name: str(value) for name, value in tags.items()})

    def describe(self, markdown: str) -> None:
        """Set the description at the head of the run's page."""
        self.set_tags({DESCRIPTION: markdown})

    @property
    def placeholder(self) -> str:
        """What tags may say in place of the run's id."""
        return placeholder(self.key)

    def end(self, status: str, **content: Any) -> None:
        """Close the run as FINISHED, FAILED or KILLED."""
        self._put("end", status=status, **content)

    def fail(self, error: BaseException) -> str:
        """Say why the run failed or was stopped, and return the status that it ends with."""
        if not isinstance(error, Exception):
            return "KILLED"
        self.set_tags({ERROR: sentence(error)})
        self.log_text("".join(traceback.format_exception(error)), "traceback.txt")
        return "FAILED"

    def _put(self, kind: str, **content: Any) -> None:
        self._outbox.put({"kind": kind, "key": self.key, "time": _now(), **content})


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


class Tracker:
    """Where the runs of a workspace are recorded.

    Parameters
    ----------
    client : MlflowClient
        That has answered.
    uri : str
        Of the server or database.
    artifacts : str or None
        Where artifacts go; None where a tracking server decides.
    spool : Path
        Folder on a local disk for what waits to be sent.
    """

    def __init__(
        self, client: MlflowClient, *, uri: str, artifacts: str | None, spool: Path
    ) -> None:
        self._client, self.uri, self.artifacts = client, uri, artifacts
        self._outbox = Outbox(Sender(client), folder=spool, name=f"MLflow at {uri}")
        self._outbox.adopt()
        self._experiments: dict[str, str] = {}
        self._parents: dict[tuple[str, ...], Run] = {}

    @property
    def client(self) -> MlflowClient:
        """A client that finds all that was written before."""
        self._outbox.flush()
        return self._client

    def close(self) -> None:
        """Send what waits, or say where it waits; the tracker may be used again."""
        self._outbox.close()

    def experiment_run(
        self, experiment: Named, *, running: bool = False, started: float | None = None
    ) -> Run:
        """Return the parent of all stages of ``experiment``, the same one as last time.

        It is found by name, subject and all settings that results depend on: with another setting
        it is another run, for MLflow's parameters cannot change.

        Parameters
        ----------
        experiment : Named
            What it is found by.
        running : bool
            Whether work on it begins, so that it is RUNNING from now on; whoever says so ends it.
        started : float, optional
            Seconds since 1970 at which the work began, where it was never begun before.
        """
        mlflow_experiment = self._mlflow_experiment(Path(experiment.dataset).stem)
        identity = identity_of(experiment)
        known = (mlflow_experiment, *identity.values())
        if known not in self._parents:
            tags = {**identity, DATASET: Path(experiment.dataset).stem}
            self._parents[known] = self._make(
                mlflow_experiment,
                title=experiment.name,
                tags=tags,
                identity=identity,
                reopen=running,
                closed=not running,
                started=started,
            )
        elif running:
            self._parents[known].log_record("reopen", owner=owner())
        return self._parents[known]

    def page_of(self, experiment: Named) -> str | None:
        """Return the path of the page of an experiment's run, or None if there is no such run."""
        found = self.run_of(experiment)
        return None if found is None else page_of(found.info.experiment_id, found.info.run_id)

    def run_of(self, experiment: Named) -> MlflowRun | None:
        """Return what MLflow holds of an experiment's run, or None if there is no such run.

        A run that an earlier version recorded is found by name and subject.
        """
        found = self.client.get_experiment_by_name(Path(experiment.dataset).stem)
        if found is None:
            return None
        identity = identity_of(experiment)
        older = {name: value for name, value in identity.items() if name != SETTINGS}
        for wanted in (identity, older):
            where = " and ".join(f"tags.`{name}` = '{value}'" for name, value in wanted.items())
            runs = self.client.search_runs([found.experiment_id], where, max_results=1)
            if runs:
                return runs[0]
        return None

    @contextlib.contextmanager
    def stage(
        self,
        parent: Run,
        stage: str,
        *,
        settings: Mapping[str, Any],
        title: str | None = None,
        started: float | None = None,
        ended: float | None = None,
        identity: Mapping[str, str] | None = None,
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
        started, ended : float, optional
            Seconds since 1970 between which the work was done, where that was before.
        identity : mapping, optional
            Tags by which the run is found again; a new one every time when not given.
        """
        parent.log_record("close_abandoned", stage=stage, experiment=parent.mlflow_experiment)
        run = self._make(
            parent.mlflow_experiment,
            title=title or stage,
            tags={PARENT: parent.placeholder, STAGE: stage, **(identity or {})},
            identity=identity,
            started=started,
            parent=parent,
        )
        try:
            run.log_settings(settings)
            yield run
        except BaseException as error:
            with contextlib.suppress(Exception):  # the stage's own error matters more
                run.end(run.fail(error))
            raise
        run.end("FINISHED", **({} if ended is None else {"time": int(ended * 1000)}))

    def candidate(
        self,
        parent: Run,
        *,
        study: str,
        number: int,
        settings: Mapping[str, Any],
        reopen: bool = True,
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
        reopen : bool
            Whether a run that was closed becomes RUNNING again.
        """
        identity = {STUDY: study, CANDIDATE: str(number)}
        run = self._make(
            parent.mlflow_experiment,
            title=f"candidate {number}",
            tags={**identity, PARENT: parent.placeholder, STAGE: "candidate"},
            identity=identity,
            reopen=reopen,
        )
        run.log_settings(settings)
        return run

    def _mlflow_experiment(self, dataset: str) -> str:
        if dataset not in self._experiments:
            self._experiments[dataset] = self._found_experiment(dataset)
        return self._experiments[dataset]

    def _found_experiment(self, dataset: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(dataset)
        if found is None:
            location = None if self.artifacts is None else f"{self.artifacts}/{dataset}"
            try:
                return self._client.create_experiment(
                    dataset, artifact_location=location, tags={KIND: CLASSIC}
                )
            except MlflowException:
                found = self._client.get_experiment_by_name(dataset)  # another process was faster
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise InputError(
                f"the MLflow experiment '{dataset}' at {self.uri} was deleted; type: "
                f"mlflow experiments restore --experiment-id {found.experiment_id}"
            )
        if KIND not in found.tags:
            self._client.set_experiment_tag(found.experiment_id, KIND, CLASSIC)
        return found.experiment_id

    def _make(
        self,
        mlflow_experiment: str,
        *,
        title: str,
        tags: Mapping[str, str],
        identity: Mapping[str, str] | None = None,
        reopen: bool = True,
        closed: bool = False,
        started: float | None = None,
        parent: Run | None = None,
    ) -> Run:
        key = uuid.uuid4().hex
        self._outbox.put(
            {
                "kind": "make",
                "key": key,
                "experiment": mlflow_experiment,
                "title": title,
                "tags": {**provenance(), **tags, OWNER: owner()},
                "identity": identity and dict(identity),
                "reopen": reopen,
                "closed": closed,
                "time": _now() if started is None else int(started * 1000),
            }
        )
        return Run(
            self._outbox,
            tracker=self,
            key=key,
            mlflow_experiment=mlflow_experiment,
            parent=parent,
        )


HOW = ("name", "workspace", "on_change", "dataset", "resources", "tracking", "tuning")
"""Settings that results do not depend on, or that are told apart by themselves."""


def identity_of(experiment: Named) -> dict[str, str]:
    """Return the tags by which the run of an experiment is found again."""
    found = {NAME: experiment.name, SUBJECT: experiment.subject, STAGE: "experiment"}
    leaves = results_depend_on(experiment)
    return found if leaves is None else {**found, SETTINGS: digest(leaves)}


def results_depend_on(experiment: Any) -> dict[str, Any] | None:
    """Return the settings by address that results depend on; None if it has no settings."""
    from pydantic import BaseModel

    if not isinstance(experiment, BaseModel):
        return None
    return {
        address: value
        for address, value in flatten(experiment).items()
        if address.partition(".")[0] not in HOW
    }


def digest(leaves: Mapping[str, Any]) -> str:
    """Return a short hash of settings."""
    from raybrain.seal import digest_of

    return digest_of(dict(leaves))[:16]


def sentence(error: BaseException) -> str:
    """Return what happened in one line."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _now() -> int:
    return int(time.time() * 1000)
