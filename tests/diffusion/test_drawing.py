"""Drawing, against Stable Diffusion's equations written out here."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from raybrain.config import Features, Generator, InputError, Reconstruct
from raybrain.diffusion import (
    drawn_pixels,
    encode_captions,
    encode_images,
    load_generator,
    noise_seed,
)
from tests.diffusion.generators import LATENT, PIXELS, drawn, far


def test_ddim_matches_the_equations(tiny, targets):
    """Song et al. 2021, equation 12 with eta 0, and Ho and Salimans' guidance, by hand."""
    import torch

    steps, strength, guidance = 10, 0.8, 3.0
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0)
    times = [1 + 100 * k for k in range(steps)][::-1][steps - int(steps * strength) :]
    pipeline = tiny.pipeline
    images = []
    with torch.no_grad():
        empty = pipeline.tokenizer("", padding="max_length", return_tensors="pt").input_ids
        unconditional = pipeline.text_encoder(empty).last_hidden_state
        for row in range(3):
            source = torch.Generator().manual_seed(noise_seed(seed=5, image_id=100 + row, sample=2))
            noise = torch.randn((1, 4, LATENT, LATENT), generator=source)
            clean = torch.tensor(targets.latents[row : row + 1])
            x = kept[times[0]] ** 0.5 * clean + (1 - kept[times[0]]) ** 0.5 * noise
            embeds = torch.tensor(targets.prompt_embeds[row : row + 1])
            for time in times:
                without = pipeline.unet(x.float(), time, unconditional).sample
                noise = without + guidance * (
                    pipeline.unet(x.float(), time, embeds).sample - without
                )
                before = kept[time - 100] if time > 100 else kept[0]
                guess = (x - (1 - kept[time]) ** 0.5 * noise) / kept[time] ** 0.5
                x = before**0.5 * guess + (1 - before) ** 0.5 * noise
            decoded = pipeline.vae.decode(x.float() / 0.9).sample[0]
            images.append(((decoded + 1) * 127.5).clamp(0, 255).permute(1, 2, 0).numpy())
    result = drawn(
        tiny,
        **vars(targets),
        samples=[2, 2, 2],
        scheduler="ddim",
        steps=steps,
        strength=strength,
        guidance=guidance,
    )
    assert result.dtype == np.uint8
    assert result.shape == (3, PIXELS, PIXELS, 3)
    assert np.abs(result - np.stack(images)).max() < 1


@pytest.mark.parametrize("scheduler", ["ddim", "dpm-solver++", "unipc"])
@pytest.mark.parametrize(
    ("prediction", "spacing", "rescaled"),
    [
        ("epsilon", "leading", False),
        ("v_prediction", "leading", False),
        ("v_prediction", "trailing", False),
        ("v_prediction", "trailing", True),
        ("sample", "trailing", True),
    ],
)
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_perfect_network_draws_the_true_latents(
    tiny, targets, monkeypatch, scheduler, prediction, spacing, rescaled, strength
):
    """Every schedule and parametrisation of a checkpoint must lead an oracle to the truth."""
    import torch
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = torch.cumprod(1 - (rescale_zero_terminal_snr(betas) if rescaled else betas), 0)
    truth = 3 * torch.randn((1, 4, LATENT, LATENT), generator=torch.Generator().manual_seed(3))

    def oracle(sample, timestep, **_):
        signal, noise = kept[int(timestep)] ** 0.5, (1 - kept[int(timestep)]) ** 0.5
        epsilon = (sample - signal * truth) / noise
        kinds = {
            "epsilon": epsilon,
            "v_prediction": signal * epsilon - noise * truth,
            "sample": truth.expand_as(sample),
        }
        return (kinds[prediction],)

    monkeypatch.setattr(tiny.pipeline.unet, "forward", oracle)
    config = dict(tiny.scheduler_config) | {
        "prediction_type": prediction,
        "timestep_spacing": spacing,
        "rescale_betas_zero_snr": rescaled,
        "_use_default_values": [],
    }
    generator = replace(tiny, scheduler_config=config)
    with torch.no_grad():
        decoded = tiny.pipeline.vae.decode(truth / 0.9).sample[0]
    expected = ((decoded + 1) * 127.5).clamp(0, 255).round().byte().permute(1, 2, 0).numpy()
    result = drawn(generator, **vars(targets), scheduler=scheduler, steps=20, strength=strength)
    # DDIM stops at the first noise level of the schedule, .03 of the signal's deviation.
    assert np.abs(result.astype(float) - expected).mean() < 1.5


def test_both_schedulers_solve_the_same_equation(tiny, targets):
    settings = {"strength": 0.6, "guidance": 1.0}
    fine = drawn(tiny, **vars(targets), scheduler="ddim", steps=100, **settings)
    coarse = drawn(tiny, **vars(targets), scheduler="dpm-solver++", steps=20, **settings)
    start = drawn(tiny, **vars(targets), scheduler="ddim", steps=100, strength=0.01, guidance=1.0)
    error = np.abs(fine.astype(float) - coarse).mean()
    assert error < 0.1 * np.abs(fine.astype(float) - start).mean()


def test_the_noise_of_a_row_does_not_depend_on_its_batch(tiny, targets):
    together = drawn(tiny, **vars(targets), samples=[0, 1, 2], strength=0.8)
    for row in range(3):
        alone = drawn(tiny, **vars(targets), rows=[row], samples=[row], strength=0.8)
        assert far(alone, together[row : row + 1]) <= 1
    turned = drawn(tiny, **vars(targets), rows=[2, 0, 1], samples=[2, 0, 1], strength=0.8)
    assert far(turned, together[[2, 0, 1]]) <= 1
    assert far(drawn(tiny, **vars(targets), samples=[3, 1, 2], strength=0.8)[0], together[0]) > 5
    assert far(drawn(tiny, **vars(targets), samples=[0, 1, 2], strength=0.8, seed=6), together) > 5


def test_noise_seeds_are_frozen():
    assert noise_seed(seed=0, image_id=7, sample=1) == noise_seed(
        seed=0, image_id=np.int64(7), sample=1
    )
    # Another value here would change every reconstruction ever sealed.
    assert noise_seed(seed=0, image_id=7, sample=1) == 4705306923909516265


def test_modes_use_what_they_say(tiny, targets):
    latents, embeds = targets.latents, targets.prompt_embeds
    z = drawn(tiny, latents=latents, prompt_embeds=None, mode="z")
    np.testing.assert_array_equal(z, drawn(tiny, **vars(targets), mode="z", guidance=9.0))
    c = drawn(tiny, latents=None, prompt_embeds=embeds, mode="c", strength=0.1)
    np.testing.assert_array_equal(c, drawn(tiny, latents=latents, prompt_embeds=embeds, mode="c"))
    both = drawn(tiny, **vars(targets), mode="z+c")
    empty = np.broadcast_to(tiny.unconditional.numpy(), embeds.shape)
    assert far(drawn(tiny, latents=latents, prompt_embeds=empty), z) <= 1
    assert far(both, z) > 2
    assert far(both, c) > 2


def test_takagi_enlarges_to_the_generators_resolution(tiny, targets):
    rng = np.random.default_rng(4)
    latents = rng.standard_normal((3, 4, LATENT // 2, LATENT // 2), np.float32)
    small = drawn(tiny, latents=latents, prompt_embeds=targets.prompt_embeds, mode="z+c")
    large = drawn(tiny, latents=latents, prompt_embeds=targets.prompt_embeds, mode="takagi")
    smaller = Features(resolution=PIXELS // 2)
    for images, mode in ((small, "z+c"), (large, "takagi"), (large, "c")):
        side = drawn_pixels(tiny, features=smaller, reconstruct=Reconstruct(mode=mode))
        assert images.shape == (3, side, side, 3)
    assert small.shape == (3, PIXELS // 2, PIXELS // 2, 3)
    assert large.shape == (3, PIXELS, PIXELS, 3)
    # Without enlarging, the detour is decoding and encoding once.
    import torch

    with torch.no_grad():
        pixels = tiny.pipeline.vae.decode(torch.tensor(targets.latents) / 0.9).sample.clamp(-1, 1)
        again = tiny.pipeline.vae.encode(pixels).latent_dist.mean * 0.9
    direct = drawn(tiny, latents=again.numpy(), prompt_embeds=targets.prompt_embeds)
    assert far(drawn(tiny, **vars(targets), mode="takagi"), direct) <= 1


def test_guidance_of_one_runs_the_network_once(tiny, targets, rows):
    drawn(tiny, **vars(targets), guidance=1.0)
    drawn(tiny, **vars(targets), guidance=2.0)
    assert rows == [3, 3, 6, 6]


def test_bfloat16_keeps_noise_and_text_in_float32(tiny, checkpoint, targets):
    half = load_generator(Generator(checkpoint=str(checkpoint), device="cpu", dtype="bfloat16"))
    captions = [["a cat", "cat"]]
    np.testing.assert_array_equal(
        encode_captions(half, captions=captions), encode_captions(tiny, captions=captions)
    )
    images = np.random.default_rng(1).integers(0, 256, (5, PIXELS, PIXELS, 3), np.uint8)
    exact, rounded = encode_images(tiny, images=images), encode_images(half, images=images)
    assert 0 < np.abs(exact - rounded).max() < 0.05 * exact.std()
    one, other = drawn(half, **vars(targets)), drawn(tiny, **vars(targets))
    assert 0 < np.abs(one.astype(float) - other).mean() < 1.5


def wrong(targets, **changes):
    return SimpleNamespace(**vars(targets) | changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {"latents": t.latents[:, :3]}, "draws from .3, 4, 8, 8."),
        (lambda t: {"latents": t.latents.reshape(3, -1)}, "draws from .3, 4, 8, 8."),
        (lambda t: {"latents": t.latents[..., :7]}, "multiples of 2"),
        (lambda t: {"latents": np.where(t.latents > 2, np.nan, t.latents)}, "3 of 3 rows"),
        (lambda t: {"latents": None}, "there are none"),
        (lambda t: {"prompt_embeds": None}, "there are none"),
        (lambda t: {"prompt_embeds": t.prompt_embeds[..., :8]}, "reads .3, 12, 16."),
        (lambda t: {"prompt_embeds": t.prompt_embeds[:, :5]}, "reads .3, 12, 16."),
        (lambda t: {"prompt_embeds": t.prompt_embeds / 0}, "prompt_embeds of 3 of 3 rows"),
    ],
)
def test_unfit_targets_are_one_sentence(tiny, targets, change, message):
    with np.errstate(divide="ignore"), pytest.raises(InputError, match=message) as caught:
        drawn(tiny, **vars(wrong(targets, **change(targets))))
    assert "\n" not in str(caught.value)


def test_impossible_steps_are_refused(tiny, targets):
    with pytest.raises(InputError, match=r"reconstruct\.steps=10 or more"):
        drawn(tiny, **vars(targets), strength=0.1)
    with pytest.raises(InputError, match="1000 noise levels"):
        drawn(tiny, **vars(targets), steps=1001)


def test_a_network_that_overflows_is_reported(tiny, targets, monkeypatch):
    import torch

    def overflow(sample, *_, **__):
        return (torch.full_like(sample, torch.nan),)

    monkeypatch.setattr(tiny.pipeline.unet, "forward", overflow)
    with pytest.raises(InputError, match=r"generator\.dtype=float32"):
        drawn(tiny, **vars(targets))
