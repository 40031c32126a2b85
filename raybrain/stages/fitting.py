"""``train``: a decoder per target, from training and validation trials only."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raybrain import cluster, outputs, store
from raybrain.config import Ridge
from raybrain.decoders import (
    Task,
    TrainedDecoder,
    decoder_from_ridge,
    factorise,
    fit_target_scaler,
    gradient_task,
    join_blocks,
    prepare,
    solve_block,
    warn_at_edges,
)
from raybrain.decoders.ridge import ALPHAS
from raybrain.stages import Made

if TYPE_CHECKING:
    from raybrain.config import Decode, Experiment
    from raybrain.outputs import Output
    from raybrain.store import SubjectStore
    from raybrain.tracking import Run

DECODER = "decoder"
"""Folder of the fitted decoder within the stage's output."""
TARGETS_PER_TASK = 4096
"""One task of ridge; the penalties of a target do not depend on the other targets."""


def work(experiment: Experiment, output: Output, run: Run) -> Made:
    """Fit the decoder of the target that ``output`` is named after and save it."""
    target = Path(output.folder).name
    decode = dict(outputs.targets(experiment))[target]
    opened = store.open_store(outputs.subject_store(experiment).folder, splits="training")
    truth = functools.partial(targets_of, experiment, target, opened)
    if decode.shuffled:
        truth = functools.partial(_shuffled, truth=truth, seed=experiment.seed)
    fit = _fit_ridge if isinstance(decode.decoder, Ridge) else _fit_network
    decoder = fit(experiment, decode, opened=opened, truth=truth, output=output, run=run)
    decoder.save(Path(output.folder) / DECODER)
    varying = decoder.held_out_r2[decoder.targets.varying]
    run.log_metrics({"held_out_r2": float(varying.mean()), "voxels": int(decoder.voxels.sum())})
    run.set_tags({"target": target, "decoder": decode.decoder.kind})
    return Made(
        f"{target}: {decode.decoder.kind} from {decoder.voxels.sum():,} voxels of "
        f"{', '.join(decode.rois)} to {len(decoder.gain):,} dimensions, "
        f"held-out R² {varying.mean():.3f} on training images"
    )


def targets_of(
    experiment: Experiment, target: str, opened: SubjectStore, rows: np.ndarray
) -> np.ndarray:
    """Return the true targets (image, dimension) float32 of images given by row of the store."""
    image_ids = opened.images.index.to_numpy()[rows].tolist()
    features = outputs.features(experiment).folder
    values = store.read_rows(features, target, image_ids=image_ids)
    if target == "prompt_embeds" and experiment.features.tokens is not None:
        values = values[:, : experiment.features.tokens]
    return values.reshape(len(values), -1)


def _shuffled(rows: np.ndarray, *, truth: Any, seed: int) -> np.ndarray:
    """Return the true targets of ``rows`` in an order that has nothing to do with them."""
    dealt: np.ndarray = truth(np.random.default_rng(seed).permutation(rows))
    return dealt


def image_rows(opened: SubjectStore) -> np.ndarray:
    """Return for each visible trial the row of its image in the store."""
    return opened.images.loc[opened.trials["image_id"], "row"].to_numpy()


def _fit_ridge(
    experiment: Experiment, decode: Decode, *, opened: SubjectStore, truth: Any, **_: Any
) -> TrainedDecoder:
    """Fit on training and validation trials: what is left out in turn chooses the penalties.

    Images are left out one by one with their repeats averaged. Where a target stands for a category
    every trial counts, for its repeats are different pictures, and scan runs are left out.
    """
    assert isinstance(decode.decoder, Ridge)
    mask = opened.mask(decode.rois)
    by_category = opened.attributes["target"] == "category"
    examples = prepare(
        opened.betas(voxels=mask),
        session=opened.trials["session"].to_numpy(),
        image_id=image_rows(opened),
        min_noise_ceiling=decode.min_noise_ceiling,
        ceiling=opened.voxels["noise_ceiling"].to_numpy()[mask],
        repeats="trial" if by_category else "average",
    )
    targets = truth(examples.image_id)
    factor = factorise(examples.betas, count=examples.count)
    alphas = decode.decoder.alphas or ALPHAS
    folds = opened.trials["run"].to_numpy() if by_category else None
    width = min(TARGETS_PER_TASK, factor.targets_per_block())
    blocks = cluster.map_tasks(
        functools.partial(_solve, factor=factor, alphas=alphas, folds=folds),
        [targets[:, start : start + width] for start in range(0, targets.shape[1], width)],
        workers=experiment.resources.tasks,
        description="ridge",
    )
    fitted = join_blocks(blocks, centre=factor.centre)
    warn_at_edges(fitted.alpha, alphas=alphas)
    return decoder_from_ridge(
        fitted,
        examples=examples,
        targets=fit_target_scaler(targets, count=examples.count),
        section=decode.decoder,
    )


def _solve(targets: np.ndarray, *, factor: Any, alphas: Any, folds: Any) -> Any:
    return solve_block(factor, targets=targets, alphas=alphas, folds=folds)


def _fit_network(
    experiment: Experiment,
    decode: Decode,
    *,
    opened: SubjectStore,
    truth: Any,
    output: Output,
    run: Run,
) -> TrainedDecoder:
    """Fit on training trials and stop early on validation images, with Ray Train."""
    assert not isinstance(decode.decoder, Ridge)
    mask = opened.mask(decode.rois)
    betas, rows = opened.betas(voxels=mask), image_rows(opened)
    session = opened.trials["session"].to_numpy()
    train = (opened.trials["split"] == "train").to_numpy()
    examples = prepare(
        betas[train],
        session=session[train],
        image_id=rows[train],
        min_noise_ceiling=decode.min_noise_ceiling,
        ceiling=opened.voxels["noise_ceiling"].to_numpy()[mask],
        repeats=decode.repeats,
        rois={name: opened.rois[name][mask] for name in decode.rois},
        xyz=opened.voxels[["x", "y", "z"]].to_numpy()[mask],
    )
    validation = examples.like(betas[~train], session=session[~train], image_id=rows[~train])
    task = gradient_task(
        examples,
        targets=truth(examples.image_id),
        validation=validation,
        validation_targets=truth(validation.image_id),
        section=decode.decoder,
    )
    parameters = cluster.train(
        _network_loop,
        settings={
            "task": cluster.share(task),
            "training": experiment.training,
            "seed": experiment.seed,
        },
        name="checkpoints",
        storage=output.folder,
        workers=experiment.resources.train,
        on_report=lambda metrics: run.log_metrics(
            {name: value for name, value in metrics.items() if name != "epoch"},
            step=metrics["epoch"],
        ),
    )
    network = task.build(seed=experiment.seed)
    import torch

    network.load_state_dict(
        {name: torch.from_numpy(value.copy()) for name, value in parameters.items()}
    )
    return task.finish(network)


def _network_loop(settings: dict[str, Any]) -> dict[str, np.ndarray]:
    """Train one network on one worker of a group and return its weights."""
    import torch

    from raybrain import training

    task: Task = settings["task"].get()
    network = task.build(seed=settings["seed"]).to(cluster.device())
    with cluster.latest_checkpoint() as folder:
        state = torch.load(folder / "state.pt", weights_only=True) if folder else None
    epochs = training.fit(
        network,
        train=training.resident(task.betas, targets=task.targets, count=task.count),
        validation=training.resident(task.validation_betas, targets=task.validation_targets),
        settings=settings["training"],
        seed=settings["seed"],
        cosine=task.section.cosine,
        contrastive=task.section.contrastive,
        state=state,
        rank=cluster.rank(),
        world_size=cluster.world_size(),
    )
    for epoch in epochs:
        saved = functools.partial(_save_state, epoch=epoch)
        cluster.report({"epoch": epoch.number, **epoch.metrics}, save=saved)
    return {name: value.cpu().numpy() for name, value in network.state_dict().items()}


def _save_state(folder: Path, *, epoch: Any) -> None:
    import torch

    torch.save(epoch.state(), folder / "state.pt")
