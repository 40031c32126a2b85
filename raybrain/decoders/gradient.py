"""What a worker needs to fit a network, and the decoder that comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raybrain import config
from raybrain.config import InputError
from raybrain.decoders.examples import Examples
from raybrain.decoders.normalisation import (
    Averaged,
    Floats,
    Rows,
    SessionScaler,
    StandardisedRows,
    TargetScaler,
    fit_target_scaler,
)
from raybrain.decoders.trained import TrainedDecoder, predict_rows
from raybrain.decoders.wiring import Wiring, wire

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Task:
    """Plain arrays that can go to an object store once and be read by every worker.

    Attributes
    ----------
    section : config section
        A decoder that is fitted by gradient descent.
    betas, validation_betas : float32, shape (row, voxel)
        Z-scores. Those of training are arrays, or rows on disk where they exceed the memory.
    targets, validation_targets : float32, shape (row, varying dimension)
        Standardised: predicting the training mean has a loss of 1.
    count : ndarray of int64, shape (row,)
        Repeats averaged in each training row, its weight in the loss.
    voxels : ndarray of bool, shape (voxel,)
        Which of the given voxels are used; carried along for the finished decoder.
    scaler, target_scaler
        What betas and targets were standardised with; carried along too.
    wiring : mapping of str to ndarray of any shape
        Order, nodes and graph of the voxels, as far as the network has any.
    """

    section: config.NetworkDecoder
    betas: Rows
    targets: Rows
    count: NDArray[np.int64]
    validation_betas: Floats
    validation_targets: Floats
    voxels: NDArray[np.bool_]
    scaler: SessionScaler
    target_scaler: TargetScaler
    wiring: Wiring = field(default_factory=dict)
    start: Mapping[str, NDArray] = field(default_factory=dict)
    """Weights to start from, by name, each of the shape of the network's own; the others start at
    random."""

    def build(self, *, seed: int) -> nn.Module:
        """Return the untrained network.

        Parameters
        ----------
        seed : int
            Of the random weights.
        """
        import torch

        from raybrain.decoders.build import build_network

        network = build_network(
            self.section,
            voxels=self.betas.shape[1],
            outputs=self.targets.shape[1],
            wiring=self.wiring,
            seed=seed,
        )
        given = {name: torch.from_numpy(np.array(value)) for name, value in self.start.items()}
        network.load_state_dict(network.state_dict() | given)
        return network

    def finish(self, network: nn.Module) -> TrainedDecoder:
        """Return the decoder of a trained network; its gain and R² come from validation images."""
        predicted = predict_rows(network, self.validation_betas)
        scaler = self.target_scaler
        deviation = scaler.deviation[scaler.varying] / scaler.scale
        spread = predicted.std(axis=0)
        gain = np.ones_like(scaler.mean)
        gain[scaler.varying] = np.divide(
            deviation, spread, out=np.ones_like(spread), where=spread > 0
        )
        error = np.mean((predicted - self.validation_targets) ** 2, axis=0)
        r2 = np.zeros_like(scaler.mean)
        r2[scaler.varying] = 1.0 - error / np.mean(self.validation_targets**2, axis=0)
        return TrainedDecoder(
            section=self.section,
            voxels=self.voxels,
            scaler=self.scaler,
            targets=scaler,
            gain=gain,
            held_out_r2=r2,
            parameters={
                name: tensor.detach().cpu().numpy().copy()
                for name, tensor in network.state_dict().items()
            },
            wiring=self.wiring,
        )


def gradient_task(
    train: Examples,
    *,
    targets: Rows,
    validation: Averaged,
    validation_targets: NDArray,
    section: config.NetworkDecoder,
) -> Task:
    """Return the arrays to fit a network on, targets standardised by training images alone.

    Parameters
    ----------
    train : Examples
        From `prepare`, given training trials.
    targets : shape (row, dimension)
        True targets of ``train.image_id``, an array or rows that are read when asked for.
    validation : Averaged
        From ``train.like``, given validation trials.
    validation_targets : ndarray, shape (row, dimension)
        True targets of ``validation.image_id``.
    section : config section

    Raises
    ------
    InputError
        If there are no validation images, or an ROI that the network needs is missing.
    ValueError
        If training and validation share an image.
    """
    if len(validation.image_id) == 0:
        raise InputError(
            f"'{section.kind}' stops early on validation images, found none; "
            f"give the split a validation share above 0"
        )
    shared = np.intersect1d(train.image_id, validation.image_id)
    if len(shared):
        raise ValueError(f"{len(shared)} images are in both training and validation; split again")
    scaler = fit_target_scaler(targets, count=train.count)
    return Task(
        section=section,
        betas=train.betas,
        targets=scaler.transform(targets)
        if isinstance(targets, np.ndarray)
        else StandardisedRows(targets, scaler),
        count=train.count,
        validation_betas=validation.betas,
        validation_targets=scaler.transform(validation_targets),
        voxels=train.voxels,
        scaler=train.scaler,
        target_scaler=scaler,
        wiring=wire(section, examples=train),
    )
