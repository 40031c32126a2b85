"""One torch loop that yields an epoch at a time; how many workers share it does not change it.

A global batch is a slice of one seeded permutation, split between the workers; the loss of a worker
is its share of the global mean, random numbers inside the network belong to rows of the global
batch, and every epoch seeds itself. So a run that resumes, or that gains or loses a worker, goes on
as if nothing had happened.

On a GPU the host waits for the device twice an epoch, for the losses of training and validation.
Random numbers inside the network are drawn where it computes: from one seed a GPU and a CPU draw
different ones, while the order of the rows is the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raybrain.config import InputError, Training
from raybrain.decoders.published import Gcn, Vae, VoxelCnn
from raybrain.decoders.residual_mlp import Heads, ResidualMLP
from raybrain.decoders.row_noise import NoisyModule, RowNoise
from raybrain.training.delivery import Delivery, Way, delivery
from raybrain.training.feeds import Batch, Feed
from raybrain.training.losses import Contrast, gather, row_loss, soft_clip
from raybrain.training.mixing import Mixture, bimixco, draw_mixture, mixed
from raybrain.training.precision import autocast
from raybrain.training.progress import Progress, advance, learning_rate
from raybrain.training.replay import Replay, recorder
from raybrain.training.workers import Sum, Workers, distributed_sum

VALIDATION_ROWS = 1024
NO_CONTRAST = Contrast()
REPLAYED = (ResidualMLP, VoxelCnn, Vae, Gcn)
"""Networks that lost as much in every epoch when they were replayed on an H100: none waits for the
device within a step."""

State = dict[str, Any]


@dataclass(frozen=True)
class Epoch:
    """One pass over the training rows.

    Attributes
    ----------
    number : int
        From 1.
    train_loss : float
        Mean over the epoch of everything that is minimised.
    validation_loss : float
        Mean squared error in standardised targets: 1 is predicting the training mean.
    lr : float
        Learning rate of the last step.
    rows_per_second : float
        Training rows of all workers over the wall time of the epoch, validation not included.
    improved : bool
        Whether these are the best weights so far.
    best_loss : float
        Least validation loss so far.
    last : bool
        Whether training ends here, by patience or by the number of epochs.
    """

    number: int
    train_loss: float
    validation_loss: float
    lr: float
    rows_per_second: float
    improved: bool
    best_loss: float
    last: bool
    _capture: Callable[[], State]

    @property
    def metrics(self) -> dict[str, float]:
        """What to log."""
        return {
            "train_loss": self.train_loss,
            "validation_loss": self.validation_loss,
            "best_validation_loss": self.best_loss,
            "lr": self.lr,
            "rows_per_second": self.rows_per_second,
        }

    def state(self) -> State:
        """Return a copy of everything that `fit` needs to go on; call before the next epoch.

        Tensors, numbers and strings only, so ``torch.load(..., weights_only=True)`` reads it.
        """
        return self._capture()


@dataclass(frozen=True)
class _Setup:
    """What stays the same from epoch to epoch."""

    model: nn.Module
    """As given, perhaps wrapped."""
    bare: nn.Module
    optimiser: torch.optim.Optimizer
    settings: Training
    seed: int
    cosine: float
    contrast: Contrast
    workers: Workers
    device: torch.device
    noise: RowNoise
    train: Delivery
    validation: Delivery
    average: dict[str, Tensor]
    """Moving average of the parameters; empty without one."""
    averaged: list[Tensor]
    """The parameters in its order."""


def fit(
    model: nn.Module,
    *,
    train: Feed,
    validation: Feed,
    settings: Training,
    seed: int,
    cosine: float = 0.0,
    contrast: Contrast = NO_CONTRAST,
    state: State | None = None,
    rank: int = 0,
    world_size: int = 1,
    all_reduce: Sum | None = None,
    way: Way = "auto",
) -> Iterator[Epoch]:
    """Yield each epoch of training and leave ``model`` with the weights of least validation loss.

    Parameters
    ----------
    model : nn.Module
        Maps betas (row, voxel) to standardised targets (row, dimension), or while training to a
        pair of them and a further loss per row, or to `Heads`. May be wrapped in
        DistributedDataParallel; if it is not, gradients are summed over workers here.
    train, validation : Feed
        The whole data on every worker; each takes its own part.
    settings : Training
        ``batch_size`` is the global batch; data smaller than it is one batch.
    seed : int
        Order, dropout and sampling. The weights come with the model.
    cosine : float
        Weight of 1 - cosine similarity beside the squared error.
    contrast : Contrast
        The contrastive losses beside it, of predictions or, with `Heads`, of projections.
    state : dict, optional
        From `Epoch.state`: go on after that epoch, with any number of workers.
    rank, world_size : int
        Which worker this is and how many there are.
    all_reduce : callable, optional
        Sums a tensor of any shape over workers in place and returns it; torch.distributed when not
        given.
    way : str
        How batches come to the device of the model, see `raybrain.training.delivery.Way`. It
        changes the speed and no number.

    Raises
    ------
    InputError
        If the loss stops being finite, or the state belongs to another seed.
    ValueError
        If rank and world_size do not fit.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank should be 0 to {world_size - 1}, found {rank}")
    bare: nn.Module = getattr(model, "module", model)
    _check_batches(bare, rows=train.rows, settings=settings, workers=world_size)
    device = next(bare.parameters()).device
    average = _copy(dict(bare.named_parameters())) if settings.ema else {}
    setup = _Setup(
        model=model,
        bare=bare,
        optimiser=_optimiser(bare, settings),
        settings=settings,
        seed=seed,
        cosine=cosine,
        contrast=contrast,
        workers=Workers(rank=rank, size=world_size, sum=all_reduce or distributed_sum),
        device=device,
        noise=RowNoise(torch.Generator(device=device)),
        train=delivery(train, model=bare, device=device, way=way),
        validation=delivery(validation, model=bare, device=device, way=way),
        average=average,
        averaged=[bare.get_parameter(name).data for name in average],
    )
    replay = _replay(setup)
    progress = Progress()
    best = _copy(_weights(setup))
    if state is not None:
        if state["seed"] != seed:
            raise InputError(f"the checkpoint was made with seed {state['seed']}, not {seed}")
        bare.load_state_dict(state["model"])
        setup.optimiser.load_state_dict(_copy_nested(state["optimiser"]))  # it would be shared
        for name, tensor in setup.average.items():
            tensor.copy_(state["average"][name])
        best = {name: tensor.to(device, copy=True) for name, tensor in state["best"].items()}
        progress = Progress(**state["progress"])

    def capture() -> State:
        return {
            "seed": seed,
            "model": _copy(bare.state_dict()),
            "optimiser": _copy_nested(setup.optimiser.state_dict()),
            "average": _copy(setup.average),
            "best": _copy(best),
            "progress": dict(vars(progress)),
        }

    noisy = [module for module in bare.modules() if isinstance(module, NoisyModule)]
    try:
        for module in noisy:
            module.noise = setup.noise
        while progress.epoch < settings.epochs and progress.stale < settings.patience:
            start = time.perf_counter()
            trained = _one_epoch(setup, replay=replay, progress=progress)
            seconds = time.perf_counter() - start
            loss = _validate(setup)
            _check(trained.loss, loss, epoch=progress.epoch + 1)
            improved = loss < progress.best_loss
            if improved:
                best = _copy(_weights(setup))
            advance(progress, loss=loss, improved=improved, settings=settings)
            yield Epoch(
                number=progress.epoch,
                train_loss=trained.loss,
                validation_loss=loss,
                lr=trained.lr,
                rows_per_second=train.rows / seconds,
                improved=improved,
                best_loss=progress.best_loss,
                last=progress.epoch >= settings.epochs or progress.stale >= settings.patience,
                _capture=capture,
            )
        bare.load_state_dict(best)
        bare.eval()
    finally:
        for module in noisy:
            module.noise = None


def _check_batches(model: nn.Module, *, rows: int, settings: Training, workers: int) -> None:
    batches = max(1, math.ceil(rows / settings.batch_size))
    fewest = rows // batches // workers
    norms = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    if norms and fewest < 2:
        raise InputError(
            f"this decoder normalises over the batch, which needs 2 or more rows per worker; "
            f"{rows} rows in batches of {settings.batch_size} over {workers} workers leave "
            f"{fewest}: raise training.batch_size or lower resources.train.max"
        )


def _optimiser(model: nn.Module, settings: Training) -> torch.optim.AdamW:
    # Decay shrinks weights towards no effect; biases and normalisation gains have none at zero.
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.lr, fused=True)


@dataclass(frozen=True)
class _Trained:
    loss: float
    lr: float


def _replay(setup: _Setup) -> Replay | None:
    """Return what replays a step; None where a step has to be computed anew."""
    record = recorder(setup.device, generator=setup.noise.generator)
    chosen = setup.settings.replay
    if chosen == "auto":
        chosen = isinstance(setup.bare, REPLAYED)
    if record is None or not chosen or not setup.train.on_device:
        return None
    # Gradients summed over workers, temperatures that follow the epoch and rows that are sorted by
    # their subject are not the same work every time.
    alone = setup.workers.size == 1 and setup.model is setup.bare
    if not alone or setup.contrast.weight or getattr(setup.bare, "labels", 0):
        return None

    def step(rows: Tensor) -> Tensor:
        setup.noise.total, setup.noise.start, setup.noise.stop = len(rows), 0, len(rows)
        return _step(setup, setup.train.feed.read(rows), rows=len(rows))

    rate = torch.zeros((), device=setup.device)
    return Replay(step, rate=rate, optimiser=setup.optimiser, record=record)


def _one_epoch(setup: _Setup, *, replay: Replay | None, progress: Progress) -> _Trained:
    feed, settings = setup.train.feed, setup.settings
    setup.model.train()
    order = feed.order(_generator(setup.seed, progress.epoch, "order"))
    setup.noise.generator.manual_seed(_number(setup.seed, progress.epoch, "noise"))
    # Batches of nearly equal size: a remainder of one row would break batch normalisation.
    batches = torch.tensor_split(order, max(1, math.ceil(feed.rows / settings.batch_size)))
    rates = [
        learning_rate(settings, progress, step=step, steps=len(batches))
        for step in range(len(batches))
    ]
    if replay is None:
        losses = _computed(setup, batches, rates=rates, epoch=progress.epoch)
    else:
        losses = (replay(rows, lr=lr) for rows, lr in zip(batches, rates, strict=True))
    total = torch.zeros((), dtype=torch.float64, device=setup.device)
    for rows, loss in zip(batches, losses, strict=True):
        total += loss * len(rows)
    return _Trained(loss=float(setup.workers.total(total)) / feed.rows, lr=rates[-1])


def _computed(
    setup: _Setup, batches: Sequence[Tensor], *, rates: list[float], epoch: int
) -> Iterator[Tensor]:
    """Yield this worker's part of the loss of each step."""
    workers, noise = setup.workers, setup.noise
    mixes = setup.contrast.mixes(epoch, epochs=setup.settings.epochs)
    parts = [rows if mixes else rows[workers.part(rows)] for rows in batches]
    delivered = setup.train.batches(parts)
    for step, (rows, batch) in enumerate(zip(batches, delivered, strict=True)):
        share = workers.part(rows)
        mixture, unmixed = None, batch.targets
        if mixes:
            labels = getattr(setup.bare, "labels", 0)
            mixture = draw_mixture(
                len(rows),
                seed=_number(setup.seed, epoch * len(batches) + step, "mixture"),
                groups=batch.inputs[:, 0] if labels else None,
            )
            batch = _part(mixed(batch, mixture, fixed=labels), share)
        noise.total, noise.start, noise.stop = len(rows), share.start, share.stop
        for group in setup.optimiser.param_groups:
            group["lr"] = rates[step]
        contrast = partial(_contrast, setup, batch, unmixed=unmixed, mixture=mixture, epoch=epoch)
        yield _step(setup, batch, rows=len(rows), contrast=contrast)


def _part(batch: Batch, rows: slice) -> Batch:
    return Batch(batch.inputs[rows], batch.targets[rows], batch.weight[rows])


def _contrast(
    setup: _Setup,
    batch: Batch,
    directions: Tensor,
    *,
    unmixed: Tensor,
    mixture: Mixture | None,
    epoch: int,
) -> Tensor:
    """Return the contrastive loss over the global batch that this epoch trains with."""
    contrast, epochs = setup.contrast, setup.settings.epochs
    if mixture is None:
        temperature = contrast.temperature(epoch, epochs=epochs)
        return soft_clip(
            directions, batch, noise=setup.noise, workers=setup.workers, temperature=temperature
        )
    everyone = gather(directions, noise=setup.noise, workers=setup.workers)
    return bimixco(everyone, unmixed, mixture, temperature=contrast.mixing_temperature)


def _step(
    setup: _Setup,
    batch: Batch,
    *,
    rows: int,
    contrast: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Change the weights; return this worker's part of the loss before."""
    settings, workers = setup.settings, setup.workers
    setup.optimiser.zero_grad(set_to_none=True)
    with autocast(setup.device, settings.precision):
        output = setup.model(batch.inputs)
    heads = output if isinstance(output, Heads) else None
    predicted = heads.prediction if heads else output
    loss = row_loss(predicted, batch, rows=rows, cosine=setup.cosine)
    own = loss.detach()
    if contrast is not None and setup.contrast.weight:
        predictions = predicted[0] if isinstance(predicted, tuple) else predicted
        further = setup.contrast.weight * contrast(heads.projection if heads else predictions)
        loss = loss + further
        own = own + further.detach() / workers.size
    # DistributedDataParallel divides the sum of gradients by the number of workers.
    wrapped = setup.model is not setup.bare
    (loss * workers.size if wrapped else loss).backward()
    if workers.size > 1 and not wrapped:
        workers.sum_gradients(setup.bare)
    if settings.gradient_clip is not None:
        nn.utils.clip_grad_norm_(setup.bare.parameters(), settings.gradient_clip)
    setup.optimiser.step()
    if setup.average:
        averages = list(setup.average.values())
        torch._foreach_lerp_(averages, setup.averaged, 1.0 - settings.ema)
    return own


def _generator(seed: int, epoch: int, use: str) -> torch.Generator:
    return torch.Generator().manual_seed(_number(seed, epoch, use))


def _number(seed: int, epoch: int, use: str) -> int:
    entropy = [seed, epoch, *use.encode()]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


def _validate(setup: _Setup) -> float:
    setup.model.eval()
    total = torch.zeros((), dtype=torch.float64, device=setup.device)
    rows = setup.validation.feed.rows
    own = setup.workers.part(torch.arange(rows))
    parts = [
        torch.arange(start, min(start + VALIDATION_ROWS, own.stop))
        for start in range(own.start, own.stop, VALIDATION_ROWS)
    ]
    with torch.no_grad(), autocast(setup.device, setup.settings.precision):
        for batch in setup.validation.batches(parts):
            # An empty average replaces nothing: the model's own weights.
            predictions = torch.func.functional_call(setup.bare, setup.average, (batch.inputs,))
            error = (predictions.float() - batch.targets) ** 2
            total += error.mean(dim=1).double().sum()
    return float(setup.workers.total(total)) / rows


def _check(train_loss: float, validation_loss: float, *, epoch: int) -> None:
    if not (math.isfinite(train_loss) and math.isfinite(validation_loss)):
        raise InputError(
            f"the loss of epoch {epoch} is not finite (training {train_loss}, validation "
            f"{validation_loss}); lower training.lr or set training.gradient_clip"
        )


def _weights(setup: _Setup) -> dict[str, Tensor]:
    return {**setup.bare.state_dict(), **setup.average}


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _copy_nested(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copy_nested(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy_nested(item) for item in value]
    return value
