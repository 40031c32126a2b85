"""Networks and priors: fitted by gradient descent, in a group of workers that may change size."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raybrain import cluster, outputs, places, store
from raybrain.config import ClosedForm, InputError
from raybrain.decoders import (
    SharedTask,
    Task,
    TrainedDecoder,
    gradient_task,
    prepare,
    shared_task,
    within,
)
from raybrain.stages import describing, extent, previewing, say
from raybrain.stages.fitting_data import PRIOR, Data, image_rows, on_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from raybrain.cluster import Shared
    from raybrain.config import Decode, Experiment, NetworkDecoder, Prior, Training
    from raybrain.decoders.prior import PriorTask, TrainedPrior
    from raybrain.outputs import Output
    from raybrain.tracking import Run


CURVES = "curves.json"
"""Metric to (epoch, value) pairs of a network's training."""


PICTURES_AT_ONCE = 256
"""Pictures that are held at once to be compared."""


ROWS = "rows.zarr"
"""Prepared rows of data that exceed the memory, while the network is fitted."""


def fit_network(data: Data, *, output: Output, run: Run) -> TrainedDecoder:
    """Fit on training trials and stop early on validation images, with Ray Train."""
    scratch = f"{output.folder}/{ROWS}"
    prepare_task = functools.partial(_task, data)
    if data.exceeds_memory:
        say("", f"{data.gigabytes:.1f} GB of {data.target} are streamed: training.memory is less")
        prepare_task = functools.partial(_task_on_disk, data, folder=scratch)
    decoder: TrainedDecoder = _fit_prepared(prepare_task, data, output=output, run=run)
    places.remove(scratch)
    return decoder


def fit_prior(
    data: Data, *, decoder: TrainedDecoder, section: Prior, output: Output, run: Run
) -> TrainedPrior:
    """Fit the prior that follows a decoder, with Ray Train."""
    task = on_worker(
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
    prior: TrainedPrior = on_worker(finish, data, description="finish prior").get()
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


def fit_subjects(data: Data, *, output: Output, run: Run) -> dict[str, TrainedDecoder]:
    """Fit one network to several subjects; return a decoder for each."""
    whole = data.decode.model_copy(update={"sessions": None})
    own, *others = outputs.each_subject(data.experiment)
    found = {own.subject: Data.of(own, data.target, data.decode)}
    for one in others:
        found[outputs.subject_name(own, one)] = Data.of(one, data.target, whole)
    extent.check_together(data.experiment, [one.gigabytes for one in found.values()])
    prepare_task = functools.partial(_task_of_all, found)
    decoders: dict[str, TrainedDecoder] = _fit_prepared(prepare_task, data, output=output, run=run)
    return decoders


def _fit_prepared(
    prepare_task: Callable[[], Task | SharedTask], data: Data, *, output: Output, run: Run
) -> Any:
    """Return the decoder, or one of each subject; the arrays stay with the workers."""
    task = on_worker(prepare_task, data, description="prepare")
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
    return on_worker(finish, data, description="hold out").get()


def _task_of_all(found: dict[str, Data]) -> SharedTask:
    own = next(iter(found.values()))
    others = {
        subject: one
        for subject, one in found.items()
        if one.experiment.dataset != own.experiment.dataset
    }
    if others:
        _refuse_test_pictures(others, own=own)
    return shared_task({subject: _task(one) for subject, one in found.items()})


def _refuse_test_pictures(others: dict[str, Data], *, own: Data) -> None:
    """Raise `InputError` if a subject of another dataset was shown what this one is tested on."""
    trained = set(own.opened.trials["image_id"])
    held_out = [image_id for image_id in own.opened.images.index if image_id not in trained]
    known = {digest: image_id for image_id, digest in _picture_digests(own, held_out)}
    for subject, other in others.items():
        for image_id, digest in _picture_digests(other, other.opened.shown):
            if digest in known:
                raise InputError(
                    f"'subjects' has {subject}, who trains on {image_id}, the same picture as "
                    f"{known[digest]}, which is not among the training images of "
                    f"{own.experiment.subject}; leave {subject} out, or give both datasets the "
                    f"same split"
                )


def _picture_digests(data: Data, image_ids: list[str]) -> Iterator[tuple[str, bytes]]:
    for start in range(0, len(image_ids), PICTURES_AT_ONCE):
        part = image_ids[start : start + PICTURES_AT_ONCE]
        for image_id, picture in zip(part, data.opened.pixels(part), strict=True):
            yield image_id, hashlib.sha256(picture.tobytes()).digest()


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
        rois={name: opened.rois[name][mask] for name in decode.named_rois},
        xyz=opened.voxels[["x", "y", "z"]].to_numpy()[mask],
        edges=within(opened.edges, mask),
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
