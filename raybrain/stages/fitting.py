"""``train``: a decoder per target, from training and validation trials only."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from raybrain import cluster, outputs, places, store, tracking
from raybrain.config import ClosedForm, Ridge
from raybrain.decoders import (
    Regressors,
    SharedTask,
    Task,
    TrainedDecoder,
    decoder_from_ridge,
    fit_target_scaler,
    gradient_task,
    join_blocks,
    penalties_of,
    prepare,
    shared_task,
    solve_block,
    wants_ceiling,
    warn_of_penalties,
)
from raybrain.stages import Made, describing, extent, previewing, say

if TYPE_CHECKING:
    from collections.abc import Callable

    from raybrain.cluster import Shared
    from raybrain.config import Decode, Experiment, NetworkDecoder, Prior, Training
    from raybrain.decoders.prior import PriorTask, TrainedPrior
    from raybrain.outputs import Output
    from raybrain.store import SubjectStore
    from raybrain.tracking import Run

Value = TypeVar("Value")

DECODER = "decoder"
"""Folder of the fitted decoder within the stage's output."""
OTHERS = "others"
"""Folder of the decoders of the other subjects that trained with this one."""
CURVES = "curves.json"
"""Metric to (epoch, value) pairs of a network's training."""
PRIOR = "prior"
"""Folder of the diffusion prior that follows the decoder."""
REFERENCE = "reference"
"""Folder of ridge on the same voxels, beside a network."""
ROWS = "rows.zarr"
"""Prepared rows of data that exceed the memory, while the network is fitted."""
TARGETS_PER_TASK = 4096
"""One task of ridge; the penalties of a target do not depend on the other targets."""


def work(experiment: Experiment, output: Output, run: Run) -> Made:
    """Fit the decoder of the target that ``output`` is named after and save it."""
    target = Path(output.folder).name
    decode = dict(outputs.targets(experiment))[target]
    data = Data.of(experiment, target, decode)
    others: dict[str, TrainedDecoder] = {}
    if isinstance(decode.decoder, ClosedForm):
        decoder = _ridge_on_worker(data, section=decode.decoder)
        warn_of_penalties(decoder)
    elif len(outputs.subjects_of(experiment, decode)) > 1:
        others = _fit_subjects(data, output=output, run=run)
        decoder = others.pop(experiment.subject)
    else:
        decoder = _fit_network(data, output=output, run=run)
    prior = None
    if decode.prior is not None:
        prior = _fit_prior(data, decoder=decoder, section=decode.prior, output=output, run=run)
    with places.writing(output.folder) as folder:
        decoder.save(folder / DECODER)
        if prior is not None:
            prior.save(folder / PRIOR)
        for subject, other in others.items():
            other.save(folder / OTHERS / subject)
        if data.wants_reference:
            _ridge_on_worker(data, section=Ridge()).save(folder / REFERENCE)
        if experiment.tracking.models:
            _register(data, decoder=decoder, saved=folder / DECODER, output=output, run=run)
    told = _told(decoder)
    if not experiment.tracking.models or decode.shuffled:  # the model's record has it otherwise
        run.log_metrics({"held_out_r2": told["held_out_r2"]})
    run.log_metrics({"voxels": told["voxels"]})
    run.set_tags({"target": target, "decoder": decode.decoder.kind})
    return Made(
        f"{target}: {decode.decoder.kind} from {decoder.voxels.sum():,} voxels of "
        f"{', '.join(decode.rois)} to {len(decoder.gain):,} dimensions, "
        f"held-out R² {told['held_out_r2']:.3f} on training images",
        notes=told,
    )


@dataclass(frozen=True)
class Data:
    """One target of one subject, before anything is fitted; may be sent to any node."""

    experiment: Experiment
    target: str
    decode: Decode
    opened: SubjectStore
    """Training and validation trials."""
    features: str
    """The store of targets."""

    @classmethod
    def of(cls, experiment: Experiment, target: str, decode: Decode) -> Data:
        """Return the data of one target of an experiment."""
        folder = outputs.subject_store(experiment).folder
        opened = store.open_store(folder, splits="training")
        if decode.sessions is not None:
            session = opened.trials["session"]
            first = np.unique(session)[: decode.sessions]
            opened = replace(opened, trials=opened.trials[session.isin(first)])
        if decode.training is not None:
            experiment = experiment.model_copy(update={"training": decode.training})
        return cls(experiment, target, decode, opened, outputs.features(experiment).folder)

    @property
    def mask(self) -> np.ndarray:
        """(voxel,) those of the target's ROIs."""
        return self.opened.mask(self.decode.rois)

    @property
    def session(self) -> np.ndarray:
        """(trial,) scan sessions."""
        return self.opened.trials["session"].to_numpy()

    def truth(self, rows: np.ndarray) -> np.ndarray:
        """Return the targets of images given by row of the store, or for the control others'."""
        return self.true_targets(self.dealt(rows))

    @property
    def true_targets(self) -> Callable[[np.ndarray], np.ndarray]:
        """Rows of the store -> `targets_of` them."""
        return functools.partial(
            targets_of,
            features=self.features,
            target=self.target,
            tokens=self.experiment.features.tokens,
            opened=self.opened,
        )

    def dealt(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows themselves, or for the control in an order that means nothing."""
        if not self.decode.shuffled:
            return rows
        return np.random.default_rng(self.experiment.seed).permutation(rows)

    @property
    def gigabytes(self) -> float:
        """Memory of the raw betas and the targets of all trials."""
        trials = len(self.opened.trials)
        return 4e-9 * trials * (int(self.mask.sum()) + self.dimensions)

    @property
    def dimensions(self) -> int:
        """Of the target."""
        return self.truth(image_rows(self.opened)[:1]).shape[1]

    @property
    def exceeds_memory(self) -> bool:
        """Whether betas and targets are to be streamed."""
        return self.gigabytes > self.experiment.training.memory

    @property
    def wants_reference(self) -> bool:
        """Whether ridge is fitted beside the decoder; ridge always holds its data."""
        other = not isinstance(self.decode.decoder, Ridge)
        return other and self.decode.reference and not self.exceeds_memory


def _register(
    data: Data, *, decoder: TrainedDecoder, saved: Path, output: Output, run: Run
) -> None:
    experiment, target = data.experiment, data.target
    held_out = describing.parts_of_data(experiment, test=False)[-1]
    told = _told(decoder)
    tracking.register_decoder(
        run,
        saved,
        name=describing.registered_name(experiment, target),
        example=data.opened.first_betas(2, voxels=data.mask),
        dimensions=len(decoder.gain),
        tags={
            "seal": output.seal.digest,
            "experiment": experiment.name,
            "dataset": outputs.dataset_entry(experiment).name,
            "subject": experiment.subject,
            "target": target,
            "decoder": data.decode.decoder.kind,
        },
        params=describing.settings_of(experiment, target),
        # A control decodes nothing and is never the best, whatever it scores.
        score=float("nan") if data.decode.shuffled else told["held_out_r2"],
        about=describing.decoders_page(experiment, target),
        card=describing.decoder_card(experiment, target, **told),
        dataset=held_out,
    )


def _told(decoder: TrainedDecoder) -> dict[str, Any]:
    """Return what cards and seals say of a fitted decoder."""
    varying = decoder.held_out_r2[decoder.targets.varying]
    return {
        "voxels": int(decoder.voxels.sum()),
        "dimensions": len(decoder.gain),
        "held_out_r2": float(varying.mean()),
    }


def targets_of(
    rows: np.ndarray, *, features: str, target: str, tokens: int | None, opened: SubjectStore
) -> np.ndarray:
    """Return the true targets (image, dimension) float32 of images given by row of the store.

    Parameters
    ----------
    rows : ndarray of int, shape (image,)
    features : str
        The store of targets.
    target : str
    tokens : int or None
        Leading tokens of the prompt embeddings; all when None.
    opened : SubjectStore
    """
    image_ids = opened.images.index.to_numpy()[rows].tolist()
    values = store.read_rows(features, target, image_ids=image_ids)
    if target == "prompt_embeds" and tokens is not None:
        values = values[:, :tokens]
    return values.reshape(len(values), -1)


def image_rows(opened: SubjectStore) -> np.ndarray:
    """Return for each visible trial the row of its image in the store."""
    return opened.images.loc[opened.trials["image_id"], "row"].to_numpy()


def _on_worker(make: Callable[[], Value], data: Data, *, description: str) -> Shared[Value]:
    """Do with a target's data on a worker what the driver's node need not have the memory for."""
    return cluster.on_worker(
        make,
        workers=data.experiment.resources.tasks,
        description=f"{description} {data.target}",
    )


def _ridge_on_worker(data: Data, *, section: ClosedForm) -> TrainedDecoder:
    fit = functools.partial(fit_ridge_of, data, section=section)
    return _on_worker(fit, data, description="ridge").get()


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
    regressors = Regressors.of(examples, section=section)
    factor = regressors.factor
    folds = opened.trials["run"].to_numpy() if by_category else None
    width = min(TARGETS_PER_TASK, factor.targets_per_block())
    blocks = cluster.map_tasks(
        functools.partial(_solve, factor=factor, alphas=penalties_of(section), folds=folds),
        [targets[:, start : start + width] for start in range(0, targets.shape[1], width)],
        workers=data.experiment.resources.tasks,
        description="ridge",
    )
    fitted = join_blocks(blocks, centre=factor.centre)
    return decoder_from_ridge(
        fitted,
        examples=examples,
        targets=fit_target_scaler(targets, count=examples.count),
        section=section,
        kernel=regressors.kernel,
    )


def _solve(targets: np.ndarray, *, factor: Any, alphas: Any, folds: Any) -> Any:
    return solve_block(factor, targets=targets, alphas=alphas, folds=folds)


def _fit_network(data: Data, *, output: Output, run: Run) -> TrainedDecoder:
    """Fit on training trials and stop early on validation images, with Ray Train."""
    scratch = f"{output.folder}/{ROWS}"
    prepare_task = functools.partial(_task, data)
    if data.exceeds_memory:
        say("", f"{data.gigabytes:.1f} GB of {data.target} are streamed: training.memory is less")
        prepare_task = functools.partial(_task_on_disk, data, folder=scratch)
    decoder: TrainedDecoder = _fit_prepared(prepare_task, data, output=output, run=run)
    places.remove(scratch)
    return decoder


def _fit_prior(
    data: Data, *, decoder: TrainedDecoder, section: Prior, output: Output, run: Run
) -> TrainedPrior:
    """Fit the prior that follows a decoder, with Ray Train."""
    task = _on_worker(
        functools.partial(_prior_task, data, section, held_out_r2=decoder.held_out_r2),
        data,
        description="prepare prior",
    )
    parameters = _trained(
        task,
        data.experiment.model_copy(update={"training": section.training}),
        output=output,
        run=run,
        part=PRIOR,
    )
    finish = functools.partial(_finished, task, parameters, seed=data.experiment.seed)
    prior: TrainedPrior = _on_worker(finish, data, description="finish prior").get()
    return prior


def _prior_task(data: Data, section: Prior, *, held_out_r2: np.ndarray) -> PriorTask:
    from raybrain.decoders.prior import prior_task  # imports torch

    trials = data.opened.trials
    train = trials["split"] == "train"
    shape = store.row_shape(data.features, data.target)

    def embeds(chosen: Any) -> np.ndarray:
        rows = data.opened.images.loc[trials["image_id"][chosen].unique(), "row"].to_numpy()
        values = data.truth(np.sort(rows))
        return values.reshape(len(values), -1, *shape[1:])

    return prior_task(
        section, train=embeds(train), validation=embeds(~train), held_out_r2=held_out_r2
    )


def _fit_subjects(data: Data, *, output: Output, run: Run) -> dict[str, TrainedDecoder]:
    """Fit one network to several subjects; return a decoder for each."""
    whole = data.decode.model_copy(update={"sessions": None})
    found = {
        one.subject: Data.of(
            one, data.target, data.decode if one.subject == data.experiment.subject else whole
        )
        for one in outputs.each_subject(data.experiment)
    }
    extent.check_together(data.experiment, [one.gigabytes for one in found.values()])
    prepare_task = functools.partial(_task_of_all, found)
    decoders: dict[str, TrainedDecoder] = _fit_prepared(prepare_task, data, output=output, run=run)
    return decoders


def _fit_prepared(
    prepare_task: Callable[[], Task | SharedTask], data: Data, *, output: Output, run: Run
) -> Any:
    """Return the decoder, or one of each subject; the arrays stay with the workers."""
    task = _on_worker(prepare_task, data, description="prepare")
    followed = data.target == "latents" and describing.may_show(data.experiment)
    images = previewing.count(data.experiment) if followed else 0
    parameters = _trained(task, data.experiment, output=output, run=run, images=images)
    if images:
        previewing.show(
            data.experiment,
            run,
            folder=f"{output.folder}/{previewing.FOLDER}",
            opened=data.opened,
            shape=store.row_shape(data.features, data.target),
        )
    finish = functools.partial(_finished, task, parameters, seed=data.experiment.seed)
    return _on_worker(finish, data, description="hold out").get()


def _task_of_all(found: dict[str, Data]) -> SharedTask:
    return shared_task({subject: _task(one) for subject, one in found.items()})


def _task(data: Data) -> Task:
    """Return the arrays to fit a network on."""
    opened, decode, mask = data.opened, data.decode, data.mask
    betas, rows, session = opened.betas(voxels=mask), image_rows(opened), data.session
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
    return gradient_task(
        examples,
        targets=data.truth(examples.image_id),
        validation=validation,
        validation_targets=data.truth(validation.image_id),
        section=_network_section(decode),
    )


def _task_on_disk(data: Data, *, folder: str) -> Task:
    """Return the same as `_task`, its training rows below ``folder``."""
    from raybrain.stages.streaming import TargetRows, prepare_on_disk  # imports torch

    examples, validation = prepare_on_disk(
        data.opened,
        image_id=image_rows(data.opened),
        train=(data.opened.trials["split"] == "train").to_numpy(),
        decode=data.decode,
        mask=data.mask,
        dimensions=data.dimensions,
        folder=folder,
        memory=data.experiment.training.memory,
    )
    return gradient_task(
        examples,
        targets=TargetRows(data.true_targets, data.dealt(examples.image_id), data.dimensions),
        validation=validation,
        validation_targets=data.truth(validation.image_id),
        section=_network_section(data.decode),
    )


def _network_section(decode: Decode) -> NetworkDecoder:
    assert not isinstance(decode.decoder, ClosedForm)
    return decode.decoder


def _trained(
    task: Shared[Any],
    experiment: Experiment,
    *,
    output: Output,
    run: Run,
    part: str | None = None,
    images: int = 0,
) -> dict[str, np.ndarray]:
    """Return the weights that Ray Train's workers arrive at, resumed if they were killed.

    With ``part``, what is logged and kept is of that part of the decoder. Of ``images`` validation
    images, what the network predicts is kept now and then.
    """
    curves: dict[str, list[tuple[int, float]]] = {}
    prefix = f"{part}." if part else ""

    def log(metrics: dict[str, Any]) -> None:
        epoch = metrics["epoch"]
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        run.log_metrics({f"{prefix}{name}": value for name, value in values.items()}, step=epoch)
        for name, value in values.items():
            curves.setdefault(name, []).append((epoch, value))

    trained: dict[str, np.ndarray] = cluster.train(
        _network_loop,
        settings={
            "task": task,
            "training": experiment.training,
            "seed": experiment.seed,
            "previews": f"{output.folder}/{previewing.FOLDER}",
            "images": images,
        },
        name=f"{prefix}checkpoints",
        storage=output.folder,
        workers=experiment.resources.train,
        on_report=log,
    )
    places.write_text(f"{output.folder}/{prefix}{CURVES}", json.dumps(curves) + "\n")
    return trained


def _finished(prepared: Shared[Any], parameters: dict[str, np.ndarray], *, seed: int) -> Any:
    """Return the decoder, or one of each subject, with what it scores on held-out images."""
    import torch

    task: Task | SharedTask | PriorTask = prepared.get()
    network = task.build(seed=seed)
    network.load_state_dict(
        {name: torch.from_numpy(value.copy()) for name, value in parameters.items()}
    )
    return task.finish(network)


def _network_loop(settings: dict[str, Any]) -> dict[str, np.ndarray]:
    """Train one network on one worker of a group and return its weights."""
    import torch

    from raybrain import training

    task: Task | SharedTask | PriorTask = settings["task"].get()
    chosen: Training = settings["training"]
    network = task.build(seed=settings["seed"]).to(cluster.device())
    with cluster.latest_checkpoint() as folder:
        state = torch.load(folder / "state.pt", weights_only=True) if folder else None
    epochs = training.fit_task(
        network,
        task=task,
        settings=chosen,
        seed=settings["seed"],
        state=state,
        rank=cluster.rank(),
        world_size=cluster.world_size(),
    )
    for epoch in epochs:
        saved = functools.partial(_save_state, epoch=epoch)
        if cluster.rank() == 0 and previewing.is_look(epoch.number, last=epoch.last):
            previewing.keep(
                network,
                task,
                epoch=epoch.number,
                folder=settings["previews"],
                images=settings["images"],
            )
        cluster.report({"epoch": epoch.number, **epoch.metrics, **_gpu_memory()}, save=saved)
    return {name: value.cpu().numpy() for name, value in network.state_dict().items()}


def _gpu_memory() -> dict[str, float]:
    """Return the most gigabytes that this worker held on its GPU; nothing without one."""
    import torch

    if not torch.cuda.is_available():
        return {}
    return {"gpu_memory_gb": torch.cuda.max_memory_allocated() / 1e9}


def _save_state(folder: Path, *, epoch: Any) -> None:
    import torch

    torch.save(epoch.state(), folder / "state.pt")
