"""Fitted decoders in MLflow's model registry."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from raybrain.tracking.runs import Run

MODEL = "model"
"""Folder of the model among the artifacts of its run."""


def register_decoder(
    run: Run, decoder: Path, *, name: str, example: np.ndarray, dimensions: int, tags: Mapping
) -> str:
    """Keep a decoder with its run as an MLflow model, register it and return its version.

    ``mlflow models predict -m models:/NAME/VERSION --env-manager local`` runs it where raybrain is
    installed.

    Parameters
    ----------
    run : Run
        The run that fitted it.
    decoder : Path
        Folder that `raybrain.decoders.TrainedDecoder.save` wrote.
    name : str
        Of the registered model; a new version when there is one.
    example : ndarray of float32, shape (trial, voxel)
        Betas it can be tried on.
    dimensions : int
        Of the target.
    tags : mapping
        Of the version.
    """
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    from raybrain import __version__

    single = np.dtype(np.float32)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(single, (-1, example.shape[1]))]),
        outputs=Schema([TensorSpec(single, (-1, dimensions))]),
        params=ParamSchema([ParamSpec("session", "long", -1)]),
    )
    # Recorded and dropped: MLflow insists on advice about hints, though there is a signature.
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
        run.log_artifact(model, MODEL)
    with contextlib.suppress(MlflowException):  # there is one already
        run.client.create_registered_model(name)
    source = f"{run.client.get_run(run.run_id).info.artifact_uri}/{MODEL}"
    values: dict[str, Any] = {tag: str(value) for tag, value in tags.items()}
    made = run.client.create_model_version(name, source, run_id=run.run_id, tags=values)
    return str(made.version)
