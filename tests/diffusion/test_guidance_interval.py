"""Guidance at some noise levels only: what it draws, and what it leaves out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raybrain.config import GradientGuidance, Reconstruct
from raybrain.diffusion import embed_images, guided_steps, load_generator, noise_seed
from raybrain.diffusion.schedulers import scheduler_of
from tests.diffusion.generators import LATENT, drawn, far

# Of diffusers' own schedulers with this numpy; our calls silence the library by themselves.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

EVERY = {"low": 0.0}
NONE = {"low": 100.0}
HOW = {"steps": 10, "strength": 0.8, "guidance": 3.0, "scheduler": "ddim"}
LEVELS = [
    (1 - kept) ** 0.5 / kept**0.5
    for kept in np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
]
"""Of every timestep of Stable Diffusion."""
TIMES = [1 + 100 * k for k in range(8)][::-1]
"""Of the eight steps that are run, of ten."""


def middle():
    """Return the interval of the third to the fifth of the steps."""
    return {"low": 1.001 * LEVELS[TIMES[5]], "high": 1.001 * LEVELS[TIMES[2]]}


@pytest.mark.parametrize("scheduler", ["ddim", "dpm-solver++", "unipc", "lcm"])
def test_an_interval_of_all_levels_draws_the_same_bytes_and_one_of_none_is_unguided(
    tiny, targets, rows, scheduler
):
    how = HOW | {"scheduler": scheduler}
    always = drawn(tiny, **vars(targets), **how)
    np.testing.assert_array_equal(
        drawn(tiny, **vars(targets), **how, guidance_interval=EVERY), always
    )
    assert rows == [6] * 16
    never = drawn(tiny, **vars(targets), **how | {"guidance": 1.0})
    np.testing.assert_array_equal(
        drawn(tiny, **vars(targets), **how, guidance_interval=NONE), never
    )
    assert rows[16:] == [3] * 16
    assert far(always, never) > 2


def test_steps_within_the_interval_have_both_halves(tiny, targets, rows):
    """Ho and Salimans' guidance in the third to the fifth step, by hand."""
    found = drawn(tiny, **vars(targets), **HOW, guidance_interval=middle())
    guided = [False, False, True, True, True, False, False, False]
    assert rows == [6 if one else 3 for one in guided]
    assert (
        guided_steps(Reconstruct(**HOW, guidance_interval=middle()), tiny.scheduler_config)
        == guided
    )

    scheduler = scheduler_of(Reconstruct(**HOW), tiny.scheduler_config)
    scheduler.set_timesteps(10)
    unet = tiny.pipeline.unet
    images = []
    with torch.no_grad():
        for row in range(3):
            source = torch.Generator().manual_seed(noise_seed(seed=5, image_id=100 + row, sample=0))
            noise = torch.randn((1, 4, LATENT, LATENT), generator=source)
            x = scheduler.add_noise(
                torch.tensor(targets.latents[row : row + 1]), noise, scheduler.timesteps[2:3]
            )
            told = torch.tensor(targets.prompt_embeds[row : row + 1])
            for time, both in zip(scheduler.timesteps[2:], guided, strict=True):
                guess = unet(x, time, told).sample
                if both:
                    without = unet(x, time, tiny.unconditional[None]).sample
                    guess = without + 3.0 * (guess - without)
                x = scheduler.step(guess, time, x).prev_sample
            decoded = tiny.pipeline.vae.decode(x / 0.9).sample[0]
            images.append(((decoded + 1) * 127.5).clamp(0, 255).permute(1, 2, 0).numpy())
    assert np.abs(found - np.stack(images)).max() < 1


@pytest.mark.parametrize("kind", ["pooled", "plus", "unclip"])
def test_the_told_half_is_told_its_image_embeddings(adapters, unclip, targets, pictures, kind):
    generator = load_generator({**adapters, "unclip": unclip}[kind])
    how = {
        "latents": targets.latents,
        "prompt_embeds": None,
        "image_embeds": embed_images(generator, images=pictures),
        "mode": "z+e",
        **HOW,
    }
    never = drawn(generator, **how | {"guidance": 1.0})
    np.testing.assert_array_equal(drawn(generator, **how, guidance_interval=NONE), never)
    some = drawn(generator, **how, guidance_interval={"high": 1.001 * LEVELS[TIMES[3]]})
    always = drawn(generator, **how)
    assert far(some, never) > 0
    assert far(some, always) > 0


def test_gradient_guidance_goes_on_without_the_other_half(adapters, targets, pictures):
    generator = load_generator(adapters["pooled"])
    how = {
        "latents": targets.latents,
        "prompt_embeds": None,
        "image_embeds": embed_images(generator, images=pictures),
        "mode": "z+e",
        "gradient": GradientGuidance(repeats=2, last=2),
        **HOW,
    }
    never = drawn(generator, **how | {"guidance": 1.0})
    np.testing.assert_array_equal(drawn(generator, **how, guidance_interval=NONE), never)


@pytest.mark.parametrize("how", [{"guidance": 1.0}, {"mode": "z"}])
def test_where_nothing_is_guided_an_interval_says_nothing(tiny, targets, how):
    plain = drawn(tiny, **vars(targets), **HOW | how)
    np.testing.assert_array_equal(
        drawn(tiny, **vars(targets), **HOW | how, guidance_interval=middle()), plain
    )


@pytest.mark.parametrize("steps", [10, 50])
def test_levels_mean_the_same_whatever_the_steps(tiny, steps):
    settings = Reconstruct(**HOW | {"steps": steps}, guidance_interval={"low": 0.5, "high": 2.0})
    scheduler = scheduler_of(settings, tiny.scheduler_config)
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps[-int(steps * 0.8) :].tolist()
    expected = [0.5 < LEVELS[time] <= 2.0 for time in times]
    assert guided_steps(settings, tiny.scheduler_config) == expected
    assert 0 < sum(expected) < len(expected)


def test_a_checkpoint_whose_last_level_is_all_noise_has_one_above_every_limit(tiny):
    config = dict(tiny.scheduler_config) | {
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "_use_default_values": [],
    }
    how = HOW | {"strength": 1.0}
    for high, first in ((1e9, False), (None, True)):
        settings = Reconstruct(**how, guidance_interval={"high": high})
        assert guided_steps(settings, config) == [first] + [True] * 9
