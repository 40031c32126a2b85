"""Decoders: from voxels to a target. Normalisation lives in the decoder and is saved with it."""

from raybrain.decoders.examples import Examples, above_ceiling, prepare
from raybrain.decoders.gradient import Task, gradient_task
from raybrain.decoders.normalisation import (
    Averaged,
    Rows,
    SessionScaler,
    fit_target_scaler,
    noise_ceiling,
)
from raybrain.decoders.ridge import (
    factorise,
    fit_factor,
    fit_ridge,
    grouped_folds,
    join_blocks,
    solve_block,
    store_block,
)
from raybrain.decoders.sharing import CARD, write_model
from raybrain.decoders.subjects import SharedTask, adapted_task, shared_task
from raybrain.decoders.trained import (
    Predicted,
    Regressors,
    TrainedDecoder,
    decoder_from_ridge,
    load_decoder,
    penalties_of,
    predict_rows,
    train_ridge,
    wants_ceiling,
    warn_of_penalties,
)
from raybrain.decoders.voxel_graph import within
from raybrain.decoders.wiring import MESH

__all__ = [
    "CARD",
    "MESH",
    "Averaged",
    "Examples",
    "Predicted",
    "Regressors",
    "Rows",
    "SessionScaler",
    "SharedTask",
    "Task",
    "TrainedDecoder",
    "above_ceiling",
    "adapted_task",
    "decoder_from_ridge",
    "factorise",
    "fit_factor",
    "fit_ridge",
    "fit_target_scaler",
    "gradient_task",
    "grouped_folds",
    "join_blocks",
    "load_decoder",
    "noise_ceiling",
    "penalties_of",
    "predict_rows",
    "prepare",
    "shared_task",
    "solve_block",
    "store_block",
    "train_ridge",
    "wants_ceiling",
    "warn_of_penalties",
    "within",
    "write_model",
]
