"""Decoders: from voxels to a target. Normalisation lives in the decoder and is saved with it."""

from raybrain.decoders.examples import Examples, prepare
from raybrain.decoders.gradient import Task, gradient_task
from raybrain.decoders.normalisation import fit_target_scaler
from raybrain.decoders.ridge import factorise, join_blocks, solve_block, warn_at_edges
from raybrain.decoders.trained import (
    Predicted,
    TrainedDecoder,
    decoder_from_ridge,
    load_decoder,
    train_ridge,
)

__all__ = [
    "Examples",
    "Predicted",
    "Task",
    "TrainedDecoder",
    "decoder_from_ridge",
    "factorise",
    "fit_target_scaler",
    "gradient_task",
    "join_blocks",
    "load_decoder",
    "prepare",
    "solve_block",
    "train_ridge",
    "warn_at_edges",
]
