"""Solvers of the reverse diffusion, and how many steps each can take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from raybrain.config import InputError, Reconstruct, letters

SPACED = {"ddim": "leading", "dpm-solver++": "linspace", "unipc": "linspace"}
"""Solver -> how diffusers spaces its steps where neither settings nor checkpoint say it."""
DISTILLED = 50
"""Steps of the schedule that latent consistency models are distilled on."""


def scheduler_of(settings: Reconstruct, config: Mapping[str, Any]) -> Any:
    """Return diffusers' solver for the noise schedule of a checkpoint.

    Parameters
    ----------
    settings : Reconstruct
        Solver and spacing.
    config : mapping
        Of the checkpoint's own scheduler.
    """
    import diffusers

    own: dict[str, Any] = {}
    if settings.spacing is not None:
        own["timestep_spacing"] = settings.spacing
    if settings.scheduler == "ddim":
        # Latents are not confined to -1..1: DDIM's default would clip them.
        own["clip_sample"] = False
        if "set_alpha_to_one" not in config:
            own["set_alpha_to_one"] = False  # as Stable Diffusion's own configs say
        return diffusers.DDIMScheduler.from_config(config, **own)
    if settings.scheduler == "unipc":
        return diffusers.UniPCMultistepScheduler.from_config(config, **own)
    if settings.scheduler == "lcm":
        return diffusers.LCMScheduler.from_config(config, clip_sample=False)
    return diffusers.DPMSolverMultistepScheduler.from_config(
        config, algorithm_type="dpmsolver++", **own
    )


def check_steps(settings: Reconstruct, *, name: str, scheduler: Mapping[str, Any]) -> None:
    """Refuse settings that leave no step to draw, or that ask for more steps than noise levels.

    Parameters
    ----------
    settings : Reconstruct
    name : str
        Of the generator, for the message.
    scheduler : mapping
        Its scheduler's config.

    Raises
    ------
    InputError
        If no step is left to draw, or there are more steps than the solver can take.
    """
    if "z" in letters(settings.mode) and int(settings.steps * settings.strength) < 1:
        needed = int(np.ceil(1 / settings.strength))
        raise InputError(
            f"'reconstruct.strength' {settings.strength} of {settings.steps} steps leaves no step "
            f"to draw; type reconstruct.steps={needed} or more"
        )
    trained = scheduler.get("num_train_timesteps", 1000)
    if settings.scheduler == "lcm":
        most = min(scheduler.get("original_inference_steps", DISTILLED), trained)
        if settings.steps > most:
            raise InputError(
                f"'reconstruct.steps' is {settings.steps}, but lcm takes its steps from the {most} "
                f"that it was distilled on; type reconstruct.steps={most} or less"
            )
        return
    spacing = settings.spacing or _own_spacing(settings, scheduler)
    offset = scheduler.get("steps_offset", 0) if spacing == "leading" else 0
    most = min(settings.steps, trained)
    while not _fits(most, settings, spacing=spacing, trained=trained, offset=offset):
        most -= 1
    if settings.steps > most:
        raise InputError(
            f"'reconstruct.steps' is {settings.steps}, but '{name}' has {trained} noise levels"
            f"{f' and {settings.scheduler} begins {offset} later' if offset else ''}; "
            f"type reconstruct.steps={most} or less"
        )


def _own_spacing(settings: Reconstruct, scheduler: Mapping[str, Any]) -> str:
    """Return the spacing without a setting; diffusers hands no other solver's default on."""
    found = scheduler.get("timestep_spacing")
    if found is None or "timestep_spacing" in scheduler.get("_use_default_values", ()):
        found = SPACED[settings.scheduler]
    return str(found)


def _fits(steps: int, settings: Reconstruct, *, spacing: str, trained: int, offset: int) -> bool:
    """Return whether all steps are at levels of their own, which multistep solvers divide by."""
    if settings.scheduler == "ddim":
        return (steps - 1) * (trained // steps) + offset < trained
    if spacing == "leading":
        gap = trained // (steps + 1)
        return gap > 0 and steps * gap + offset < trained
    if settings.scheduler == "unipc":
        # As diffusers counts them: rounding may add one at the end.
        if spacing == "trailing":
            return len(np.arange(trained, 0, -trained / steps)) == steps
        return steps < trained
    return True
