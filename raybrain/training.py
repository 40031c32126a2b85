"""One torch loop that yields an epoch at a time; how many workers share it does not change it.

A global batch is a slice of one seeded permutation, split between the workers; the loss of a worker
is its share of the global mean, random numbers inside the network belong to rows of the global
batch, and every epoch seeds itself. So a run that resumes, or that gains or loses a worker, goes on
as if nothing had happened.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from raybrain.config import InputError, Training
from raybrain.decoders.row_noise import NoisyModule, RowNoise

WARM_UP = 0.05
"""Share of the steps over which the learning rate rises, with the cosine schedule."""

SOFT_CLIP_TEMPERATURE = 0.125
"""Scotti et al. 2023 (MindEye), soft contrastive loss."""

PLATEAU_FACTOR = 0.5
VALIDATION_ROWS = 1024

State = dict[str, Any]
Sum = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Batch:
    """Rows of betas and targets with a weight each (mean 1 over the data)."""

    inputs: Tensor
    targets: Tensor
    weight: Tensor


class Feed(Protocol):
    """Where batches come from."""

    @property
    def rows(self) -> int:
        """How many rows there are."""

    def order(self, generator: torch.Generator) -> Tensor:
        """Return all row numbers in the order of one epoch."""

    def read(self, rows: Tensor) -> Batch:
        """Return the given rows; within an epoch they are asked for in the order of `order`."""


@dataclass(frozen=True)
class Resident:
    """Rows held in memory.

    Attributes
    ----------
    inputs : Tensor, shape (row, voxel)
    targets : Tensor, shape (row, dimension)
    weight : Tensor, shape (row,)
    """

    inputs: Tensor
    targets: Tensor
    weight: Tensor

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.inputs)

    def order(self, generator: torch.Generator) -> Tensor:
        """Return a permutation of the rows."""
        return torch.randperm(self.rows, generator=generator)

    def read(self, rows: Tensor) -> Batch:
        """Return the given rows."""
        return Batch(self.inputs[rows], self.targets[rows], self.weight[rows])


def resident(inputs: NDArray, *, targets: NDArray, count: NDArray | None = None) -> Resident:
    """Return a feed over arrays, each row weighted by its number of repeats.

    The memory of read-only arrays, such as those of an object store, is shared and not copied.

    Parameters
    ----------
    inputs : ndarray of float32, shape (row, voxel)
    targets : ndarray of float32, shape (row, dimension)
    count : ndarray of int, shape (row,), optional

    Raises
    ------
    ValueError
        If there are no rows, their numbers differ, or a value is not finite.
    """
    if len(inputs) == 0 or len(inputs) != len(targets):
        raise ValueError(f"found {len(inputs)} rows of betas and {len(targets)} of targets")
    for name, array in (("betas", inputs), ("targets", targets)):
        if not math.isfinite(float(array.sum(dtype=np.float64))):
            raise ValueError(f"{name} hold NaN or infinity; remake them")
    weight = np.ones(len(inputs)) if count is None else count / np.mean(count)
    return Resident(_shared(inputs), _shared(targets), torch.from_numpy(weight.astype(np.float32)))


def _shared(array: NDArray) -> Tensor:
    array = np.asarray(array, np.float32)
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        # torch warns that writing to read-only memory is undefined; these tensors are only read.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


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
    improved : bool
        Whether these are the best weights so far.
    best_loss : float
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


@dataclass
class _Progress:
    """What changes from epoch to epoch beside weights and optimiser."""

    epoch: int = 0
    best_loss: float = math.inf
    stale: int = 0
    """Epochs since the best loss."""
    since_cut: int = 0
    """Epochs since the best loss or the last cut of the learning rate."""
    factor: float = 1.0


def fit(
    model: nn.Module,
    *,
    train: Feed,
    validation: Feed,
    settings: Training,
    seed: int,
    cosine: float = 0.0,
    contrastive: float = 0.0,
    state: State | None = None,
    rank: int = 0,
    world_size: int = 1,
    all_reduce: Sum | None = None,
) -> Iterator[Epoch]:
    """Yield each epoch of training and leave ``model`` with the weights of least validation loss.

    Parameters
    ----------
    model : nn.Module
        Maps betas (row, voxel) to standardised targets (row, dimension), or while training to a
        pair of them and a further loss per row. May be wrapped in DistributedDataParallel; if it
        is not, gradients are summed over workers here.
    train, validation : Feed
        The whole data on every worker; each takes its own part.
    settings : Training
        ``batch_size`` is the global batch; data smaller than it is one batch.
    seed : int
        Order, dropout and sampling. The weights come with the model.
    cosine, contrastive : float
        Weights of 1 - cosine similarity and of the soft contrastive loss beside the squared error.
    state : dict, optional
        From `Epoch.state`: go on after that epoch, with any number of workers.
    rank, world_size : int
        Which worker this is and how many there are.
    all_reduce : callable, optional
        Sums a tensor over workers in place and returns it; torch.distributed when not given.

    Raises
    ------
    InputError
        If the loss stops being finite, or the state belongs to another seed.
    ValueError
        If rank and world_size do not fit.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank should be 0 to {world_size - 1}, found {rank}")
    workers = _Workers(rank=rank, size=world_size, sum=all_reduce or _distributed_sum)
    bare: nn.Module = getattr(model, "module", model)
    _check_batches(bare, rows=train.rows, settings=settings, workers=world_size)
    device = next(bare.parameters()).device
    optimiser = _optimiser(bare, settings)
    progress = _Progress()
    average: dict[str, Tensor] = (
        {n: p.detach().clone() for n, p in bare.named_parameters()} if settings.ema else {}
    )
    best = _copy(_weights(bare, average))
    if state is not None:
        if state["seed"] != seed:
            raise InputError(f"the checkpoint was made with seed {state['seed']}, not {seed}")
        bare.load_state_dict(state["model"])
        optimiser.load_state_dict(_copy_nested(state["optimiser"]))  # it would be shared
        for name in average:
            average[name].copy_(state["average"][name])
        best = _copy({name: tensor.to(device) for name, tensor in state["best"].items()})
        progress = _Progress(**state["progress"])

    def capture() -> State:
        return {
            "seed": seed,
            "model": _copy(bare.state_dict()),
            "optimiser": _copy_nested(optimiser.state_dict()),
            "average": _copy(average),
            "best": _copy(best),
            "progress": dict(vars(progress)),
        }

    noise = RowNoise(torch.Generator(device=device))
    for module in bare.modules():
        if isinstance(module, NoisyModule):
            module.noise = noise
    try:
        while progress.epoch < settings.epochs and progress.stale < settings.patience:
            start = time.perf_counter()
            train_loss, lr = _one_epoch(
                model,
                bare=bare,
                feed=train,
                optimiser=optimiser,
                settings=settings,
                progress=progress,
                noise=noise,
                average=average,
                seed=seed,
                cosine=cosine,
                contrastive=contrastive,
                workers=workers,
                device=device,
            )
            seconds = time.perf_counter() - start
            loss = _validate(bare, average, validation, settings, workers, device)
            _check(train_loss, loss, epoch=progress.epoch + 1)
            improved = loss < progress.best_loss
            if improved:
                best = _copy(_weights(bare, average))
            _advance(progress, loss=loss, improved=improved, settings=settings)
            yield Epoch(
                number=progress.epoch,
                train_loss=train_loss,
                validation_loss=loss,
                lr=lr,
                rows_per_second=train.rows / seconds,
                improved=improved,
                best_loss=progress.best_loss,
                last=progress.epoch >= settings.epochs or progress.stale >= settings.patience,
                _capture=capture,
            )
        bare.load_state_dict(best)
        bare.eval()
    finally:
        for module in bare.modules():
            if isinstance(module, NoisyModule):
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


@dataclass(frozen=True)
class _Workers:
    rank: int
    size: int
    sum: Sum

    def part(self, rows: Tensor) -> slice:
        """Return this worker's slice of a global batch; sizes differ by one row at most."""
        edges = [len(rows) * worker // self.size for worker in range(self.size + 1)]
        return slice(edges[self.rank], edges[self.rank + 1])

    def total(self, values: Tensor) -> Tensor:
        return self.sum(values) if self.size > 1 else values


def _distributed_sum(values: Tensor) -> Tensor:
    torch.distributed.all_reduce(values)
    return values


def _optimiser(model: nn.Module, settings: Training) -> torch.optim.AdamW:
    # Decay shrinks weights towards no effect; biases and normalisation gains have none at zero.
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.lr, fused=True)


def _one_epoch(
    model: nn.Module,
    *,
    bare: nn.Module,
    feed: Feed,
    optimiser: torch.optim.Optimizer,
    settings: Training,
    progress: _Progress,
    noise: RowNoise,
    average: dict[str, Tensor],
    seed: int,
    cosine: float,
    contrastive: float,
    workers: _Workers,
    device: torch.device,
) -> tuple[float, float]:
    model.train()
    order = feed.order(_generator(seed, progress.epoch, "order"))
    noise.generator.manual_seed(_number(seed, progress.epoch, "noise"))
    # Batches of nearly equal size: a remainder of one row would break batch normalisation.
    batches = torch.tensor_split(order, max(1, math.ceil(feed.rows / settings.batch_size)))
    wrapped = model is not bare
    total = torch.zeros((), dtype=torch.float64, device=device)
    lr = settings.lr
    for number, rows in enumerate(batches):
        share = workers.part(rows)
        batch = _to(feed.read(rows[share]), device)
        noise.total, noise.start, noise.stop = len(rows), share.start, share.stop
        lr = _rate(settings, progress, step=number, steps=len(batches))
        for group in optimiser.param_groups:
            group["lr"] = lr
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, settings.precision == "bfloat16"):
            output = model(batch.inputs)
        loss = _loss(output, batch, rows=len(rows), cosine=cosine)
        own = loss.detach()
        if contrastive:
            predictions = output[0] if isinstance(output, tuple) else output
            soft = contrastive * _soft_clip(
                predictions.float(), batch, noise=noise, workers=workers
            )
            loss = loss + soft
            own = own + soft.detach() / workers.size
        # DistributedDataParallel divides the sum of gradients by the number of workers.
        (loss * workers.size if wrapped else loss).backward()
        if workers.size > 1 and not wrapped:
            _sum_gradients(bare, workers)
        if settings.gradient_clip is not None:
            nn.utils.clip_grad_norm_(bare.parameters(), settings.gradient_clip)
        optimiser.step()
        if settings.ema:
            with torch.no_grad():
                for name, parameter in bare.named_parameters():
                    average[name].lerp_(parameter, 1.0 - settings.ema)
        total += own * len(rows)
    return float(workers.total(total)) / feed.rows, lr


def _generator(seed: int, epoch: int, use: str) -> torch.Generator:
    return torch.Generator().manual_seed(_number(seed, epoch, use))


def _number(seed: int, epoch: int, use: str) -> int:
    entropy = [seed, epoch, *use.encode()]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


def _to(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    inputs, targets, weight = (
        tensor.to(device, non_blocking=True)
        for tensor in (batch.inputs, batch.targets, batch.weight)
    )
    return Batch(inputs, targets, weight)


def _rate(settings: Training, progress: _Progress, *, step: int, steps: int) -> float:
    if settings.schedule != "cosine":
        return settings.lr * progress.factor
    total = settings.epochs * steps
    warm = max(1, round(WARM_UP * total))
    done = progress.epoch * steps + step
    if done < warm:
        return settings.lr * (done + 1) / warm
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (done - warm) / max(1, total - warm)))


def _loss(
    output: Tensor | tuple[Tensor, Tensor], batch: Batch, *, rows: int, cosine: float
) -> Tensor:
    """Return this worker's part of the mean over the rows of the global batch."""
    predictions, further = output if isinstance(output, tuple) else (output, None)
    predictions = predictions.float()
    per_row = ((predictions - batch.targets) ** 2).mean(dim=1)
    if cosine:
        per_row = per_row + cosine * (
            1.0 - functional.cosine_similarity(predictions, batch.targets, dim=1)
        )
    if further is not None:
        per_row = per_row + further.float()
    return (per_row * batch.weight).sum() / rows


def _soft_clip(predictions: Tensor, batch: Batch, *, noise: RowNoise, workers: _Workers) -> Tensor:
    """Return the soft contrastive loss over the global batch (MindEye, Scotti et al. 2023)."""
    targets = batch.targets
    if workers.size > 1:
        predictions = _Gather.apply(predictions, noise, workers)
        targets = _Gather.apply(targets, noise, workers)
    predictions = functional.normalize(predictions, dim=1)
    targets = functional.normalize(targets, dim=1)
    wanted = functional.softmax(targets @ targets.T / SOFT_CLIP_TEMPERATURE, dim=1)
    found = predictions @ targets.T / SOFT_CLIP_TEMPERATURE
    across = -(wanted * functional.log_softmax(found, dim=1)).sum(dim=1).mean()
    down = -(wanted * functional.log_softmax(found.T, dim=1)).sum(dim=1).mean()
    return (across + down) / 2


class _Gather(torch.autograd.Function):
    """Rows of all workers; the gradient is this worker's rows, as all compute the same loss."""

    @staticmethod
    def forward(context: Any, own: Tensor, noise: RowNoise, workers: _Workers) -> Tensor:
        """Return the rows of the global batch."""
        context.rows = slice(noise.start, noise.stop)
        everyone = own.new_zeros((noise.total, *own.shape[1:]))
        everyone[context.rows] = own
        return workers.total(everyone)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        """Return the gradient of the own rows."""
        return gradients[0][context.rows], None, None


def _sum_gradients(model: nn.Module, workers: _Workers) -> None:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = workers.total(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()


def _validate(
    model: nn.Module,
    average: Mapping[str, Tensor],
    feed: Feed,
    settings: Training,
    workers: _Workers,
    device: torch.device,
) -> float:
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=device)
    with torch.no_grad():
        own = workers.part(torch.arange(feed.rows))
        for rows in torch.arange(own.start, own.stop).split(VALIDATION_ROWS):
            if not len(rows):
                continue
            batch = _to(feed.read(rows), device)
            with torch.autocast(device.type, torch.bfloat16, settings.precision == "bfloat16"):
                # Nothing given, nothing replaced: the model's own weights.
                predictions = torch.func.functional_call(model, dict(average), (batch.inputs,))
            error = (predictions.float() - batch.targets).double() ** 2
            total += error.mean(dim=1).sum()
    return float(workers.total(total)) / feed.rows


def _check(train_loss: float, validation_loss: float, *, epoch: int) -> None:
    if not (math.isfinite(train_loss) and math.isfinite(validation_loss)):
        raise InputError(
            f"the loss of epoch {epoch} is not finite (training {train_loss}, validation "
            f"{validation_loss}); lower training.lr or set training.gradient_clip"
        )


def _advance(progress: _Progress, *, loss: float, improved: bool, settings: Training) -> None:
    progress.epoch += 1
    if improved:
        progress.best_loss = loss
        progress.stale = progress.since_cut = 0
        return
    progress.stale += 1
    progress.since_cut += 1
    if settings.schedule == "plateau" and progress.since_cut >= max(1, settings.patience // 2):
        progress.factor *= PLATEAU_FACTOR
        progress.since_cut = 0


def _weights(model: nn.Module, average: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {**model.state_dict(), **average}


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
