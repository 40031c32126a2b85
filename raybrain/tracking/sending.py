"""How each kind of record is sent to MLflow, so that sending it again changes nothing."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from raybrain.tracking.models import send_card, send_model
from raybrain.tracking.owner import alive, is_here
from raybrain.tracking.redaction import redacted
from raybrain.tracking.tags import BEST, ERROR, KEY, OWNER, PARENT, STAGE, STUDY, TABLES, WORKED

if TYPE_CHECKING:
    from mlflow import MlflowClient

Record = dict[str, Any]

SECONDS = "seconds"
PER_REQUEST = 1000
"""Metrics, parameters and tags of one request; MLflow's limit, as are the next three."""
PER_KIND = 100
LONGEST_PARAM = 6000
LONGEST_TAG = 8000
LASTING = {
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "BAD_REQUEST",
    "INVALID_STATE",
    "NOT_IMPLEMENTED",
    "ENDPOINT_NOT_FOUND",
}
"""MLflow's names of refusals that do not go away by trying again."""
TRIES = 6
"""How often a record is tried that fails though the server answers."""
_PLACEHOLDER = re.compile(r"@@run:([0-9a-f]{32})@@")


class RunIds(Protocol):
    """Keys of records -> ids of runs."""

    def __getitem__(self, key: str) -> str: ...
    def get(self, key: str) -> str | None:
        """Return the id of a key, or None while it is unknown."""

    def __setitem__(self, key: str, run_id: str) -> None: ...


def placeholder(key: str) -> str:
    """Return what stands in tags for the id of a run that MLflow may not have made yet."""
    return f"@@run:{key}@@"


class Sender:
    """Sends records with one client.

    Parameters
    ----------
    client : MlflowClient
        Of the server or database.
    """

    def __init__(self, client: MlflowClient) -> None:
        self.client = client
        self._refused: list[str] = []
        self._failures = 0
        """In a row, though the server answers."""
        self._one_by_one = 0
        """Records that are sent singly, to find the one that was refused."""
        self._lock = threading.Lock()

    def send(self, records: Sequence[Record], runs: RunIds, *, again: bool) -> int:
        """Send records in order and return how many were dealt with.

        Fewer than all when the server does not answer. What it refuses for good is dropped and
        told by `refusals`.

        Parameters
        ----------
        records : sequence of dict
            What to send.
        runs : RunIds
            Learns the ids of runs that are made.
        again : bool
            Whether some of them may have been sent before.
        """
        done = 0
        while done < len(records):
            together = [records[done]] if self._one_by_one else _together(records[done:])
            try:
                self._send(together, runs, again=again)
            except Exception as error:
                if not self._gives_up(error):
                    return done
                if len(together) > 1:  # only what is refused is lost
                    self._one_by_one = len(together)
                else:
                    self._refuse(together[0], error)
                    self._one_by_one = max(0, self._one_by_one - 1)
                    done += 1
            else:
                done += len(together)
                self._one_by_one = max(0, self._one_by_one - len(together))
                self._failures = 0
        return done

    def _gives_up(self, error: Exception) -> bool:
        """Return whether the record is at fault and not the way to the server."""
        if not _lasts(error):
            self._failures = self._failures + 1 if self._answers() else 0
            if self._failures < TRIES:
                return False
        self._failures = 0
        return True

    def _answers(self) -> bool:
        try:
            self.client.search_experiments(max_results=1)
        except Exception:
            return False
        return True

    def refusals(self) -> list[str]:
        """Return what was refused since the last call."""
        with self._lock:
            found, self._refused = self._refused, []
        return found

    def _refuse(self, record: Record, error: Exception) -> None:
        reason = redacted(str(error).strip().partition("\n")[0][:300])
        with self._lock:
            self._refused.append(f"{record['kind']} ({reason or type(error).__name__})")

    def _send(self, records: list[Record], runs: RunIds, *, again: bool) -> None:
        if records[0]["kind"] == "batch":
            _batch(self.client, records, runs)
            return
        (record,) = records
        if record["kind"] == "make":
            runs[record["key"]] = _make(self.client, record, runs, again=again)
            return
        KINDS[record["kind"]](self.client, _run_of(record, runs), record)


def _run_of(record: Record, runs: RunIds) -> str:
    run_id = runs.get(record["key"])
    if run_id is None:
        raise ValueError("the run it belongs to could not be made")
    return run_id


def _together(records: Sequence[Record]) -> list[Record]:
    """Return the leading records that fit one request."""
    first = records[0]
    if first["kind"] != "batch":
        return [first]
    found: list[Record] = []
    counts = {"metrics": 0, "params": 0, "tags": 0}
    names: set[str] = set()
    for record in records:
        if record["kind"] != "batch" or record["key"] != first["key"]:
            break
        # A request with the same tag twice keeps either of them.
        tags = set(record.get("tags", {}))
        for kind in counts:
            counts[kind] += len(record.get(kind, ()))
        full = (
            sum(counts.values()) > PER_REQUEST or max(counts["params"], counts["tags"]) > PER_KIND
        )
        if found and (full or tags & names):
            break
        names |= tags
        found.append(record)
    return found


def _batch(client: MlflowClient, records: list[Record], runs: RunIds) -> None:
    from mlflow.entities import Metric, Param, RunTag

    run_id = _run_of(records[0], runs)
    metrics = [
        Metric(name, float(value), time, step)
        for record in records
        for name, value, time, step in record.get("metrics", ())
    ]
    params = {name: value for record in records for name, value in record.get("params", {}).items()}
    tags = {name: value for record in records for name, value in record.get("tags", {}).items()}
    if params:  # they cannot change, and an experiment that is continued has its own already
        known = client.get_run(run_id).data.params
        params = {name: value for name, value in params.items() if name not in known}
    if metrics or params or tags:
        client.log_batch(
            run_id,
            metrics=metrics,
            params=[Param(name, value[:LONGEST_PARAM]) for name, value in params.items()],
            tags=[RunTag(name, value) for name, value in _filled(tags, runs).items()],
        )


def _filled(tags: Mapping[str, str], runs: RunIds) -> dict[str, str]:
    def run_id(found: re.Match[str]) -> str:
        return runs.get(found[1]) or ""

    return {name: _PLACEHOLDER.sub(run_id, value)[:LONGEST_TAG] for name, value in tags.items()}


def _make(client: MlflowClient, record: Record, runs: RunIds, *, again: bool) -> str:
    """Return the run with the record's identity, made if there is none."""
    tags = _filled({**record["tags"], KEY: record["key"]}, runs)
    wanted = record["identity"] or ({KEY: record["key"]} if again else None)
    if wanted:
        where = " and ".join(f"tags.`{name}` = '{value}'" for name, value in wanted.items())
        found = client.search_runs(
            [record["experiment"]], where, order_by=["attributes.start_time ASC"], max_results=1
        )
        if found:
            run_id = str(found[0].info.run_id)
            if record["reopen"]:
                _reopen(client, run_id, {"owner": tags[OWNER]})
                kept = {name: value for name, value in tags.items() if name != KEY}
                for name, value in kept.items():
                    client.set_tag(run_id, name, value)
            return run_id
    made = client.create_run(
        record["experiment"], start_time=record["time"], tags=tags, run_name=record["title"]
    )
    if record["closed"]:
        client.set_terminated(made.info.run_id, "FINISHED", end_time=record["time"])
    return str(made.info.run_id)


def _reopen(client: MlflowClient, run_id: str, record: Record) -> None:
    client.update_run(run_id, status="RUNNING")
    client.set_tag(run_id, OWNER, record["owner"])
    if ERROR in client.get_run(run_id).data.tags:
        client.delete_tag(run_id, ERROR)


def _close_abandoned(client: MlflowClient, run_id: str, record: Record) -> None:
    """Close as KILLED what processes left open that are gone.

    On other hosts it cannot be seen whether one lives: there it is this stage of this experiment
    alone, which is begun again.
    """
    found = client.search_runs([record["experiment"]], "attributes.status = 'RUNNING'")
    for run in found:
        tags = run.data.tags
        again = tags.get(PARENT) == run_id and tags.get(STAGE) == record["stage"]
        host_is_known = is_here(tags.get(OWNER, ""))
        if (again or host_is_known) and not alive(tags.get(OWNER, "")):
            client.set_tag(run.info.run_id, ERROR, "the process ended without closing this run")
            client.set_terminated(run.info.run_id, "KILLED", end_time=record["time"])


def _end(client: MlflowClient, run_id: str, record: Record) -> None:
    """Close a run with its last metrics and tags.

    Where the seconds of this attempt are told, they are added to those before.
    """
    if record.get("unless_ended") and client.get_run(run_id).info.status != "RUNNING":
        return
    metrics = [
        [name, value, record["time"], 0] for name, value in record.get("metrics", {}).items()
    ]
    if metrics or record.get("tags"):
        last = {"key": record["key"], "metrics": metrics, "tags": record.get("tags", {})}
        _batch(client, [last], {record["key"]: run_id})
    if record.get("seconds") is not None:
        worked = json.loads(client.get_run(run_id).data.tags.get(WORKED, "{}"))
        worked[record["attempt"]] = round(record["seconds"], 3)
        client.set_tag(run_id, WORKED, json.dumps(worked))
        total = sum(worked.values())
        client.log_metric(run_id, SECONDS, total, timestamp=record["time"], step=len(worked))
    client.set_terminated(run_id, record["status"], end_time=record["time"])


def _best(client: MlflowClient, run_id: str, record: Record) -> None:
    """Mark one candidate of a study, and take the mark from the one that had it."""
    where = f"tags.`{STUDY}` = '{record['study']}' and tags.`{BEST}` = 'true'"
    for run in client.search_runs([record["experiment"]], where):
        if run.info.run_id != run_id:
            client.delete_tag(run.info.run_id, BEST)
            client.update_run(run.info.run_id, name=run.info.run_name.removesuffix(" (best)"))
    client.set_tag(run_id, BEST, "true")
    client.update_run(run_id, name=f"candidate {record['number']} (best)")


def _artifact(client: MlflowClient, run_id: str, record: Record) -> None:
    file = Path(record["file"])
    if file.is_dir():
        client.log_artifacts(run_id, str(file), artifact_path=record["folder"])
    else:
        client.log_artifact(run_id, str(file), artifact_path=record["folder"])


def _text(client: MlflowClient, run_id: str, record: Record) -> None:
    client.log_text(run_id, record["text"], record["path"])


def _image(client: MlflowClient, run_id: str, record: Record) -> None:
    from PIL import Image

    name, step, time = record["name"], record["step"], record["time"]
    # MLflow gives every picture another name.
    started = f"images/{name.replace('/', '~')}+step+{step}+timestamp+{time}+"
    if any(one.path.startswith(started) for one in client.list_artifacts(run_id, "images")):
        return
    with Image.open(record["file"]) as picture:
        picture.load()
        client.log_image(run_id, picture, key=name, step=step, timestamp=time)


def _table(client: MlflowClient, run_id: str, record: Record) -> None:
    # As MLflow's log_table writes it, which would append to what a first attempt has sent.
    columns = record["columns"]
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    text = json.dumps({"columns": list(columns), "data": rows})
    client.log_text(run_id, text, record["path"])
    listed = json.loads(client.get_run(run_id).data.tags.get(TABLES, "[]"))
    entry = {"path": record["path"], "type": "table"}
    if entry not in listed:
        client.set_tag(run_id, TABLES, json.dumps([*listed, entry]))


def _inputs(client: MlflowClient, run_id: str, record: Record) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    client.log_inputs(
        run_id,
        datasets=[
            DatasetInput(
                Dataset(**{name: one[name] for name in one if name != "context"}),
                tags=[InputTag("mlflow.data.context", one["context"])],
            )
            for one in record["datasets"]
        ],
    )


KINDS: dict[str, Callable[[Any, str, Record], None]] = {
    "best": _best,
    "reopen": _reopen,
    "close_abandoned": _close_abandoned,
    "model": send_model,
    "card": send_card,
    "end": _end,
    "artifact": _artifact,
    "text": _text,
    "image": _image,
    "table": _table,
    "inputs": _inputs,
}


def _lasts(error: Exception) -> bool:
    """Return whether trying again cannot help."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in LASTING
    if isinstance(error, OSError):  # as are those of requests
        return isinstance(error, FileNotFoundError)
    return isinstance(error, ValueError | TypeError | KeyError | AttributeError)
