"""Targets, against the networks called directly."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from raybrain.config import Features, Generator, InputError
from raybrain.diffusion import (
    complete_prompt,
    encode_captions,
    encode_images,
    target_shapes,
)
from raybrain.diffusion.pictures import between_ones, resize, squares, staged
from raybrain.diffusion.targets import _computed
from tests.diffusion.generators import PIXELS, TOKENS, WIDTH


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


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_targets_that_are_not_finite_are_refused(tiny, value):
    import torch

    images = np.zeros((3, PIXELS, PIXELS, 3), np.uint8)
    bias = tiny.pipeline.vae.quant_conv.bias
    kept = bias.clone()
    with torch.no_grad():
        bias[0] = float(value)
    try:
        with pytest.raises(InputError, match=r"latents that are not finite of 3 of 3 images; type"):
            encode_images(tiny, images=images)
    finally:
        with torch.no_grad():
            bias.copy_(kept)
    assert np.isfinite(encode_images(tiny, images=images)).all()


def test_images_of_other_sizes_are_resized(tiny):
    grey = [np.full((size, size, 3), 77, np.uint8) for size in (20, PIXELS, 75)]
    latents = encode_images(tiny, images=grey)
    np.testing.assert_allclose(latents, latents[[1, 1, 1]], atol=1e-4)
    assert encode_images(tiny, images=grey, resolution=48).shape == (3, 4, 12, 12)


@pytest.mark.parametrize("size", [20, PIXELS, 75])
def test_pictures_of_one_size_may_be_resized_together(size):
    import torch

    pixels = np.random.default_rng(0).integers(0, 256, (5, size, size, 3), np.uint8)
    (pictures,) = staged(list(pixels), device=torch.device("cpu"))
    together = resize(between_ones(pictures), side=PIXELS)
    assert together.shape == (5, 3, PIXELS, PIXELS)
    assert torch.equal(squares(pictures, side=PIXELS), together)
    elsewhere = squares(pictures.to("meta"), side=PIXELS)  # another device than a CPU
    assert elsewhere.shape == together.shape


def test_threads_that_share_a_generator_get_their_own_targets(tiny):
    rng = np.random.default_rng(3)
    images = [rng.integers(0, 256, (3, 24, 24, 3), np.uint8) for _ in range(6)]
    captions = [[["a", f"b{number}"], ["c"]] for number in range(6)]
    at_once, inside = [], []

    def note(_module, _args):
        inside.append(1)
        at_once.append(len(inside))

    hooks = [
        tiny.pipeline.vae.encoder.register_forward_pre_hook(note),
        tiny.pipeline.vae.encoder.register_forward_hook(lambda *_: inside.pop() and None),
    ]
    with ThreadPoolExecutor(6) as threads:
        latents = list(threads.map(lambda i: encode_images(tiny, images=i, batch_size=1), images))
        embeds = list(threads.map(lambda c: encode_captions(tiny, captions=c), captions))
    for hook in hooks:
        hook.remove()
    assert set(at_once) == {1}
    for number in range(6):
        alone = encode_images(tiny, images=images[number], batch_size=1)
        np.testing.assert_array_equal(latents[number], alone)
        alone = encode_captions(tiny, captions=captions[number])
        np.testing.assert_array_equal(embeds[number], alone)


def test_a_device_has_the_next_batches_before_the_first_result_is_fetched(tiny, monkeypatch):
    import torch

    happened = []

    class Result:
        def cpu(self):
            assert not tiny.alone.locked()
            happened.append("fetched")
            return torch.zeros(1)

    def compute(batch):
        assert tiny.alone.locked()
        happened.append(batch)
        return (Result(),)

    monkeypatch.setattr("raybrain.diffusion.targets.BATCHES_AHEAD", 3)
    assert len(list(_computed(tiny, compute, range(5)))) == 5
    assert happened == [0, 1, 2, *["fetched"] * 3, 3, 4, *["fetched"] * 2]


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


def test_images_without_captions_or_colours_are_refused(tiny):
    with pytest.raises(InputError, match="image 1 needs"):
        encode_captions(tiny, captions=[["x"], []])
    with pytest.raises(InputError, match="float64 of shape"):
        encode_images(tiny, images=[np.zeros((8, 8, 3))])
