"""Fitted decoders in MLflow: a model with its run, a version with its card, and the champion."""

from __future__ import annotations

import json
import tempfile
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raybrain.tracking.tags import IDENTITY, MODEL_ID

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from raybrain.tracking.datasets import Described
    from raybrain.tracking.runs import Run

MODEL = "model"
CHAMPION = "champion"
"""Alias of the version with the best validation score of its name."""
SCORE = "held_out_r2"
"""Tag and metric: mean R² over dimensions on training images that were held out."""


def model_name(*, dataset: str, subject: str, target: str) -> str:
    """Return the registered name of the decoders of a target."""
    return f"{dataset}-{subject}-{target}"


def register_decoder(
    run: Run,
    decoder: Path,
    *,
    name: str,
    example: np.ndarray,
    dimensions: int,
    tags: Mapping[str, Any],
    params: Mapping[str, Any],
    score: float,
    about: str,
    card: str,
    dataset: Described | None = None,
) -> None:
    """Keep a decoder with its run as an MLflow model and register it as a version of ``name``.

    ``mlflow.pyfunc.load_model("models:/NAME@champion").predict(betas)`` runs it where raybrain is
    installed. The alias moves to this version if its score is better than that of the one before.

    Parameters
    ----------
    run : Run
        The run that fitted it.
    decoder : Path
        Folder that `raybrain.decoders.TrainedDecoder.save` wrote.
    name : str
        From `model_name`.
    example : ndarray of float32, shape (trial, voxel)
        Betas it can be tried on.
    dimensions : int
        Of the target.
    tags, params : mapping
        Of the version and of the model.
    score : float
        By which versions are compared, higher is better; NaN for one that can be no champion.
    about, card : str
        Descriptions of the name and of this version, in Markdown.
    dataset : Described, optional
        What the score was computed on.
    """
    from raybrain import __version__

    # MLflow warns of its own type hints, and gives advice about ours, though there is a signature.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow.pyfunc
        from mlflow.models import ModelSignature
        from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    single = np.dtype(np.float32)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(single, (-1, example.shape[1]), name=None)]),
        outputs=Schema([TensorSpec(single, (-1, dimensions), name=None)]),
        params=ParamSchema([ParamSpec("session", "long", -1)]),
    )
    # Recorded and dropped: MLflow undoes what is ignored to give its advice.
    with tempfile.TemporaryDirectory(prefix="rb") as place, warnings.catch_warnings(record=True):
        model = Path(place) / MODEL
        mlflow.pyfunc.save_model(
            model,
            python_model=str(Path(__file__).with_name("decoder_model.py")),
            artifacts={"decoder": str(decoder)},
            signature=signature,
            input_example=example,
            # Given, because finding them out loads the model in another process, for seconds.
            pip_requirements=[f"raybrain=={__version__}"],
        )
        staged = run.staged(model)
    described = None if dataset is None else dataset.record()
    run.log_record(
        "model",
        file=str(staged),
        experiment=run.mlflow_experiment,
        identity=uuid.uuid4().hex,
        name=name,
        tags={tag: str(value) for tag, value in tags.items()},
        params={address: str(value)[:500] for address, value in params.items()},
        score=float(score) if np.isfinite(score) else None,
        about=about,
        card=card,
        dataset=described and [described["name"], described["digest"]],
    )


def describe_decoder(
    run: Run, *, name: str, seal: str, card: str, metrics: Mapping[str, float], dataset: Described
) -> None:
    """Complete the card of a version with what tests said of it, and link the scores to it.

    Parameters
    ----------
    run : Run
        The run that tested it.
    name, seal : str
        Of the version: its registered name, and its tag ``seal``.
    card : str
        The description from now on.
    metrics : mapping
        Scores on ``dataset``.
    dataset : Described
        The test trials.
    """
    described = dataset.record()
    run.log_record(
        "card",
        name=name,
        seal=seal,
        card=card,
        metrics={metric: float(value) for metric, value in metrics.items()},
        dataset=[described["name"], described["digest"]],
    )


def send_model(client: MlflowClient, run_id: str, record: dict[str, Any]) -> None:
    """Send what `register_decoder` recorded; again, it makes nothing twice."""
    name = record["name"]
    _ensure_name(client, name, record)
    found = client.search_model_versions(
        f"name = '{name}' and tags.`{IDENTITY}` = '{record['identity']}'"
    )
    if found:
        version, model_id = found[0].version, found[0].tags[MODEL_ID]
    else:
        model_id = _logged_model(client, run_id, record)
        version = _version(client, run_id, model_id, record)
    if record["score"] is not None:
        metric_name, digest = record["dataset"] or (None, None)
        client.log_metric(
            run_id,
            SCORE,
            record["score"],
            timestamp=record["time"],
            step=0,
            model_id=model_id,
            dataset_name=metric_name,
            dataset_digest=digest,
        )
        _crown(client, name, version=str(version), score=record["score"])
    client.set_tag(run_id, MODEL, f"models:/{name}/{version}")


def send_card(client: MlflowClient, run_id: str, record: dict[str, Any]) -> None:
    """Send what `describe_decoder` recorded; a decoder that is not registered has no card."""
    name, (data, digest) = record["name"], record["dataset"]
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.tags.get("seal") != record["seal"]:
            continue
        client.update_model_version(name, version.version, record["card"])
        model_id = version.tags.get(MODEL_ID)
        if model_id is None:  # registered before models were linked
            continue
        for metric, value in record["metrics"].items():
            client.log_metric(
                version.run_id,
                metric,
                value,
                timestamp=record["time"],
                step=0,
                model_id=model_id,
                dataset_name=data,
                dataset_digest=digest,
            )


def _ensure_name(client: MlflowClient, name: str, record: dict[str, Any]) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description=record["about"])
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        client.update_registered_model(name, record["about"])


def _logged_model(client: MlflowClient, run_id: str, record: dict[str, Any]) -> str:
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.models import Model

    found = client.search_logged_models(
        [record["experiment"]], filter_string=f"tags.`{IDENTITY}` = '{record['identity']}'"
    )
    made = (
        found[0]
        if found
        else client.create_logged_model(
            record["experiment"],
            name=record["name"],
            source_run_id=run_id,
            tags={**record["tags"], IDENTITY: record["identity"]},
            params=record["params"],
            model_type="decoder",
        )
    )
    folder = Path(record["file"])
    described = Model.load(str(folder / "MLmodel"))
    described.run_id, described.model_id = run_id, made.model_id
    described.artifact_path = made.artifact_location
    described.save(str(folder / "MLmodel"))
    client.log_model_artifacts(made.model_id, str(folder))
    client.log_outputs(run_id, [LoggedModelOutput(made.model_id, step=0)])
    client.finalize_logged_model(made.model_id, LoggedModelStatus.READY)
    return str(made.model_id)


def _version(client: MlflowClient, run_id: str, model_id: str, record: dict[str, Any]) -> str:
    tags = {**record["tags"], IDENTITY: record["identity"], MODEL_ID: model_id}
    if record["score"] is not None:
        tags[SCORE] = f"{record['score']:.6f}"
    version = client.create_model_version(
        record["name"],
        client.get_logged_model(model_id).artifact_location,
        run_id=run_id,
        tags=tags,
        description=record["card"],
        model_id=model_id,
    )
    # What MLflow's own functions note, so that the pages of model and version name each other.
    listed = [{"name": record["name"], "version": version.version}]
    client.set_logged_model_tags(model_id, {"mlflow.modelVersions": json.dumps(listed)})
    return str(version.version)


def _crown(client: MlflowClient, name: str, *, version: str, score: float) -> None:
    from mlflow.exceptions import MlflowException

    try:
        best = client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    else:
        if str(best.version) == version or score <= float(best.tags.get(SCORE, "-inf")):
            return
    client.set_registered_model_alias(name, CHAMPION, version)
