"""Decoders: from voxels to a target. Normalisation lives in the decoder and is saved with it."""

from raybrain.decoders.examples import Examples, prepare
from raybrain.decoders.gradient import Task, gradient_task
from raybrain.decoders.trained import Predicted, TrainedDecoder, load_decoder, train_ridge

__all__ = [
    "Examples",
    "Predicted",
    "Task",
    "TrainedDecoder",
    "gradient_task",
    "load_decoder",
    "prepare",
    "train_ridge",
]
