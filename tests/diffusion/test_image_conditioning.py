"""Image embeddings, against the pipelines of diffusers for the same noise."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from raybrain.config import Features, Generator, InputError, Reconstruct
from raybrain.diffusion import (
    embed_images,
    generator_digest,
    load_generator,
    noise_seed,
    target_shapes,
)
from raybrain.diffusion.schedulers import scheduler_of
from tests.diffusion.generators import (
    EMBEDDING,
    HIDDEN,
    LATENT,
    WIDTH,
    drawn,
    far,
    write_adapter,
    write_image_encoder,
    write_unclip,
)

# Of diffusers' own schedulers with this numpy; our calls silence the library by themselves.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
ROWS = 3


def noise():
    return [
        torch.Generator().manual_seed(noise_seed(seed=5, image_id=100 + row, sample=0))
        for row in range(ROWS)
    ]


def ours(generator, *, settings, **targets):
    return drawn(generator, **{"latents": None, "prompt_embeds": None} | targets, **settings)


def in_grey_levels(pixels):
    return (pixels * 255).round().byte().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("form", ["pooled", "plus"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_an_adapter_draws_what_diffusers_draws_from_the_pictures(
    adapters, checkpoint, targets, pictures, form, guidance
):
    from diffusers import StableDiffusionImg2ImgPipeline
    from PIL import Image

    settings = adapters[form]
    generator = load_generator(settings)
    embeds = embed_images(generator, images=pictures)
    how = {"mode": "z+c+e", "guidance": guidance, "image_scale": 0.7}
    found = ours(generator, **vars(targets), image_embeds=embeds, settings=how)

    path = settings.image_adapter
    theirs = StableDiffusionImg2ImgPipeline.from_pretrained(
        checkpoint, safety_checker=None, feature_extractor=None, image_encoder=None
    )
    folder, _, name = path.rpartition("/")
    theirs.load_ip_adapter(folder, subfolder="", weight_name=name)
    theirs.set_ip_adapter_scale(0.7)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = scheduler_of(Reconstruct(), generator.scheduler_config)
    # Their own processor would be described by no file; ours comes from the encoder's folder.
    theirs.feature_extractor = generator.image.encoder.processor
    for row, source in enumerate(noise()):
        # One by one: of a batch their pipeline shows every row the pictures of all.
        wanted = theirs(
            image=torch.tensor(targets.latents[[row]]),
            prompt_embeds=torch.tensor(targets.prompt_embeds[[row]]),
            negative_prompt_embeds=generator.unconditional[None],
            ip_adapter_image=Image.fromarray(pictures[row]),
            strength=0.5,
            guidance_scale=guidance,
            num_inference_steps=4,
            generator=source,
            output_type="pt",
        ).images
        assert far(found[[row]], in_grey_levels(wanted)) <= 1
    # Another picture draws another image: the comparison is not of two that ignore it.
    others = ours(generator, **vars(targets), image_embeds=embeds[::-1].copy(), settings=how)
    assert far(found, others) > 3


def test_embeddings_have_the_shape_the_adapter_reads(adapters, pictures):
    for form, shape in (("pooled", (EMBEDDING,)), ("plus", (5, HIDDEN))):
        assert target_shapes(adapters[form], features=Features()).image_embeds == shape
        found = embed_images(load_generator(adapters[form]), images=list(pictures))
        assert found.shape == (ROWS, *shape)
        assert found.dtype == np.float32


@pytest.mark.parametrize("form", ["pooled", "plus"])
def test_without_an_embedding_the_adapter_is_as_if_it_were_not_there(adapters, tiny, targets, form):
    generator = load_generator(adapters[form])
    for mode in ("z", "c", "z+c", "takagi"):
        plain = drawn(tiny, **vars(targets), mode=mode)
        np.testing.assert_array_equal(drawn(generator, **vars(targets), mode=mode), plain)


def test_a_scale_of_nothing_is_no_embedding(adapters, targets, pictures):
    generator = load_generator(adapters["pooled"])
    embeds = embed_images(generator, images=pictures)
    how = {"mode": "z+c+e", "image_scale": 0.0}
    without = ours(generator, **vars(targets), settings={"mode": "z+c"})
    found = ours(generator, **vars(targets), image_embeds=embeds, settings=how)
    np.testing.assert_array_equal(found, without)


def test_a_prompt_scale_of_nothing_is_the_empty_caption(tiny, targets):
    empty = np.broadcast_to(tiny.unconditional.numpy(), targets.prompt_embeds.shape).copy()
    found = ours(tiny, **vars(targets), settings={"mode": "z+c", "prompt_scale": 0.0})
    wanted = ours(tiny, latents=targets.latents, prompt_embeds=empty, settings={"mode": "z+c"})
    assert far(found, wanted) <= 1


@pytest.mark.parametrize("noise_level", [0, 300])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_unclip_draws_what_diffusers_draws(unclip, pictures, noise_level, guidance):
    from diffusers import StableUnCLIPImg2ImgPipeline
    from PIL import Image

    generator = load_generator(unclip)
    embeds = embed_images(generator, images=pictures)
    how = {"mode": "e", "guidance": guidance, "noise_level": noise_level, "scheduler": "ddim"}
    found = ours(generator, image_embeds=embeds, settings=how)
    theirs = StableUnCLIPImg2ImgPipeline.from_pretrained(unclip.checkpoint)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = scheduler_of(Reconstruct(scheduler="ddim"), generator.scheduler_config)
    empty = generator.unconditional.expand(ROWS, -1, -1)
    wanted = theirs(
        image=torch.cat(
            [
                theirs.feature_extractor(
                    images=Image.fromarray(picture), return_tensors="pt"
                ).pixel_values
                for picture in pictures
            ]
        ),
        prompt_embeds=empty,
        negative_prompt_embeds=empty,
        guidance_scale=guidance,
        noise_level=noise_level,
        num_inference_steps=4,
        generator=noise(),
        output_type="pt",
    ).images
    assert far(found, in_grey_levels(wanted)) <= 1
    others = ours(generator, image_embeds=embeds[::-1].copy(), settings=how)
    assert far(found, others) > 3


def test_unclip_starts_from_latents_too(unclip, targets, pictures):
    generator = load_generator(unclip)
    embeds = embed_images(generator, images=pictures)
    settings = {"mode": "z+e", "strength": 0.5}
    found = ours(generator, latents=targets.latents, image_embeds=embeds, settings=settings)
    moved = ours(generator, latents=-targets.latents, image_embeds=embeds, settings=settings)
    other = ours(
        generator, latents=targets.latents, image_embeds=embeds[::-1].copy(), settings=settings
    )
    assert far(found, moved) > 3
    assert far(found, other) > 0


@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_half_precision_draws_nearly_the_same(adapters, unclip, targets, pictures, dtype):
    for settings in (adapters["pooled"], unclip):
        full = load_generator(settings)
        half = load_generator(settings.model_copy(update={"dtype": dtype}))
        embeds = embed_images(full, images=pictures)
        np.testing.assert_array_equal(embeds, embed_images(half, images=pictures))
        how = {"mode": "z+e"}
        one, other = (
            ours(g, latents=targets.latents, image_embeds=embeds, settings=how)
            for g in (full, half)
        )
        assert np.abs(one.astype(int) - other).mean() < 2


def test_the_digest_knows_adapter_and_encoder(adapters, checkpoint, tmp_path):
    plain = generator_digest(Generator(checkpoint=str(checkpoint)))
    pooled, plus = (generator_digest(adapters[form]) for form in ("pooled", "plus"))
    assert len({plain, pooled, plus}) == 3
    # The same files elsewhere are the same generator.
    source = adapters["pooled"].image_adapter
    shutil.copy(source, tmp_path / "other-name.safetensors")
    shutil.copytree(f"{source.rpartition('/')[0]}/image_encoder", tmp_path / "image_encoder")
    moved = adapters["pooled"].model_copy(
        update={"image_adapter": str(tmp_path / "other-name.safetensors")}
    )
    assert generator_digest(moved) == pooled
    config = tmp_path / "image_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_act": "gelu"}))
    assert generator_digest(moved) != pooled


def test_what_does_not_fit_is_told_before_weights_are_loaded(
    adapters, checkpoint, unclip, tmp_path, tiny, targets
):
    pooled = adapters["pooled"]

    def refused(**changes):
        with pytest.raises(InputError) as caught:
            target_shapes(pooled.model_copy(update=changes), features=Features())
        return str(caught.value)

    write_image_encoder(tmp_path / "wide", projection=EMBEDDING + 1)
    assert f"reads embeddings of {EMBEDDING}" in refused(image_encoder=str(tmp_path / "wide"))
    assert "has no image encoder at" in refused(image_encoder=str(tmp_path / "nowhere"))
    assert "there is no adapter at" in refused(image_adapter=str(tmp_path / "none.safetensors"))
    (tmp_path / "damaged.safetensors").write_bytes(b"not a safetensors file")
    assert "could not be read" in refused(
        image_adapter=str(tmp_path / "damaged.safetensors"),
        image_encoder=str(tmp_path / "wide"),
    )
    from diffusers import UNet2DConditionModel
    from safetensors.torch import save_file

    unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet")
    for name, context in (("wider", 2 * WIDTH),):
        write_adapter(tmp_path / f"{name}.safetensors", unet=unet, plus=False, context=context)
    encoder = str(pooled.image_adapter.rpartition("/")[0] + "/image_encoder")
    assert f"made for a UNet of width {2 * WIDTH}" in refused(
        image_adapter=str(tmp_path / "wider.safetensors"), image_encoder=encoder
    )
    save_file({"image_proj.proj.0.weight": torch.zeros(2, 2)}, tmp_path / "face.safetensors")
    assert "no IP-Adapter of the pooled or the plus form" in refused(
        image_adapter=str(tmp_path / "face.safetensors"), image_encoder=encoder
    )
    assert "listens to no image embedding" in refused(image_adapter=None, image_encoder=encoder)
    with pytest.raises(InputError, match="without an adapter"):
        target_shapes(
            unclip.model_copy(update={"image_adapter": pooled.image_adapter}), features=Features()
        )
    with pytest.raises(InputError, match="has no image encoder"):
        ours(tiny, image_embeds=np.zeros((ROWS, EMBEDDING)), settings={"mode": "e"})
    generator = load_generator(pooled)
    with pytest.raises(InputError, match="come from another image encoder"):
        ours(generator, image_embeds=np.zeros((ROWS, 7)), settings={"mode": "e"})


def test_an_unclip_encoder_of_another_width_is_refused(tmp_path):
    write_unclip(tmp_path / "unclip", projection=EMBEDDING + 8)
    with pytest.raises(InputError, match=f"the UNet of .* was trained with {EMBEDDING}"):
        load_generator(Generator(checkpoint=str(tmp_path / "unclip"), device="cpu"))


def test_latents_of_another_size_draw_with_an_embedding(adapters, targets, pictures):
    generator = load_generator(adapters["pooled"])
    embeds = embed_images(generator, images=pictures)
    wide = np.pad(targets.latents, ((0, 0), (0, 0), (0, 0), (0, LATENT)))
    images = ours(generator, latents=wide, image_embeds=embeds, settings={"mode": "z+e"})
    assert images.shape[1:3] == (32, 64)
