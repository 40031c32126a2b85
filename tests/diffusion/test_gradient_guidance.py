"""Gradient guidance: the size and the direction of its steps, and what they do to pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from raybrain.config import Generator, GradientGuidance, Reconstruct
from raybrain.diffusion import embed_images, load_generator
from raybrain.diffusion.gradient_guidance import SHIFT, Guide, guided
from raybrain.diffusion.schedulers import scheduler_of
from tests.diffusion import generators
from tests.diffusion.generators import LATENT, far

# Of diffusers' own schedulers with this numpy; our calls silence the library by themselves.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
ROWS = 3
KINDS = ["pooled", "plus", "unclip", "pocket"]


@pytest.fixture(scope="module")
def settings(adapters, unclip):
    """Return the settings of a generator of every kind that knows image embeddings."""
    pocket = Generator(checkpoint="pocket-diffusion", device="cpu")
    return {**adapters, "unclip": unclip, "pocket": pocket}


@pytest.fixture(scope="module", params=KINDS)
def generator(request, settings):
    torch.set_num_threads(1)
    return load_generator(settings[request.param])


@pytest.fixture(scope="module")
def pocket(settings):
    torch.set_num_threads(1)
    return load_generator(settings["pocket"])


def noise():
    return [torch.Generator().manual_seed(row) for row in range(ROWS)]


def latents_of(generator):
    shape = (ROWS, 4, generator.latent_size, generator.latent_size)
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def apart(one, other):
    return np.abs(one.astype(int) - other.astype(int)).mean()


def drawn(generator, embeds, **how):
    return generators.drawn(
        generator,
        latents=latents_of(generator),
        prompt_embeds=None,
        image_embeds=embeds,
        **{"mode": "z+e", "steps": 6, "guidance": 2.0} | how,
    )


def likeness(generator, drawn_pictures, embeds):
    pixels = torch.tensor(drawn_pictures).permute(0, 3, 1, 2) / 127.5 - 1
    encoder = generator.image.encoder
    with torch.no_grad():
        return encoder.cosine(encoder.look(pixels).embeds, torch.tensor(embeds)).numpy()


@pytest.mark.parametrize("scheduler", ["ddim", "dpm-solver++", "unipc"])
def test_what_is_drawn_is_more_like_what_the_embedding_says(pocket, pictures, scheduler):
    embeds = embed_images(pocket, images=pictures)
    plain = drawn(pocket, embeds, scheduler=scheduler)
    guide = GradientGuidance(repeats=4, last=3)
    better = drawn(pocket, embeds, scheduler=scheduler, gradient=guide)
    assert (likeness(pocket, better, embeds) > likeness(pocket, plain, embeds) + 0.05).all()


def test_the_cosine_is_that_of_embedded_pictures(generator, pictures):
    embeds = embed_images(generator, images=pictures)
    assert likeness(generator, pictures, embeds) == pytest.approx(1, abs=1e-3)
    others = embed_images(generator, images=pictures[::-1].copy())
    weight = np.ones(1, np.float32)
    if generator.image.encoder.processor is None:  # whitened by its projection
        weight = generator.image.encoder.network.projection.variance.sqrt().numpy()
    one, other = ((x * weight).reshape(ROWS, -1).astype(float) for x in (embeds, others))
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    wanted = (one * other).sum(1) / lengths
    # Their processor rounds to whole grey levels; what guides does not.
    assert likeness(generator, pictures[::-1].copy(), embeds) == pytest.approx(wanted, abs=0.01)


def test_a_step_has_its_size_and_points_up_the_cosine(generator, pictures, monkeypatch):
    """Against a central difference of the cosine along the step, without the shifts."""
    size = 0.005
    monkeypatch.setattr("raybrain.diffusion.gradient_guidance.SHIFT", 0.0)
    embeds = torch.tensor(embed_images(generator, images=pictures))
    clean = torch.tensor(latents_of(generator))

    def cosine(latents):
        with torch.no_grad():
            pixels = generator.pipeline.vae.decode(latents / generator.scaling_factor).sample
            seen = generator.image.encoder.look(pixels.clamp(-1, 1))
            return generator.image.encoder.cosine(seen.embeds, embeds).double()

    step = GradientGuidance(size=size, repeats=1)
    move = Guide(generator, embeds=embeds, settings=step, noise=noise()).move(clean)
    assert move.square().mean((1, 2, 3)).sqrt().numpy() == pytest.approx(size, rel=1e-4)
    along = (cosine(clean + move / 2) - cosine(clean - move / 2)).numpy()
    assert (along > 0).all()
    # No direction of the same length climbs as fast as the gradient.
    for seed in range(3):
        other = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
        other *= size / other.square().mean((1, 2, 3), keepdim=True).sqrt()
        aside = (cosine(clean + other / 2) - cosine(clean - other / 2)).numpy()
        assert (along > 3 * np.abs(aside)).all()


def test_steps_shrink_and_add_up(pocket, pictures):
    embeds = torch.tensor(embed_images(pocket, images=pictures))
    clean = torch.tensor(latents_of(pocket))
    sources = noise()

    def guide(size, repeats, noise):
        settings = GradientGuidance(size=size, repeats=repeats)
        return Guide(pocket, embeds=embeds, settings=settings, noise=noise)

    moved = clean
    for size in (0.05 * 5 / 3, 0.05, 0.05 / 3):
        moved = moved + guide(size, 1, sources).move(moved)
    both = guide(0.05, 3, noise()).move(clean)
    torch.testing.assert_close(clean + both, moved, atol=2e-3, rtol=1e-3)


class Constant:
    """Moves whatever it is shown by the same."""

    def __init__(self, move, *, last):
        self.settings = GradientGuidance(last=last)
        self.by = move
        self.seen = []

    def move(self, clean):
        self.seen.append(clean)
        return self.by.expand_as(clean)


@pytest.mark.parametrize("name", ["ddim", "dpm-solver++", "unipc"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_every_scheduler_takes_the_moved_guess(tiny, name, prediction):
    """An oracle's guess is the truth at every step; moved, all of it moves and nothing else."""
    config = dict(tiny.scheduler_config) | {"prediction_type": prediction}
    generator = replace(tiny, scheduler_config=config)
    shape = (1, 4, LATENT, LATENT)
    truth = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    by = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    scheduler = scheduler_of(Reconstruct(scheduler=name), generator.scheduler_config)
    scheduler.set_timesteps(10)
    guide = Constant(by, last=10)
    scheduler = guided(scheduler, guide)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    for time in scheduler.timesteps:
        kept = scheduler.alphas_cumprod[time]
        signal, sigma = kept.sqrt(), (1 - kept).sqrt()
        epsilon = (x - signal * truth) / sigma
        output = {
            "epsilon": epsilon,
            "v_prediction": signal * epsilon - sigma * truth,
            "sample": truth,
        }[prediction]
        x = scheduler.step(output, time, x).prev_sample
    assert len(guide.seen) == 10
    for guess in guide.seen:
        torch.testing.assert_close(guess, truth, atol=1e-3, rtol=1e-3)
    # DDIM ends at the first noise level of the schedule, .03 of the signal's deviation.
    assert (x - truth - by).abs().max() < (0.15 if name == "ddim" else 1e-2)


def test_only_the_last_steps_are_guided(tiny):
    scheduler = scheduler_of(Reconstruct(), tiny.scheduler_config)
    scheduler.set_timesteps(10)
    guide = Constant(torch.zeros(1), last=3)
    scheduler = guided(scheduler, guide)
    x = torch.zeros(1, 4, LATENT, LATENT)
    for done, time in enumerate(scheduler.timesteps):
        scheduler.step(x, time, x)
        assert len(guide.seen) == max(0, done + 1 - 7)


def test_a_row_is_drawn_alike_alone_and_among_others(pocket, pictures):
    embeds = embed_images(pocket, images=pictures)
    guide = GradientGuidance(repeats=2, last=2)
    together = drawn(pocket, embeds, gradient=guide)
    for row in range(ROWS):
        alone = drawn(pocket, embeds, rows=[row], gradient=guide)
        other = drawn(pocket, embeds, rows=[row], gradient=guide, seed=1)
        # Sums over other batches round otherwise, and every step starts from the rounded.
        assert apart(alone[0], together[row]) < 0.1 * apart(alone[0], other[0])
    assert far(drawn(pocket, embeds, gradient=guide), together) == 0


def test_more_rows_than_go_back_at_once(pocket, pictures, monkeypatch):
    embeds = torch.tensor(embed_images(pocket, images=pictures))
    clean = torch.tensor(latents_of(pocket))
    settings = GradientGuidance(repeats=1)
    whole = Guide(pocket, embeds=embeds, settings=settings, noise=noise()).move(clean)
    monkeypatch.setattr("raybrain.diffusion.gradient_guidance.AT_ONCE", 2)
    parts = Guide(pocket, embeds=embeds, settings=settings, noise=noise()).move(clean)
    torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-2)


def test_pictures_are_looked_at_shifted_by_no_more_than_said(pocket, pictures, monkeypatch):
    embeds = torch.tensor(embed_images(pocket, images=pictures))
    clean = torch.tensor(latents_of(pocket))
    shown = []
    plain_look = type(pocket.image.encoder).look

    def look(self, pixels, **how):
        shown.append(pixels.detach())
        return plain_look(self, pixels, **how)

    monkeypatch.setattr(type(pocket.image.encoder), "look", look)
    settings = GradientGuidance(size=1e-6, repeats=4)
    Guide(pocket, embeds=embeds, settings=settings, noise=noise()).move(clean)
    side = shown[0].shape[-1]
    most = round(SHIFT * side)
    with torch.no_grad():
        plain = pocket.pipeline.vae.decode(clean / pocket.scaling_factor).sample.clamp(-1, 1)
    padded = torch.nn.functional.pad(plain, [most] * 4, mode="replicate")
    offsets = set()
    for row in range(ROWS):
        for look_at in shown:
            apart = {
                (y, x): float(
                    (padded[row, :, y : y + side, x : x + side] - look_at[row]).abs().max()
                )
                for y in range(2 * most + 1)
                for x in range(2 * most + 1)
            }
            nearest = min(apart, key=apart.get)
            assert apart[nearest] < 1e-3
            offsets.add(nearest)
    assert len(offsets) > 6


def test_half_precision_points_the_same_way(settings, pictures):
    moves = []
    for dtype in ("float32", "bfloat16"):
        generator = load_generator(settings["unclip"].model_copy(update={"dtype": dtype}))
        embeds = torch.tensor(embed_images(generator, images=pictures))
        guide = Guide(generator, embeds=embeds, settings=GradientGuidance(repeats=1), noise=noise())
        moves.append(guide.move(torch.tensor(latents_of(generator))).flatten(1))
    assert moves[1].dtype == torch.float32
    assert (torch.nn.functional.cosine_similarity(*moves) > 0.9).all()


def test_without_the_embedding_nothing_is_guided(pocket, pictures):
    embeds = embed_images(pocket, images=pictures)
    guide = GradientGuidance()
    plain = drawn(pocket, embeds, mode="z")
    assert far(drawn(pocket, embeds, mode="z", gradient=guide), plain) == 0
