"""Classifier-free guidance at some noise levels only, and one half of the batch at the others.

Guidance draws every row twice, told and not told, as two halves of a batch. At high noise it takes
variety away and at low noise it does nothing (Kynkäänniemi et al., NeurIPS 2024): where it does not
act, the half that is told is drawn alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raybrain.config import Reconstruct
from raybrain.diffusion.schedulers import scheduler_of
from raybrain.diffusion.silence import quiet

if TYPE_CHECKING:
    import torch


def guided_steps(settings: Reconstruct, config: Mapping[str, Any]) -> list[bool]:
    """Return for each step that is run whether classifier-free guidance acts.

    Parameters
    ----------
    settings : Reconstruct
        Guidance, its interval, solver, steps and strength; `check_steps` has passed them.
    config : mapping
        Of the checkpoint's own scheduler. Only with an interval is a solver made of it, which
        loads torch.
    """
    count = max(1, int(settings.steps * settings.own_strength))
    interval = settings.guidance_interval
    if settings.own_guidance == 1 or interval is None:
        return [settings.own_guidance > 1] * count
    with quiet():
        scheduler = scheduler_of(settings, config)
        scheduler.set_timesteps(settings.steps)
    kept = scheduler.alphas_cumprod[scheduler.timesteps[-count:].long()].double()
    levels = ((1 - kept) / kept).sqrt().tolist()
    high = float("inf") if interval.high is None else interval.high
    return [interval.low < level <= high for level in levels]


class Halves:
    """Tells the pipeline after each step how the next is drawn: its ``callback_on_step_end``.

    Parameters
    ----------
    steps : sequence of bool
        Of each step that is run, whether guidance acts.
    scale : float
        Of guidance, where it acts.
    empty, told : torch.Tensor
        (row, token, width) embeddings of both halves.
    """

    def __init__(
        self, steps: Sequence[bool], *, scale: float, empty: torch.Tensor, told: torch.Tensor
    ) -> None:
        import torch

        self._steps = steps
        self._scale = scale
        self._embeds = {False: told, True: torch.cat([empty, told])}

    def scale_of(self, step: int) -> float:
        """Return the scale of a step; 1 is none, and leaves the other half out."""
        return self._scale if self._steps[step] else 1.0

    def __call__(
        self, pipeline: Any, step: int, _timestep: Any, _tensors: Mapping[str, Any]
    ) -> dict[str, torch.Tensor]:
        """Return the embeddings of the step after ``step``."""
        following = step + 1
        if following == len(self._steps):
            return {}
        # The way of diffusers' own callbacks, which have no public one.
        pipeline._guidance_scale = self.scale_of(following)
        return {"prompt_embeds": self._embeds[self._steps[following]]}
