"""Pretraining: the schedule and losses in closed form, and the whole path at toy sizes."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from raybrain.config import Generator, InputError, Reconstruct, load
from raybrain.diffusion import draw, embed_images, load_generator
from raybrain.diffusion.lite1 import COARSE, POOLED, Lite1WithProjection
from raybrain.pretraining.autoencoder import (
    ReconstructionLoss,
    decode,
    encode,
    new_autoencoder,
    standardise_latents,
)
from raybrain.pretraining.degradation import fit_latent_prior
from raybrain.pretraining.denoiser import (
    Pictured,
    VelocityLoss,
    alphas_cumprod,
    new_denoiser,
    new_scheduler,
)
from raybrain.pretraining.image_encoder import (
    behind_noise,
    class_embeddings,
    fit_projection,
    new_noising_scheduler,
)
from raybrain.pretraining.optimise import learning_rate, optimise, use_average
from raybrain.pretraining.parts import export
from raybrain.pretraining.phases import finished_parts, pretrain
from raybrain.pretraining.pictures import Pictures, open_pictures, to_unit, vary
from raybrain.pretraining.run import digest
from raybrain.pretraining.settings import (
    Autoencoder,
    Denoiser,
    ImageEncoder,
    Images,
    Optimisation,
    Pretraining,
    Text,
)
from raybrain.pretraining.text import ContrastiveLoss, new_text_encoder, new_tokenizer, tokenize
from raybrain.stimuli import family_of, held_out_emoji, pretraining_emoji

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "raybrain" / "assets" / "pocket-diffusion"
PARTS_WITH_WEIGHTS = {"vae", "unet", "text_encoder", "image_encoder", "image_normalizer"}


def test_the_schedule_is_the_shifted_cosine_and_ends_in_noise():
    kept = alphas_cumprod(steps=1000, shift=0.9)
    for step in (1, 250, 500, 800, 999):
        expected = -2 * math.log(math.tan(math.pi * step / 2000)) + 0.9
        found = torch.logit(kept[step - 1]).item()
        assert found == pytest.approx(expected, abs=1e-9)
    assert kept[-1] == 0
    assert (kept.diff() < 0).all()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
def test_samplers_built_from_the_config_keep_the_schedule():
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    settings = Denoiser(log_snr_shift=0.5)
    config = new_scheduler(settings).config
    wanted = alphas_cumprod(steps=1000, shift=0.5)
    for kind in (DDIMScheduler, DPMSolverMultistepScheduler):
        sampler = kind.from_config(config)
        torch.testing.assert_close(sampler.alphas_cumprod.double(), wanted, atol=2e-4, rtol=0)
        sampler.set_timesteps(20)
        assert sampler.timesteps[0] == 999


class _Knows(nn.Module):
    """A U-Net that knows latents are zero: then the velocity is the noise, scaled."""

    def __init__(self, kept):
        super().__init__()
        self.kept = kept
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, noisy, step, encoder_hidden_states, class_labels):
        kept = self.kept[step][:, None, None, None]
        # noisy = sqrt(1 - a) noise and v = sqrt(a) noise
        velocity = (kept.sqrt() / (1 - kept).clamp(min=1e-6).sqrt()) * noisy
        return type("Output", (), {"sample": self.scale * velocity})()


def test_velocity_loss_vanishes_for_the_right_velocity_and_only_for_it():
    settings = Denoiser(noise_steps=100)
    unet = _Knows(new_scheduler(settings).alphas_cumprod.clamp(0, 1).float())
    loss = VelocityLoss(unet, settings=settings)
    latents, captions = torch.zeros(16, 4, 8, 8), torch.zeros(16, 3, 8)
    torch.manual_seed(0)
    none = torch.zeros(0, 3, 32, 32)
    assert loss(latents, captions, none)["loss"].item() == pytest.approx(0, abs=1e-6)
    unet.scale.data += 0.5
    assert loss(latents, captions, none)["loss"].item() > 0.02


def test_latents_are_degraded_to_the_posterior_mean_behind_white_noise():
    torch.manual_seed(0)
    mixing = torch.randn(16, 16, dtype=torch.float64) * torch.logspace(0, -1.5, 16).double()
    latents = (torch.randn(4000, 16, dtype=torch.float64) @ mixing.T + 1).float()
    latents = latents.reshape(-1, 4, 2, 2)
    prior = fit_latent_prior(latents, weight=torch.ones(4000))
    covariance = np.cov(latents.flatten(1).numpy().T, bias=True)
    rebuilt = (prior.axes * prior.variance) @ prior.axes.T
    np.testing.assert_allclose(rebuilt, covariance, atol=1e-4)

    noise = torch.full((4000,), 0.5)
    none = torch.zeros(4000, dtype=torch.bool)
    found = prior.degrade(latents, noise=noise, rescaled=none).flatten(1)
    # Bayes: a posterior mean covaries with itself as it does with the truth.
    gain = covariance @ np.linalg.inv(covariance + 0.5 * np.trace(covariance) / 16 * np.eye(16))
    true, away = (x.flatten(1) - prior.mean for x in (latents, found))
    np.testing.assert_allclose(away.T @ true / 4000, gain @ covariance, atol=0.1)
    np.testing.assert_allclose(away.T @ away / 4000, gain @ covariance, atol=0.1)
    assert (gain @ covariance).max() > 2

    stretched = prior.degrade(latents, noise=noise, rescaled=~none).flatten(1)
    np.testing.assert_allclose(stretched.var(0), latents.flatten(1).var(0), rtol=0.1)


@pytest.mark.parametrize("started", [0.4, 0.6, 0.9])
def test_drawing_from_degraded_latents_passes_the_states_that_training_shows(started):
    from diffusers import DDIMScheduler

    settings = Denoiser(noise_steps=1000, degraded=1.0, degraded_rescaled=0.0)
    scheduler = new_scheduler(settings)
    generator = torch.Generator().manual_seed(0)
    sharp, blurred, noise = torch.randn(3, 2, 4, 8, 8, generator=generator)
    kept = scheduler.alphas_cumprod.float()

    solver = DDIMScheduler.from_config(scheduler.config)
    solver.set_timesteps(40)
    steps = [int(step) for step in solver.timesteps if step <= 1000 * started]
    share = (kept[steps[0]] / (1 - kept[steps[0]])).sqrt()
    state = kept[steps[0]].sqrt() * blurred + (1 - kept[steps[0]]).sqrt() * noise
    for step in steps:
        a = kept[step]
        # What training shows at this step, and the velocity it asks for.
        shown = noise + share * (blurred - sharp)
        torch.testing.assert_close(
            state, a.sqrt() * sharp + (1 - a).sqrt() * shown, atol=2e-4, rtol=1e-3
        )
        velocity = a.sqrt() * shown - (1 - a).sqrt() * sharp
        following = solver.step(velocity, step, state)
        torch.testing.assert_close(following.pred_original_sample, sharp, atol=1e-3, rtol=1e-3)
        state = following.prev_sample


def test_a_degraded_start_is_shown_with_what_it_lacks_as_noise():
    settings = Denoiser(noise_steps=100, degraded=1.0, degraded_noise=(2.0, 2.1))
    generator = torch.Generator().manual_seed(0)
    sharp = torch.randn(64, 4, 8, 8, generator=generator)
    prior = fit_latent_prior(torch.randn(400, 4, 8, 8, generator=generator), weight=torch.ones(400))
    kept = new_scheduler(settings).alphas_cumprod.clamp(0, 1).float()
    shown = []

    class Sharpens(nn.Module):
        """A U-Net that knows the sharp latents: v = (sqrt(a) x - z) / sqrt(1 - a)."""

        def forward(self, noisy, step, encoder_hidden_states, class_labels):
            a = kept[step][:, None, None, None]
            shown.append(((noisy - a.sqrt() * sharp) / (1 - a).sqrt(), step))
            velocity = (a.sqrt() * noisy - sharp) / (1 - a).sqrt()
            return type("Output", (), {"sample": velocity})()

    loss = VelocityLoss(Sharpens(), settings=settings, prior=prior)
    torch.manual_seed(0)
    seen = torch.zeros(0, 3, 16, 16)
    assert loss(sharp, torch.zeros(64, 3, 8), seen)["loss"].item() == pytest.approx(0, abs=1e-6)
    noise, step = shown[0]
    # More than the step's own noise, on the way down from a start between the two bounds; little
    # more where that start is nearly all noise.
    assert noise.square().mean() > 1.5
    assert step.float().mean() / 100 < 0.5
    assert step.max() < 95


def test_the_look_of_a_prediction_counts_and_leaves_the_autoencoder_alone():
    torch.manual_seed(0)
    settings = Denoiser(channels=(16, 32), heads_of=16, perceptual=1.0, noise_steps=50)
    vae = new_autoencoder(settings=Autoencoder(channels=(16, 16, 32)), size=32)
    unet = new_denoiser(settings=settings, sample_size=8, latent_channels=4, text_width=8)
    loss = VelocityLoss(unet, settings=settings, vae=vae)
    latents, captions = torch.randn(4, 4, 8, 8), torch.zeros(4, 3, 8)
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    terms = loss(latents, captions, pixels)
    weighted = terms["loss"] - terms["perceptual"]
    assert terms["perceptual"] > 0
    assert weighted < terms["loss"]
    terms["perceptual"].backward()
    assert all(p.grad is None for p in vae.parameters())
    assert sum(p.grad.abs().sum() for p in unet.parameters() if p.grad is not None) > 0
    trained = {k for k, p in loss.named_parameters() if p.requires_grad}
    assert trained == {f"unet.{k}" for k, _ in unet.named_parameters()}


def test_the_projection_is_that_of_whitened_principal_components():
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(0)
    features = rng.standard_normal((300, 40)) @ rng.standard_normal((40, POOLED + COARSE))
    encoder = Lite1WithProjection(size=32, components=8)
    fit_projection(encoder, features=torch.from_numpy(features), weight=torch.ones(300))
    scale = features.std(0) * np.sqrt(np.r_[np.full(POOLED, POOLED), np.full(COARSE, COARSE)])
    pca = PCA(8, whiten=True, svd_solver="full").fit((features - features.mean(0)) / scale)
    wanted = pca.transform((features - features.mean(0)) / scale)
    found = encoder.projection(torch.from_numpy(features).float()).numpy()
    signs = np.sign((wanted * found).sum(0))
    # scikit-learn divides by n - 1.
    np.testing.assert_allclose(found, signs * wanted * np.sqrt(300 / 299), atol=2e-3)
    variance = pca.explained_variance_ * 299 / 300
    np.testing.assert_allclose(encoder.projection.variance, variance, rtol=1e-4)


def test_behind_noise_a_component_keeps_the_share_its_variance_gives():
    torch.manual_seed(0)
    variance, noise = torch.tensor([4.0, 1.0, 0.1]), torch.full((50_000,), 1.0)
    embeds = torch.randn(50_000, 3)
    seen = behind_noise(embeds, variance=variance, noise=noise)
    kept = variance / (variance + 1)
    torch.testing.assert_close(seen.var(0), kept, atol=0.02, rtol=0)
    slope = (embeds * seen).mean(0) / seen.square().mean(0)
    torch.testing.assert_close(slope, torch.ones(3), atol=0.05, rtol=0)  # a posterior mean
    clean = behind_noise(embeds, variance=variance, noise=torch.zeros(50_000))
    assert torch.equal(clean, embeds)


def test_class_embeddings_are_those_of_diffusers_unclip():
    from types import SimpleNamespace

    from diffusers import StableUnCLIPImg2ImgPipeline
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
        StableUnCLIPImageNormalizer,
    )

    scheduler = new_noising_scheduler()
    parts = SimpleNamespace(
        image_normalizer=StableUnCLIPImageNormalizer(8), image_noising_scheduler=scheduler
    )
    embeds = torch.randn(5, 8)
    torch.manual_seed(1)
    noise = torch.randn(5, 8)
    with torch.no_grad():
        wanted = StableUnCLIPImg2ImgPipeline.noise_image_embeddings(
            parts, embeds, noise_level=300, noise=noise
        )
    torch.manual_seed(1)
    level = torch.full((5,), 300)
    found = class_embeddings(embeds, level=level, kept=scheduler.alphas_cumprod)
    torch.testing.assert_close(found, wanted)


def test_some_embeddings_are_dropped_and_tell_nothing():
    torch.manual_seed(0)
    settings = ImageEncoder(components=4, drop=0.3, noised=0.5)
    pictured = Pictured(torch.randn(2, 50, 4), variance=torch.ones(4), settings=settings)
    classes, dropped = pictured.draw(torch.randint(2, (4000,)), torch.randint(50, (4000,)))
    assert dropped.float().mean() == pytest.approx(0.3, abs=0.03)
    assert torch.equal((classes == 0).all(1), dropped)


def test_a_new_embedding_at_first_changes_nothing():
    torch.manual_seed(0)
    unet = new_denoiser(
        settings=Denoiser(channels=(16, 32), heads_of=16),
        sample_size=8,
        latent_channels=4,
        text_width=8,
        components=4,
    )
    noisy, captions = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 8)
    with torch.no_grad():
        one, other = (
            unet(noisy, 7, encoder_hidden_states=captions, class_labels=classes).sample
            for classes in (torch.zeros(2, 8), torch.randn(2, 8))
        )
    assert torch.equal(one, other)


def test_no_test_picture_of_a_simulated_subject_was_trained_on():
    shown = {family_of(e.code) for e in held_out_emoji()}
    assert len(shown) == 103
    assert not shown & {e.family for e in pretraining_emoji()}
    assert len(open_pictures(Images()).captions) == len(pretraining_emoji())


def test_contrastive_loss_agrees_with_numpy_and_counts_repeats_as_matches():
    settings = Text(vocabulary=600, tokens=8, width=16, layers=1, heads=2)
    torch.manual_seed(0)
    tokenizer = new_tokenizer(["a red dog", "a blue cat"], settings=settings)
    encoder = new_text_encoder(tokenizer, settings=settings).eval()
    loss = ContrastiveLoss(encoder, features=12).eval()
    ids = tokenize(["a dog", "cat", "red"], tokenizer=tokenizer)
    features = torch.randn(3, 12)
    picture = torch.tensor([4, 7, 4])
    with torch.no_grad():
        found = loss(ids, features, picture)["loss"].item()
        said = loss.say(encoder(ids).pooler_output).numpy()
        seen = loss.look(features).numpy()
    said /= np.linalg.norm(said, axis=1, keepdims=True)
    seen /= np.linalg.norm(seen, axis=1, keepdims=True)
    logits = said @ seen.T * math.exp(2.5)
    same = picture.numpy()[:, None] == picture.numpy()[None, :]
    wanted = same / same.sum(1, keepdims=True)

    def entropy(x):
        return -(wanted * (x - np.log(np.exp(x).sum(1, keepdims=True)))).sum(1).mean()

    assert found == pytest.approx((entropy(logits) + entropy(logits.T)) / 2, abs=1e-4)


def test_the_tokenizer_spells_what_it_never_saw(tmp_path):
    from transformers import CLIPTokenizer

    settings = Text(vocabulary=560, tokens=12)
    tokenizer = new_tokenizer(["dog face, animal", "cat face, animal"] * 5, settings=settings)
    assert len(tokenizer) <= 560
    assert tokenizer.tokenize("face") == ["face</w>"]
    ids = tokenize(["zebra ü", "dog " * 30], tokenizer=tokenizer)
    assert ids.shape == (2, 12)
    assert tokenizer.decode(ids[0], skip_special_tokens=True).replace(" ", "") == "zebraü"
    assert (ids[:, 0] == tokenizer.bos_token_id).all()
    assert (ids[:, -1] == tokenizer.eos_token_id).all()
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    assert (tokenize(["zebra ü", "dog " * 30], tokenizer=again) == ids).all()


def test_vary_does_nothing_at_zero_and_mirrors_at_one():
    torch.manual_seed(0)
    pixels = torch.rand(3, 3, 16, 16) * 2 - 1
    still = vary(pixels, flip=0, shift=0, zoom=0, hue=0)
    torch.testing.assert_close(still, pixels, atol=1e-5, rtol=0)
    mirrored = vary(pixels, flip=1, shift=0, zoom=0, hue=0)
    torch.testing.assert_close(mirrored, pixels.flip(-1), atol=1e-5, rtol=0)


def test_vary_moves_on_white_and_keeps_grey():
    torch.manual_seed(0)
    grey = torch.full((8, 3, 16, 16), 0.2)
    torch.testing.assert_close(vary(grey, flip=0, shift=0, zoom=0, hue=1), grey, atol=1e-5, rtol=0)
    black = torch.full((8, 3, 16, 16), -1.0)
    moved = vary(black, flip=0, shift=0.3, zoom=0, hue=0)
    assert moved.amax() == pytest.approx(1, abs=1e-5)
    red = torch.zeros(8, 3, 4, 4)
    red[:, 0] = 0.5
    turned = vary(red, flip=0, shift=0, zoom=0, hue=1)
    torch.testing.assert_close(turned.sum(1), red.sum(1), atol=1e-5, rtol=0)
    assert (turned[:, 0] < 0.45).any()


def test_standardised_latents_have_unit_variance_and_decode_as_before():
    torch.manual_seed(0)
    settings = Autoencoder(channels=(16, 32), perceptual=0)
    vae = new_autoencoder(settings=settings, size=16).eval()
    pixels = torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8)
    pictures = Pictures(pixels=pixels, captions=(("x",),) * 12, weight=torch.ones(12))
    unit = pixels.float() / 127.5 - 1
    before = decode(vae, encode(vae, unit))
    spread = (
        vae.encode(unit).latent_dist.std
        / vae.encode(unit).latent_dist.mean.std((0, 2, 3))[None, :, None, None]
    )
    standardise_latents(vae, pictures)
    latents = encode(vae, unit)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(decode(vae, latents), before, atol=1e-4, rtol=0)
    after = vae.encode(unit).latent_dist
    torch.testing.assert_close(
        after.std * vae.config["scaling_factor"], spread, atol=1e-3, rtol=1e-3
    )


def test_the_autoencoder_pays_for_hue_block_by_block():
    torch.manual_seed(0)
    settings = Autoencoder(channels=(16, 32), perceptual=0, colour=3.0, kl=0.5)
    vae = new_autoencoder(settings=settings, size=16).eval()
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    torch.manual_seed(1)
    with torch.no_grad():
        found = ReconstructionLoss(vae, settings=settings)(pixels)
    torch.manual_seed(1)
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
        error = (vae.decode(posterior.sample()).sample - pixels).numpy()
    red, green, blue = error.reshape(2, 3, 8, 2, 8, 2).mean((3, 5)).transpose(1, 0, 2, 3)
    hue = (np.abs(red - green) + np.abs(blue - (red + green) / 2)).mean()
    mean, variance = posterior.mean.numpy(), posterior.var.numpy()
    divergence = 0.5 * (mean**2 + variance - 1 - np.log(variance)).mean()
    expected = np.abs(error).mean() + 3 * hue + 0.5 * divergence
    assert found["loss"].item() == pytest.approx(expected, rel=1e-4)


class _Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(()))

    def forward(self, x, y):
        return {"loss": (self.slope * x - y).square().mean()}


def _points(count):
    x = torch.randn(count)
    return x, 3 * x


def test_optimise_finds_the_slope_and_a_resumed_run_equals_an_unbroken_one():
    settings = Optimisation(steps=60, batch_size=8, lr=0.3, warmup=1, ema=0.9, report_every=20)
    whole = _Line()
    reports = list(optimise(whole, draw=_points, settings=settings, seed=1))
    assert [r.step for r in reports] == [20, 40, 60]
    assert reports[-1].metrics["loss"] < 0.05 < reports[0].metrics["loss"]
    final = reports[-1].state()
    use_average(whole, final)
    assert whole.slope.item() == pytest.approx(3, abs=0.2)

    broken = _Line()
    state = next(optimise(broken, draw=_points, settings=settings, seed=1)).state()
    again = list(optimise(_Line(), draw=_points, settings=settings, seed=1, state=state))
    resumed = again[-1].state()
    assert [r.step for r in again] == [40, 60]
    assert torch.equal(resumed["weights"]["slope"], final["weights"]["slope"])
    assert torch.equal(resumed["average"]["slope"], final["average"]["slope"])


def test_learning_rate_warms_up_and_falls_to_a_twentieth():
    settings = Optimisation(steps=1000, batch_size=1, lr=1.0, warmup=10)
    assert learning_rate(0, settings=settings) == pytest.approx(0.1)
    assert learning_rate(500, settings=settings) == pytest.approx(0.525)
    assert learning_rate(1000, settings=settings) == pytest.approx(0.05)


def _folder_of_squares(folder):
    from PIL import Image

    colours = {"red square": "red", "blue square": "blue", "green_square": "green"}
    for name, colour in colours.items():
        picture = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
        picture.paste(colour, (10, 5, 30, 25))
        picture.save(folder / f"{name}.png")
    return folder


def test_a_folder_is_read_on_white_with_names_or_a_csv_as_captions(tmp_path):
    folder = _folder_of_squares(tmp_path)
    pictures = open_pictures(Images(folder=str(folder), size=16))
    assert pictures.pixels.shape == (3, 3, 16, 16)
    assert pictures.captions == (("blue square",), ("green square",), ("red square",))
    assert (pictures.pixels[:, :, 0, 0] == 255).all()
    assert pictures.pixels[0, :, 8, 8].tolist() == [0, 0, 255]
    table = tmp_path / "said.csv"
    table.write_text("file,caption\nred square.png,a\nred square.png,b\nblue square.png,c\n")
    with pytest.raises(InputError, match=r"no caption for green_square.png"):
        open_pictures(Images(folder=str(folder), captions=str(table), size=16))
    with pytest.raises(InputError, match="no image"):
        open_pictures(Images(folder=str(tmp_path / "nowhere"), size=16))


def _toy(folder, **changes):
    def brief(steps, every):
        return {"steps": steps, "batch_size": 8, "lr": 2e-3, "warmup": 2, "report_every": every}

    tree = {
        "name": "toy",
        "workspace": str(folder),
        "images": {"size": 16, "limit": 12},
        "autoencoder": {"channels": [16, 32], "perceptual": 0, "optimisation": brief(20, 10)},
        "text": {
            "vocabulary": 600,
            "tokens": 8,
            "width": 16,
            "layers": 1,
            "heads": 2,
            "optimisation": brief(20, 10),
        },
        "image_encoder": {"components": 6, "size": 32},
        "denoiser": {
            "channels": [16, 32],
            "heads_of": 16,
            "copies": 2,
            "optimisation": brief(20, 10),
        },
        "cpus": 1,
    }
    return Pretraining.model_validate(tree | changes)


@pytest.fixture(scope="module")
def toy_reports(tmp_path_factory):
    settings = _toy(tmp_path_factory.mktemp("toy"))
    return settings, [(report, report.state()) for report in pretrain(settings)]


def test_pretraining_goes_through_all_phases_and_every_loss_falls(toy_reports):
    _, reports = toy_reports
    found = [report for report, _ in reports]
    assert [r.phase for r in found] == ["autoencoder"] * 2 + ["text"] * 2 + ["denoiser"] * 2
    assert [r.epoch for r in found] == [10, 20, 30, 40, 50, 60]
    for early, late in zip(found[::2], found[1::2], strict=True):
        assert late.metrics["loss"] < early.metrics["loss"]


@pytest.mark.parametrize("stopped_at", [0, 1, 2, 4])
def test_continued_pretraining_equals_an_unbroken_one(toy_reports, stopped_at):
    settings, reports = toy_reports
    *_, last = pretrain(settings, state=reports[stopped_at][1])
    unbroken = reports[-1][1]["optimiser"]["average"]
    continued = last.state()["optimiser"]["average"]
    for key, value in unbroken.items():
        torch.testing.assert_close(continued[key], value, atol=1e-5, rtol=1e-4)


def test_the_exported_folder_is_a_generator_that_draws_from_what_it_sees(toy_reports, tmp_path):
    settings, reports = toy_reports
    parts = finished_parts(settings, reports[-1][1])
    export(parts, tmp_path)
    generator = load_generator(Generator(checkpoint=str(tmp_path), device="cpu"))
    average = reports[-1][1]["optimiser"]["average"]["unet.class_embedding.linear_2.weight"]
    shipped = generator.pipeline.unet.class_embedding.linear_2.weight
    torch.testing.assert_close(shipped.float(), average, atol=1e-3, rtol=1e-3)
    pixels = open_pictures(settings.images).pixels[:2]
    embeds = embed_images(generator, images=pixels.permute(0, 2, 3, 1).numpy())
    with torch.no_grad():
        wanted = parts.image_encoder(to_unit(pixels))
    np.testing.assert_allclose(embeds, wanted.numpy(), atol=1e-4)
    drawn = draw(
        generator,
        latents=None,
        prompt_embeds=None,
        image_embeds=embeds,
        image_ids=["a", "b"],
        samples=[0, 0],
        seed=0,
        settings=Reconstruct(mode="e", steps=4),
    )
    assert drawn.shape == (2, 16, 16, 3)


def test_more_components_than_the_pictures_have_are_refused(tmp_path):
    settings = _toy(tmp_path, image_encoder={"components": 64, "size": 32})
    with pytest.raises(InputError, match=r"vary in \d+ directions only"):
        list(pretrain(settings))


def test_without_an_image_encoder_the_exported_folder_draws_in_diffusers(tmp_path):
    from diffusers import StableDiffusionImg2ImgPipeline

    settings = _toy(tmp_path, image_encoder=None)
    *_, last = pretrain(settings)
    export(finished_parts(settings, last.state()), tmp_path)
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    average = last.state()["optimiser"]["average"]["unet.conv_in.weight"]
    shipped = pipeline.unet.conv_in.weight
    torch.testing.assert_close(shipped.float(), average, atol=1e-3, rtol=1e-3)
    pipeline.to(torch.float32)
    images = pipeline(
        prompt=["dog"],
        image=torch.randn(1, 4, 8, 8),
        strength=0.5,
        num_inference_steps=4,
        output_type="np",
    ).images
    assert images.shape == (1, 16, 16, 3)
    assert np.isfinite(images).all()


def test_training_goes_on_from_an_earlier_generator(toy_reports, tmp_path):
    settings, reports = toy_reports
    earlier = finished_parts(settings, reports[-1][1])
    export(earlier, tmp_path / "earlier")
    still = {"steps": 0, "batch_size": 8, "lr": 1e-3}
    changes = {
        "start": str(tmp_path / "earlier"),
        "autoencoder": {"channels": [16, 32], "perceptual": 0, "optimisation": still},
        "text": settings.text.model_dump() | {"optimisation": still},
    }
    again = _toy(tmp_path, **changes)
    *_, last = pretrain(again)
    assert (last.phase, last.epoch) == ("denoiser", 20)
    later = finished_parts(again, last.state())
    assert later.tokenizer.get_vocab() == earlier.tokenizer.get_vocab()
    for name, moved in {"vae": False, "text_encoder": False, "unet": True}.items():
        before = getattr(earlier, name).state_dict()
        after = getattr(later, name).state_dict()
        # The start was stored in half precision.
        same = all(torch.allclose(after[k], before[k], atol=1e-3, rtol=1e-3) for k in before)
        assert same != moved, name


def test_a_start_that_does_not_fit_is_named(toy_reports, tmp_path):
    settings, reports = toy_reports
    with pytest.raises(InputError, match=r"start: .*nowhere/tokenizer was not found"):
        next(pretrain(_toy(tmp_path, start=str(tmp_path / "nowhere"))))
    export(finished_parts(settings, reports[-1][1]), tmp_path)
    wider = settings.denoiser.model_dump() | {"channels": [16, 48]}
    with pytest.raises(InputError, match=r"start: unet in .* has other sizes"):
        next(pretrain(_toy(tmp_path, start=str(tmp_path), denoiser=wider)))


def test_only_settings_that_change_the_weights_change_the_digest(tmp_path):
    settings = _toy(tmp_path)
    assert digest(settings) == digest(_toy(tmp_path / "elsewhere", workers=2, cpus=2))
    assert digest(settings) != digest(_toy(tmp_path, seed=1))


def test_the_shipped_experiment_is_valid_and_a_typo_is_named():
    file = ROOT / "jobs" / "experiments" / "pocket.yaml"
    settings = load(file, (), schema=Pretraining)
    assert settings.images.folder is None
    with pytest.raises(InputError, match=r"denoiser\.chanels"):
        load(file, ("denoiser.chanels=[8]",), schema=Pretraining)


def test_the_shipped_generator_is_small_and_whole():
    weights = list(ASSETS.glob("*/*.safetensors"))
    assert {path.parent.name for path in weights} == PARTS_WITH_WEIGHTS
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) <= 30e6
    for part in ("model_index.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json"):
        assert (ASSETS / part).is_file()


SMOKE = [
    "images.limit=12",
    "images.size=16",
    "autoencoder.channels=[16,32]",
    "autoencoder.perceptual=0",
    "autoencoder.optimisation.steps=12",
    "autoencoder.optimisation.batch_size=4",
    "autoencoder.optimisation.report_every=4",
    "text.width=16",
    "text.heads=2",
    "text.layers=1",
    "text.optimisation.steps=4",
    "text.optimisation.batch_size=8",
    "image_encoder.components=6",
    "image_encoder.size=32",
    "denoiser.channels=[16,32]",
    "denoiser.heads_of=16",
    "denoiser.copies=1",
    "denoiser.optimisation.steps=8",
    "denoiser.optimisation.batch_size=4",
    "denoiser.optimisation.report_every=4",
    "cpus=1",
]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.filterwarnings("ignore:The ``noload``")  # MLflow's own
def test_the_job_trains_records_and_exports(tmp_path):
    from mlflow import MlflowClient

    command = [sys.executable, "jobs/pretrain.py", "jobs/experiments/pocket.yaml", *SMOKE]
    done = subprocess.run(
        [*command, f"workspace={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "generators" / "pocket-diffusion"
    assert f"generator.checkpoint={folder}" in done.stdout
    assert {path.parent.name for path in folder.glob("*/*.safetensors")} == PARTS_WITH_WEIGHTS
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("pretraining")
    runs = client.search_runs([experiment.experiment_id], "tags.`raybrain.stage` = 'pretrain'")
    history = client.get_metric_history(runs[0].info.run_id, "autoencoder/loss")
    assert [m.step for m in history] == [4, 8, 12]
    assert history[-1].value < history[0].value
    assert client.get_metric_history(runs[0].info.run_id, "denoiser/loss")[-1].step == 8
