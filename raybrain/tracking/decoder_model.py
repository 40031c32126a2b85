"""A fitted decoder as MLflow serves it; MLflow keeps a copy of this file with every model."""

from __future__ import annotations

from typing import Any

import mlflow.pyfunc
import numpy as np


class DecoderModel(mlflow.pyfunc.PythonModel):
    """Betas (trial, voxel) of the decoder's ROIs -> its target (trial, dimension), flattened."""

    def load_context(self, context: Any) -> None:
        """Load the decoder that was saved with the model."""
        from raybrain.decoders import load_decoder

        self.decoder = load_decoder(context.artifacts["decoder"])

    # MLflow reads hints of the input as its signature, which it has got already.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Return the decoded target of every trial.

        ``params["session"]`` is the scan session of all trials, whose own mean and scale are used
        if the decoder was fitted on it; otherwise statistics are those pooled over sessions.
        """
        betas = np.asarray(model_input, np.float32)
        session = np.full(len(betas), (params or {}).get("session", -1))
        trials = np.arange(len(betas))
        return self.decoder.predict(betas, session=session, image_id=trials, average=False).values


mlflow.models.set_model(DecoderModel())
