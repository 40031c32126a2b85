"""The one optimisation loop of pretraining: it yields progress and can continue from any of it."""

import copy
import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raybrain.pretraining.settings import Optimisation
from raybrain.training.precision import autocast

State = dict[str, Any]


@dataclass(frozen=True)
class Progress:
    """What happened since the last report."""

    step: int
    steps: int
    metrics: dict[str, float]
    """Means over the steps since the last report."""
    state: Callable[[], State]
    """Everything needed to continue from here."""


def optimise(
    objective: nn.Module,
    *,
    draw: Callable[[int], tuple[Tensor, ...]],
    settings: Optimisation,
    seed: int,
    state: State | None = None,
    parallel: Callable[[nn.Module], nn.Module] | None = None,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world: int = 1,
) -> Iterator[Progress]:
    """Minimise what `objective` returns and yield progress every ``settings.report_every`` steps.

    AdamW with linear warm-up and cosine decay, gradients clipped at norm 1, and an exponential
    moving average of the weights whose horizon grows with the step. Random numbers depend on seed,
    step and rank only, so a continued run draws what an unbroken one would have drawn.

    Parameters
    ----------
    objective
        Its forward takes what `draw` returns and gives a dict of scalars with the key ``loss``.
    draw
        From the number of samples to a batch; uses torch's default random generator.
    state
        Of an earlier ``Progress.state()``; starts afresh when None.
    parallel
        Wraps the objective so that gradients are averaged over workers.
    device
        Where to compute; the objective is moved there, batches are drawn on the CPU.
    rank, world
        This worker and how many there are; the batch is divided among them.
    """
    device = torch.device(device)
    objective.to(device)
    weights = {k: p for k, p in objective.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        weights.values(),
        lr=settings.lr,
        betas=(0.9, 0.99),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    average = {k: p.detach().clone() for k, p in weights.items()}
    first = 0
    if state is not None:
        first = state["step"]
        with torch.no_grad():
            for key, parameter in weights.items():
                parameter.copy_(state["weights"][key])
                average[key].copy_(state["average"][key])
        optimizer.load_state_dict(state["optimizer"])
    wrapped = parallel(objective) if parallel else objective
    wrapped.train()
    totals: dict[str, float] = defaultdict(float)
    count = 0

    def snapshot(step: int) -> State:
        return {
            "step": step,
            "weights": {k: p.detach().cpu().clone() for k, p in weights.items()},
            "average": {k: a.cpu().clone() for k, a in average.items()},
            "optimizer": copy.deepcopy(optimizer.state_dict()),
        }

    for step in range(first, settings.steps):
        torch.manual_seed((seed * 1_000_003 + step) * world + rank)
        batch = [part.to(device) for part in draw(max(1, settings.batch_size // world))]
        rate = learning_rate(step, settings=settings)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with autocast(device, settings.precision):
            losses = wrapped(*batch)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        norm = nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()
        # The horizon grows with the step so that early averages forget the random start.
        decay = min(settings.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.values()), list(weights.values()), 1 - decay)
        for key, value in losses.items():
            totals[key] += float(value.detach())
        totals["gradient_norm"] += float(norm)
        count += 1
        done = step + 1
        if done % settings.report_every == 0 or done == settings.steps:
            means = {k: v / count for k, v in totals.items()} | {"lr": rate}
            totals.clear()
            count = 0
            yield Progress(done, settings.steps, means, functools.partial(snapshot, done))


def use_average(objective: nn.Module, state: State) -> None:
    """Put the averaged weights of a state into the objective."""
    with torch.no_grad():
        for key, parameter in objective.named_parameters():
            if key in state["average"]:
                parameter.copy_(state["average"][key])


def learning_rate(step: int, *, settings: Optimisation) -> float:
    """Return the rate at a step: linear warm-up, then cosine to a twentieth."""
    warm = min(1.0, (step + 1) / max(1, settings.warmup))
    progress = step / max(1, settings.steps)
    return settings.lr * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))
