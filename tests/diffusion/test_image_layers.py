"""Inner layers of image encoders: what is read, how it is compared, what it does to pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raybrain.config import Features, Generator, GradientGuidance, InputError
from raybrain.diffusion import (
    LayerTargets,
    Spread,
    load_generator,
    see_images,
    target_shapes,
)
from raybrain.diffusion.gradient_guidance import Guide
from tests.diffusion.generators import drawn, far

# Of diffusers' own schedulers with this numpy; our calls silence the library by themselves.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
ROWS = 3
POCKET = Features(layers=(4, 11, 15, 20), grid=4)
FIELDS = 16


@pytest.fixture(scope="module")
def pocket():
    torch.set_num_threads(1)
    return load_generator(Generator(checkpoint="pocket-diffusion", device="cpu"))


def in_range(pictures):
    return torch.tensor(pictures).permute(0, 3, 1, 2) / 127.5 - 1


def targets_of(generator, pictures, *, features):
    """Return the true features of pictures, with the spread of noise around them."""
    _, values = see_images(generator, images=pictures, features=features)
    rng = np.random.default_rng(0)
    others = [values + scale * rng.standard_normal(values.shape) for scale in (0.5, 1, 2)]
    return LayerTargets(values, spread=Spread.of(others), features=features)


def test_blocks_are_those_of_the_network_and_averaged_in_fields(pocket, pictures):
    _, found = see_images(pocket, images=pictures, features=POCKET)
    network = pocket.image.encoder.network
    side, outputs = network.size, {}
    hooks = [
        network.network._blocks[index].register_forward_hook(
            lambda _module, _given, made, index=index: outputs.update({index: made})
        )
        for index in POCKET.layers
    ]
    with torch.no_grad():
        pixels = torch.nn.functional.interpolate(
            in_range(pictures), size=(side, side), mode="bilinear", align_corners=False
        )
        network.network.extract_features((pixels * 127.5 + 0.5) / 128)
    for hook in hooks:
        hook.remove()
    wanted = []
    for index in POCKET.layers:
        maps = outputs[index].numpy()
        fields = maps.shape[-1] // 4
        shape = (ROWS, maps.shape[1], 4, fields, 4, fields)
        wanted.append(maps.reshape(shape).mean(axis=(3, 5)).reshape(ROWS, -1))
    np.testing.assert_allclose(found, np.concatenate(wanted, axis=1), rtol=1e-3, atol=1e-4)
    sizes = [width * FIELDS for width in (40, 112, 192, 320)]
    assert target_shapes(pocket, features=POCKET).image_features == (sum(sizes),)
    assert found.shape == (ROWS, sum(sizes))


@pytest.mark.parametrize("form", ["pooled", "plus", "unclip"])
def test_hidden_states_are_those_of_transformers(adapters, unclip, pictures, form):
    generator = load_generator({**adapters, "unclip": unclip}[form])
    encoder = generator.image.encoder
    layers = (0, encoder.network.config.num_hidden_layers)
    features = Features(layers=layers, grid=2)
    _, found = see_images(generator, images=pictures, features=features)
    given = encoder.processor(images=list(pictures), return_tensors="pt").pixel_values
    with torch.no_grad():
        states = encoder.network.vision_model(given, output_hidden_states=True).hidden_states
    wanted = []
    for layer in layers:
        patches = states[layer][:, 1:].numpy()
        side = int(patches.shape[1] ** 0.5)
        maps = patches.reshape(ROWS, side, side, -1).transpose(0, 3, 1, 2)
        halves = maps[..., : side // 2 * 2, : side // 2 * 2]
        assert side % 2 == 0
        fields = halves.reshape(ROWS, maps.shape[1], 2, side // 2, 2, side // 2)
        wanted.append(fields.mean(axis=(3, 5)).reshape(ROWS, -1))
    np.testing.assert_allclose(found, np.concatenate(wanted, axis=1), rtol=1e-4, atol=1e-5)
    assert target_shapes(generator, features=features).image_features == found.shape[1:]


def test_spread_is_that_of_all_rows_in_whatever_blocks():
    rows = np.random.default_rng(1).normal(3, 2, (50, 6)).astype(np.float32)
    rows[:, 2] = 7.0
    spread = Spread.of([rows[:20], rows[20:21], rows[21:]])
    np.testing.assert_allclose(spread.mean, rows.mean(axis=0), rtol=1e-5)
    wanted = rows.std(axis=0)
    wanted[2] = np.inf  # which never varies and has nothing to say
    np.testing.assert_allclose(spread.deviation, wanted, rtol=1e-4)


def test_likeness_is_the_mean_over_layers_of_the_cosine_of_z_scores(pocket, pictures):
    targets = targets_of(pocket, pictures, features=POCKET)
    sizes = [width * FIELDS for width in (40, 112, 192, 320)]
    likeness = targets.on("cpu", sizes=sizes)
    with torch.no_grad():
        seen = pocket.image.encoder.look(in_range(pictures[::-1].copy()), features=POCKET)
        found = likeness.cosine(seen.layers, rows=slice(0, ROWS)).numpy()
        same = pocket.image.encoder.look(in_range(pictures), features=POCKET)
        part = likeness.cosine([one[1:] for one in same.layers], rows=slice(1, ROWS)).numpy()
    scored = (targets.values - targets.spread.mean) / targets.spread.deviation
    parts = np.split(scored.astype(float), np.cumsum(sizes)[:-1], axis=1)
    wanted = [
        (one * one[::-1]).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(one[::-1], axis=1)
        for one in parts
    ]
    np.testing.assert_allclose(found, np.mean(wanted, axis=0), atol=2e-3)
    np.testing.assert_allclose(part, 1, atol=1e-3)


def test_pictures_come_to_look_like_decoded_layers_without_any_embedding(pocket, pictures):
    targets = targets_of(pocket, pictures, features=POCKET)
    latents = np.random.default_rng(1).standard_normal((ROWS, 4, 16, 16)).astype(np.float32)
    embeds, _ = see_images(pocket, images=pictures[::-1].copy(), features=POCKET)
    how = {"latents": latents, "prompt_embeds": None, "image_embeds": embeds, "steps": 6}
    layers_alone = GradientGuidance(embedding=0.0, repeats=4, last=3)
    sizes = [width * FIELDS for width in (40, 112, 192, 320)]

    def alike(drawn_pictures):
        with torch.no_grad():
            seen = pocket.image.encoder.look(in_range(drawn_pictures), features=POCKET)
            whole = targets.on("cpu", sizes=sizes)
            return whole.cosine(seen.layers, rows=slice(0, ROWS)).numpy()

    plain = drawn(pocket, **how, mode="z+e")
    better = drawn(pocket, **how, mode="z+e", image_features=targets, gradient=layers_alone)
    assert (alike(better) > alike(plain) + 0.05).all()
    # Without the embedding nothing is guided, and layers of no weight are as good as none.
    z = drawn(pocket, **how, mode="z")
    assert (
        far(drawn(pocket, **how, mode="z", image_features=targets, gradient=layers_alone), z) == 0
    )
    guides = {"embedding": GradientGuidance(layers=0.0), "both": GradientGuidance()}
    one = drawn(pocket, **how, mode="z+e", image_features=targets, gradient=guides["embedding"])
    assert far(drawn(pocket, **how, mode="z+e", gradient=guides["both"]), one) == 0


def test_both_weights_count(pocket, pictures):
    targets = targets_of(pocket, pictures, features=POCKET)
    embeds, _ = see_images(pocket, images=pictures[::-1].copy(), features=POCKET)
    clean = torch.randn((ROWS, 4, 16, 16), generator=torch.Generator().manual_seed(0))
    sizes = [width * FIELDS for width in (40, 112, 192, 320)]

    def move(**weights):
        sources = [torch.Generator().manual_seed(row) for row in range(ROWS)]
        settings = GradientGuidance(repeats=1, **weights)
        guide = Guide(
            pocket,
            embeds=torch.tensor(embeds),
            settings=settings,
            noise=sources,
            layers=targets.on("cpu", sizes=sizes),
        )
        return guide.move(clean).flatten(1)

    only_layers, only_embedding = move(embedding=0.0), move(layers=0.0)
    mostly = move(embedding=0.01, layers=1.0)
    cosine = torch.nn.functional.cosine_similarity
    assert (cosine(mostly, only_layers) > 0.95).all()
    assert (cosine(only_embedding, only_layers) < 0.9).all()


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (Features(layers=(21,)), r"features\.layers has 21, .* layers 0 to 20"),
        (Features(layers=(15,), grid=5), r"layer 15 .* has 4 x 4 fields; type features\.grid=4"),
    ],
)
def test_layers_that_are_not_there_are_refused(pocket, features, said):
    with pytest.raises(InputError, match=said):
        target_shapes(pocket, features=features)


def test_a_checkpoint_without_an_encoder_is_refused(tiny):
    with pytest.raises(InputError, match=r"features\.layers needs an image encoder"):
        target_shapes(tiny, features=Features(layers=(1,)))


def test_decoded_features_of_other_layers_are_refused(pocket, pictures):
    targets = targets_of(pocket, pictures, features=POCKET)
    fewer = LayerTargets(targets.values, spread=targets.spread, features=Features(layers=(4, 11)))
    latents = np.zeros((ROWS, 4, 16, 16), np.float32)
    with pytest.raises(InputError, match=r"image_features have shape .* predict them again"):
        drawn(
            pocket,
            latents=latents,
            prompt_embeds=None,
            image_embeds=np.zeros((ROWS, 64), np.float32),
            mode="z+e",
            image_features=fewer,
            gradient=GradientGuidance(),
        )
