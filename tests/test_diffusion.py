"""Targets and drawing, against Stable Diffusion's equations written out here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from raybrain.config import Features, Generator, InputError, Reconstruct
from raybrain.diffusion import (
    DrawingUnit,
    DrawingWorker,
    complete_prompt,
    draw,
    drawn_pixels,
    encode_captions,
    encode_images,
    generator_digest,
    load_generator,
    noise_seed,
    target_shapes,
)

TOKENS, WIDTH, LATENT, PIXELS = 12, 16, 8, 32


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Return a Stable Diffusion folder as diffusers writes it: tiny, random weights."""
    import torch
    from diffusers import (
        AutoencoderKL,
        PNDMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("generator") / "tiny"
    torch.manual_seed(0)
    letters = [chr(code) for code in range(33, 127)]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    vocabulary["<|startoftext|>"] = len(vocabulary)
    vocabulary["<|endoftext|>"] = len(vocabulary)
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TOKENS)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=WIDTH,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            bos_token_id=len(vocabulary) - 2,
            eos_token_id=len(vocabulary) - 1,
            pad_token_id=len(vocabulary) - 1,
        )
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 16),
        norm_num_groups=4,
        sample_size=PIXELS,
        scaling_factor=0.9,
    )
    unet = UNet2DConditionModel(
        sample_size=LATENT,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        # As in Stable Diffusion v1.4's own scheduler_config.json.
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(checkpoint):
    import torch

    torch.set_num_threads(1)
    return load_generator(Generator(checkpoint=str(checkpoint), device="cpu"))


@pytest.fixture
def targets():
    """Return latents and prompt embeddings of 3 rows."""
    rng = np.random.default_rng(0)
    return SimpleNamespace(
        latents=rng.standard_normal((3, 4, LATENT, LATENT), np.float32),
        prompt_embeds=rng.standard_normal((3, TOKENS, WIDTH), np.float32),
    )


def drawn(generator, *, rows=(0, 1, 2), samples=None, seed=5, latents, prompt_embeds, **settings):
    rows = list(rows)
    return draw(
        generator,
        latents=None if latents is None else latents[rows],
        prompt_embeds=None if prompt_embeds is None else prompt_embeds[rows],
        image_ids=[100 + row for row in rows],
        samples=samples or [0] * len(rows),
        seed=seed,
        settings=Reconstruct(**{"steps": 4, "strength": 0.5, "guidance": 3.0} | settings),
    )


def far(one, other):
    """Return the largest difference between images in grey levels."""
    return np.abs(one.astype(int) - other.astype(int)).max()


# Targets


def test_latents_are_the_posterior_mean_times_the_scaling_factor(tiny, checkpoint):
    import torch
    from diffusers import AutoencoderKL

    images = np.random.default_rng(1).integers(0, 256, (5, PIXELS, PIXELS, 3), np.uint8)
    vae = AutoencoderKL.from_pretrained(checkpoint, subfolder="vae")
    pixels = torch.tensor(images).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        moments = vae.quant_conv(vae.encoder(pixels))
    expected = moments[:, :4] * 0.9
    latents = encode_images(tiny, images=images, batch_size=2)
    assert latents.dtype == np.float32
    np.testing.assert_allclose(latents, expected, atol=1e-5)


def test_images_of_other_sizes_are_resized(tiny):
    grey = [np.full((size, size, 3), 77, np.uint8) for size in (20, PIXELS, 75)]
    latents = encode_images(tiny, images=grey)
    np.testing.assert_allclose(latents, latents[[1, 1, 1]], atol=1e-4)
    assert encode_images(tiny, images=grey, resolution=48).shape == (3, 4, 12, 12)


def test_captions_are_averaged_within_their_image(tiny, checkpoint):
    import torch
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(checkpoint, subfolder="tokenizer")
    encoder = CLIPTextModel.from_pretrained(checkpoint, subfolder="text_encoder")
    captions = [["a cat", "cat"], ["dog"], ["a very long caption of many pieces", "b", "c"]]
    expected = []
    for own in captions:
        tokens = tokenizer(own, padding="max_length", truncation=True, return_tensors="pt")
        with torch.no_grad():
            expected.append(encoder(tokens.input_ids).last_hidden_state.mean(0).numpy())
    embeds = encode_captions(tiny, captions=captions, batch_size=4)
    np.testing.assert_allclose(embeds, expected, atol=1e-5)


def test_shapes_are_known_without_encoding(tiny, checkpoint):
    settings = Generator(checkpoint=str(checkpoint))
    shapes = target_shapes(settings, features=Features())
    images = np.zeros((1, PIXELS, PIXELS, 3), np.uint8)
    assert shapes == target_shapes(tiny, features=Features())
    assert encode_images(tiny, images=images).shape[1:] == shapes.latents
    assert encode_captions(tiny, captions=[["x"]]).shape[1:] == shapes.prompt_embeds
    other = target_shapes(settings, features=Features(resolution=48, tokens=5))
    assert (other.latents, other.prompt_embeds, other.pixels) == ((4, 12, 12), (5, WIDTH), 48)


def test_remaining_tokens_are_the_training_mean():
    rng = np.random.default_rng(2)
    first, mean = rng.standard_normal((4, 3, WIDTH)), rng.standard_normal((TOKENS, WIDTH))
    whole = complete_prompt(first, mean=mean)
    assert whole.shape == (4, TOKENS, WIDTH)
    np.testing.assert_array_equal(whole[:, :3], first.astype(np.float32))
    for row in whole:
        np.testing.assert_array_equal(row[3:], mean[3:].astype(np.float32))
    with pytest.raises(InputError, match="at most 12 tokens"):
        complete_prompt(rng.standard_normal((4, TOKENS + 1, WIDTH)), mean=mean)


# Drawing


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


@pytest.mark.parametrize("scheduler", ["ddim", "dpm-solver++"])
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


def test_guidance_of_one_runs_the_network_once(tiny, targets, monkeypatch):
    rows = []
    forward = tiny.pipeline.unet.forward

    def counted(sample, *args, **kwargs):
        rows.append(len(sample))
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(tiny.pipeline.unet, "forward", counted)
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


# What a user can mend


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


@pytest.mark.parametrize("name", ["nowhere.ckpt", "/no/such/folder", "pocket", "a/b/c"])
def test_missing_checkpoint_is_one_sentence(name):
    with pytest.raises(InputError, match="there is no generator at") as caught:
        load_generator(Generator(checkpoint=name))
    assert "\n" not in str(caught.value)


def test_uncached_hub_id_is_one_sentence(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="nor complete in the hub's cache") as caught:
        load_generator(Generator(checkpoint="nobody/no-such-generator"))
    assert "\n" not in str(caught.value)


def test_incomplete_folders_name_the_part(checkpoint, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    (copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no weights in .*unet"):
        load_generator(Generator(checkpoint=str(copy)))
    shutil.rmtree(copy / "vae")
    with pytest.raises(InputError, match="lacks vae/"):
        load_generator(Generator(checkpoint=str(copy)))
    index = copy / "model_index.json"
    index.write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    with pytest.raises(InputError, match="StableDiffusionXLPipeline, but"):
        load_generator(Generator(checkpoint=str(copy)))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (Features(resolution=36), r"features\.resolution=32"),
        (Features(tokens=77), r"features\.tokens=12"),
    ],
)
def test_unfit_features_are_one_sentence(checkpoint, features, message):
    with pytest.raises(InputError, match=message):
        target_shapes(Generator(checkpoint=str(checkpoint)), features=features)


def test_half_precision_on_cpu_names_the_alternatives(checkpoint):
    with pytest.raises(InputError, match=r"generator\.dtype=bfloat16"):
        load_generator(Generator(checkpoint=str(checkpoint), device="cpu", dtype="float16"))


def test_images_without_captions_or_colours_are_refused(tiny):
    with pytest.raises(InputError, match="image 1 needs"):
        encode_captions(tiny, captions=[["x"], []])
    with pytest.raises(InputError, match="float64 of shape"):
        encode_images(tiny, images=[np.zeros((8, 8, 3))])


# Checkpoints


def test_digest_is_of_the_content(checkpoint, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    digest = generator_digest(Generator(checkpoint=str(copy)))
    assert digest == generator_digest(Generator(checkpoint=str(checkpoint)))
    (copy / "README.md").write_text("nothing that draws")
    assert digest == generator_digest(Generator(checkpoint=str(copy), dtype="bfloat16"))
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert digest != generator_digest(Generator(checkpoint=str(copy)))


def test_digest_and_shapes_need_no_torch(checkpoint):
    code = (
        "import sys; from raybrain.config import *; from raybrain.diffusion import *\n"
        f"g = Generator(checkpoint={str(checkpoint)!r})\n"
        "generator_digest(g); target_shapes(g, features=Features())\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_only_half_precision_weights_on_disk_are_found(tiny, checkpoint, tmp_path):
    copy = tmp_path / "copy"
    tiny.pipeline.save_pretrained(copy, variant="fp16")
    generator = load_generator(Generator(checkpoint=str(copy), device="cpu"))
    captions = [["x"]]
    np.testing.assert_array_equal(
        encode_captions(generator, captions=captions), encode_captions(tiny, captions=captions)
    )


# The worker


@pytest.fixture
def unit(targets):
    return DrawingUnit(
        image_ids=(100, 101, 102),
        samples=(0, 1),
        latents=targets.latents,
        prompt_embeds=targets.prompt_embeds,
    )


@pytest.fixture
def worker(checkpoint):
    return DrawingWorker(
        generator=Generator(checkpoint=str(checkpoint), device="cpu"),
        reconstruct=Reconstruct(steps=4, strength=0.5, guidance=3.0),
        seed=5,
        threads=1,
    )


def test_worker_draws_every_sample_of_every_image(tiny, targets, unit, worker):
    drawing = worker(unit)
    assert drawing.images.shape == (3, 2, PIXELS, PIXELS, 3)
    assert (drawing.image_ids, drawing.samples, drawing.batch) == ((100, 101, 102), (0, 1), 6)
    for sample in (0, 1):
        alone = drawn(tiny, **vars(targets), samples=[sample] * 3)
        assert far(alone, drawing.images[:, sample]) <= 1


def test_drawing_again_gives_the_same_bytes(unit, worker):
    np.testing.assert_array_equal(worker(unit).images, worker(unit).images)


def test_memory_exhausted_halves_the_batch(unit, worker, monkeypatch):
    import torch

    whole = worker(unit)
    forward = worker.generator.pipeline.unet.forward
    tried = []

    def scarce(sample, *args, **kwargs):
        tried.append(len(sample) // 2)
        if len(sample) > 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(worker.generator.pipeline.unet, "forward", scarce)
    drawing = worker(unit)
    assert tried == [6, 3, 2, 2, 2, 2, 2, 2]
    assert drawing.batch == 2
    assert far(drawing.images, whole.images) <= 1
    worker(unit)
    assert tried[8] == 2  # it does not try again what did not fit

    def exhausted(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(worker.generator.pipeline.unet, "forward", exhausted)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        worker(unit)
