"""Solvers beside diffusers' own pipeline, and how many steps each takes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from raybrain.config import InputError, Reconstruct, validate
from raybrain.diffusion import check_steps, noise_seed
from raybrain.diffusion.schedulers import scheduler_of
from tests.diffusion.generators import LATENT, drawn, far

# Of diffusers' own schedulers with this numpy; our calls silence the library by themselves.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SD = {"num_train_timesteps": 1000, "steps_offset": 1}
NOISE = ("beta_start", "beta_end", "beta_schedule", "set_alpha_to_one")


def sources(rows=3):
    return [
        torch.Generator().manual_seed(noise_seed(seed=5, image_id=100 + row, sample=0))
        for row in range(rows)
    ]


@pytest.mark.parametrize(
    ("solver", "spacing", "name", "given"),
    [
        ("unipc", None, "UniPCMultistepScheduler", {}),
        ("lcm", None, "LCMScheduler", {}),
        ("ddim", "trailing", "DDIMScheduler", {"timestep_spacing": "trailing"}),
        (
            "dpm-solver++",
            "trailing",
            "DPMSolverMultistepScheduler",
            {"timestep_spacing": "trailing"},
        ),
    ],
)
def test_a_solver_draws_what_the_librarys_own_pipeline_draws_with_it(
    checkpoint, tiny, targets, solver, spacing, name, given
):
    import diffusers

    theirs = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(
        checkpoint, safety_checker=None
    )
    theirs.set_progress_bar_config(disable=True)
    config = dict(theirs.scheduler.config) | {"clip_sample": False}
    theirs.scheduler = getattr(diffusers, name).from_config(config, **given)
    pixels = theirs(
        image=torch.tensor(targets.latents),
        prompt_embeds=torch.tensor(targets.prompt_embeds),
        negative_prompt_embeds=tiny.unconditional.expand(3, -1, -1),
        strength=0.8,
        guidance_scale=3.0,
        num_inference_steps=5,
        generator=sources(),
        output_type="pt",
    ).images
    found = drawn(tiny, **vars(targets), scheduler=solver, spacing=spacing, steps=5, strength=0.8)
    wanted = (pixels * 255).round().byte().permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("solver", ["unipc", "lcm"])
def test_the_noise_of_a_row_does_not_depend_on_its_batch(tiny, targets, solver):
    how = {"scheduler": solver, "strength": 0.8}
    together = drawn(tiny, **vars(targets), samples=[0, 1, 2], **how)
    for row in range(3):
        alone = drawn(tiny, **vars(targets), rows=[row], samples=[row], **how)
        assert far(alone, together[row : row + 1]) <= 1
    turned = drawn(tiny, **vars(targets), rows=[2, 0, 1], samples=[2, 0, 1], **how)
    assert far(turned, together[[2, 0, 1]]) <= 1
    other = drawn(tiny, **vars(targets), samples=[0, 1, 2], seed=6, **how)
    assert far(other, together) > 5


def test_every_step_of_lcm_adds_noise_of_the_rows_own(tiny, targets, monkeypatch):
    """Luo et al. 2023, algorithm 2: an oracle's guess, and new noise on it at every level."""
    kept = tiny.pipeline.scheduler.alphas_cumprod
    truth = torch.tensor(targets.latents)
    seen = []

    def oracle(sample, timestep, **_):
        seen.append(sample.clone())
        signal, noise = kept[int(timestep)].sqrt(), (1 - kept[int(timestep)]).sqrt()
        return ((sample - signal * truth) / noise,)

    monkeypatch.setattr(tiny.pipeline.unet, "forward", oracle)
    drawn(tiny, **vars(targets), scheduler="lcm", steps=4, strength=1.0, guidance=1.0)
    scheduler = scheduler_of(Reconstruct(scheduler="lcm"), tiny.scheduler_config)
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 759, 499, 259]
    own = sources()
    for time, sample in zip(scheduler.timesteps, seen, strict=True):
        noise = torch.cat([torch.randn((1, 4, LATENT, LATENT), generator=one) for one in own])
        expected = kept[time].sqrt() * truth + (1 - kept[time]).sqrt() * noise
        torch.testing.assert_close(sample, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("settings", "scheduler", "remedy"),
    [
        ({"steps": 1000, "scheduler": "unipc"}, SD, "steps=999 or less"),
        ({"steps": 998, "scheduler": "unipc", "spacing": "trailing"}, SD, "steps=997 or less"),
        ({"steps": 999, "scheduler": "unipc", "spacing": "leading"}, SD, "steps=998 or less"),
        ({"steps": 999, "spacing": "leading"}, SD, "steps=998 or less"),
        ({"steps": 1000, "scheduler": "ddim", "spacing": "leading"}, SD, "steps=999 or less"),
        ({"steps": 51, "scheduler": "lcm"}, SD, "distilled on; type reconstruct.steps=50 or less"),
        (
            {"steps": 51, "scheduler": "lcm"},
            {**SD, "original_inference_steps": 25},
            "steps=25 or less",
        ),
    ],
)
def test_more_steps_than_a_solver_takes_are_refused_with_a_number_that_works(
    tiny, settings, scheduler, remedy
):
    with pytest.raises(InputError, match=remedy):
        check_steps(Reconstruct(**settings), name="it", scheduler=scheduler)
    found = Reconstruct(**settings | {"steps": int(remedy.split("steps=")[1].split()[0])})
    check_steps(found, name="it", scheduler=scheduler)
    # The number works with the solver itself: all steps at levels of their own.
    noise = {name: tiny.scheduler_config[name] for name in NOISE}
    made = scheduler_of(found, noise | scheduler)
    made.set_timesteps(found.steps)
    assert len(set(made.timesteps.tolist())) == found.steps
    assert made.timesteps.max() < 1000


def test_trailing_is_possible_where_a_checkpoint_is_spaced_otherwise(tiny, targets):
    how = {"scheduler": "ddim", "steps": 2, "strength": 1.0}
    leading = drawn(tiny, **vars(targets), **how)
    np.testing.assert_array_equal(drawn(tiny, **vars(targets), **how, spacing="leading"), leading)
    trailing = drawn(tiny, **vars(targets), **how, spacing="trailing")
    assert far(trailing, leading) > 2
    config = dict(tiny.scheduler_config) | {
        "timestep_spacing": "trailing",
        "_use_default_values": [],
    }
    own = drawn(replace(tiny, scheduler_config=config), **vars(targets), **how)
    np.testing.assert_array_equal(own, trailing)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"scheduler": "lcm", "spacing": "trailing"}, "says nothing to lcm"),
        ({"guidance_interval": {"low": 2.0, "high": 1.0}}, "high=1.0 is not above low=2.0"),
        ({"guidance_interval": {"low": float("nan")}}, "guidance_interval.low"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        validate(settings, schema=Reconstruct, source="reconstruct")
    assert "\n" not in str(caught.value)
