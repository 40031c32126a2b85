"""Ridge and its kin: solved at once, target dimensions side by side."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from raybrain import cluster
from raybrain.config import ClosedForm
from raybrain.decoders import (
    Regressors,
    TrainedDecoder,
    decoder_from_ridge,
    fit_factor,
    fit_target_scaler,
    join_blocks,
    penalties_of,
    prepare,
    solve_block,
    wants_ceiling,
)
from raybrain.stages.fitting_data import Data, image_rows, on_worker

if TYPE_CHECKING:
    pass


TARGETS_PER_TASK = 4096
"""One task of ridge; the penalties of a target do not depend on the other targets."""


def ridge_on_worker(data: Data, *, section: ClosedForm) -> TrainedDecoder:
    """Return what `fit_ridge_of` fits, on a worker that holds the data instead of the driver."""
    fit = functools.partial(fit_ridge_of, data, section=section)
    return on_worker(fit, data, description="ridge").get()


def fit_ridge_of(data: Data, *, section: ClosedForm) -> TrainedDecoder:
    """Fit on training and validation trials: what is left out in turn chooses the penalties.

    Images are left out one by one with their repeats averaged. Where a target stands for a category
    every trial counts, for its repeats are different pictures, and scan runs are left out.
    """
    opened, decode, mask = data.opened, data.decode, data.mask
    by_category = opened.attributes["target"] == "category"
    examples = prepare(
        opened.betas(voxels=mask),
        session=data.session,
        image_id=image_rows(opened),
        min_noise_ceiling=decode.min_noise_ceiling,
        ceiling=opened.voxels["noise_ceiling"].to_numpy()[mask],
        repeats="trial" if by_category else "average",
        rois={name: opened.rois[name][mask] for name in decode.named_rois},
        estimate_ceiling=wants_ceiling(section),
    )
    targets = data.truth(examples.image_id)
    gpu = cluster.gpu()
    regressors = Regressors.of(examples, section=section, device=gpu)
    factor = regressors.factor
    folds = opened.trials["run"].to_numpy() if by_category else None
    if gpu is not None:
        # Block after block here, where the factor is: another task would have to wait for a GPU
        # that this one holds, and copying the factor to it takes longer than solving a block.
        fitted = fit_factor(factor, targets=targets, alphas=penalties_of(section), folds=folds)
        scaler = fitted.scaler(images=len(targets))
    else:
        width = min(TARGETS_PER_TASK, factor.targets_per_block())
        blocks = cluster.map_tasks(
            functools.partial(_solve, factor=factor, alphas=penalties_of(section), folds=folds),
            [targets[:, start : start + width] for start in range(0, targets.shape[1], width)],
            # Without a GPU, which this task may hold though torch cannot use it.
            workers=data.experiment.resources.tasks.model_copy(update={"gpus": 0.0}),
            description="ridge",
        )
        fitted = join_blocks(blocks, centre=factor.centre)
        scaler = fit_target_scaler(targets, count=examples.count)
    return decoder_from_ridge(
        fitted, examples=examples, targets=scaler, section=section, kernel=regressors.kernel
    )


def _solve(targets: np.ndarray, *, factor: Any, alphas: Any, folds: Any) -> Any:
    return solve_block(factor, targets=targets, alphas=alphas, folds=folds)
