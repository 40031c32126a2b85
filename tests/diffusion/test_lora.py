"""LoRA files in the published layouts: what they add to the weights, and which are refused."""

from __future__ import annotations

import importlib.util
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from raybrain.config import Generator, InputError
from raybrain.diffusion import check_sound, generator_digest, load_generator, lora, lora_digest
from tests.diffusion.generators import drawn, far

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

RANK = 2
LAYERS = (
    "conv_in",
    "time_embedding.linear_1",
    "down_blocks.0.resnets.0.conv1",
    "down_blocks.0.resnets.0.time_emb_proj",
    "down_blocks.0.attentions.0.proj_in",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0",
    "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_v",
    "up_blocks.1.resnets.1.conv_shortcut",
    "up_blocks.1.attentions.0.proj_out",
)
"""As those of LCM and Hyper-SD change, linear and convolutional."""
ATTENTION = tuple(layer for layer in LAYERS if ".attn" in layer)


def of_kohya(layer, side):
    return f"lora_unet_{layer.replace('.', '_')}.lora_{ {'A': 'down', 'B': 'up'}[side] }.weight"


def of_peft(layer, side):
    return f"unet.{layer}.lora_{side}.weight"


def of_diffusers(layer, side):
    return f"unet.{layer}.lora.{ {'A': 'down', 'B': 'up'}[side] }.weight"


def of_older_diffusers(layer, side):
    within, _, projection = layer.removesuffix(".0").rpartition(".")
    return f"unet.{within}.processor.{projection}_lora.{ {'A': 'down', 'B': 'up'}[side] }.weight"


def matrices(shape, *, seed):
    """Return A and B of a layer whose weights have a shape."""
    source = torch.Generator().manual_seed(seed)
    rows, *inner = shape
    a = 0.2 * torch.randn((RANK, *inner), generator=source)
    return a, 0.2 * torch.randn((rows, RANK, *([1] * (len(inner) - 1))), generator=source)


def write(path, checkpoint, *, name=of_kohya, layers=LAYERS, alpha=None, **others):
    """Write a LoRA and return the change of every layer's weights."""
    weights = load_file(next((checkpoint / "unet").glob("*.safetensors")))
    state, changes = dict(others), {}
    for number, layer in enumerate(layers):
        shape = weights[f"{layer}.weight"].shape
        a, b = matrices(shape, seed=number)
        state |= {name(layer, "A"): a, name(layer, "B"): b}
        if alpha is not None:
            state[f"lora_unet_{layer.replace('.', '_')}.alpha"] = torch.tensor(float(alpha))
        scale = 1.0 if alpha is None else alpha / RANK
        changes[f"{layer}.weight"] = scale * (b.flatten(1) @ a.flatten(1)).reshape(shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)
    return changes


@pytest.mark.parametrize(
    ("name", "layers", "alpha"),
    [
        (of_kohya, LAYERS, None),
        (of_kohya, LAYERS, 1.0),
        (of_kohya, LAYERS, 8.0),
        (of_peft, LAYERS, None),
        (of_diffusers, LAYERS, None),
        (of_older_diffusers, ATTENTION, None),
    ],
)
def test_every_layer_becomes_its_weights_and_the_product(checkpoint, tmp_path, name, layers, alpha):
    """W + alpha / rank B A, and nothing else changes."""
    path = tmp_path / "few.safetensors"
    changes = write(path, checkpoint, name=name, layers=layers, alpha=alpha)
    settings = Generator(checkpoint=str(checkpoint), device="cpu", lora=str(path))
    check_sound(settings)
    before = load_file(next((checkpoint / "unet").glob("*.safetensors")))
    unet = load_generator(settings).pipeline.unet
    after = unet.state_dict()
    assert after.keys() == before.keys()
    for key, weight in before.items():
        expected = weight + changes.get(key, 0)
        torch.testing.assert_close(after[key], expected, atol=1e-6, rtol=1e-6)
    assert not any(parameter.requires_grad for parameter in unet.parameters())


def test_it_changes_what_is_drawn_and_no_target(checkpoint, tiny, targets, tmp_path):
    path = tmp_path / "few.safetensors"
    write(path, checkpoint)
    plain = Generator(checkpoint=str(checkpoint), device="cpu")
    settings = plain.model_copy(update={"lora": str(path)})
    generator = load_generator(settings)
    how = {"scheduler": "lcm", "steps": 4, "guidance": 1.0}
    assert far(drawn(generator, **vars(targets), **how), drawn(tiny, **vars(targets), **how)) > 2
    torch.testing.assert_close(generator.unconditional, tiny.unconditional, atol=0, rtol=0)
    assert generator_digest(settings) == generator_digest(plain)
    first = lora_digest(settings)
    write(path, checkpoint, alpha=1.0)
    assert len({lora_digest(plain), first, lora_digest(settings)}) == 3


def test_it_goes_together_with_an_adapter(adapters, checkpoint, targets, tmp_path):
    path = tmp_path / "few.safetensors"
    changes = write(path, checkpoint)
    generator = load_generator(adapters["pooled"].model_copy(update={"lora": str(path)}))
    plain = load_generator(adapters["pooled"])
    before, after = (one.pipeline.unet.state_dict() for one in (plain, generator))
    assert after.keys() == before.keys()
    for key, weight in before.items():
        expected = weight + changes.get(key, 0)
        torch.testing.assert_close(after[key], expected, atol=1e-6, rtol=1e-6)
    embeds = np.random.default_rng(0).standard_normal((3, 24), np.float32)
    one, other = (
        drawn(each, latents=targets.latents, prompt_embeds=None, image_embeds=embeds, mode="z+e")
        for each in (plain, generator)
    )
    assert far(one, other) > 2


def test_a_bare_name_is_looked_for_in_the_checkpoints_folder(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    name = "pytorch_lora_weights.safetensors"
    changes = write(copy / name, checkpoint)
    before = load_generator(Generator(checkpoint=str(copy), device="cpu"))
    after = load_generator(Generator(checkpoint=str(copy), device="cpu", lora=name))
    key = "conv_in.weight"
    one, other = (each.pipeline.unet.state_dict()[key] for each in (before, after))
    torch.testing.assert_close(other - one, changes[key], atol=1e-6, rtol=1e-6)


def test_what_is_only_loaded_to_encode_needs_none(checkpoint, tmp_path):
    path = tmp_path / "few.safetensors"
    write(path, checkpoint)
    settings = Generator(checkpoint=str(checkpoint), device="cpu", lora=str(path))
    assert load_generator(settings, draws=False).pipeline.unet is None


def damaged(path, checkpoint):
    path.write_bytes(b"no such thing")


def empty(path, checkpoint):
    save_file({}, path)


def of_text_alone(path, checkpoint):
    write(
        path, checkpoint, layers=(), **{"lora_te_text_model_x.lora_down.weight": torch.ones(2, 2)}
    )


def of_text_too(path, checkpoint):
    write(path, checkpoint, name=of_peft, **{"text_encoder.x.lora_A.weight": torch.ones(2, 2)})


def of_something_else(path, checkpoint):
    save_file({"image_proj.proj.weight": torch.ones(2, 2)}, path)


def of_another_layer(path, checkpoint):
    pair = {
        f"lora_unet_up_blocks_9_x.lora_{side}.weight": torch.ones(2, 2) for side in ("down", "up")
    }
    write(path, checkpoint, **pair)


def of_another_width(path, checkpoint):
    write(
        path,
        checkpoint,
        **{
            of_kohya("conv_out", "A"): torch.ones(2, 320, 3, 3),
            of_kohya("conv_out", "B"): torch.ones(4, 2, 1, 1),
        },
    )


def of_half(path, checkpoint):
    write(path, checkpoint, **{of_kohya("conv_out", "A"): torch.ones(2, 16, 3, 3)})


FAULTS = [
    (lambda path, checkpoint: None, "there is no file"),
    (damaged, "no .safetensors file that can be read"),
    (empty, "holds no tensors"),
    (of_text_alone, "changes the text encoder"),
    (of_text_too, "changes the text encoder"),
    (of_something_else, "is no LoRA of a UNet in a published layout"),
    (of_another_layer, "'up_blocks_9_x' .which that UNet does not have"),
    (of_another_width, "'conv_out' .of 4 x 16 x 3 x 3. are .2, 320, 3, 3. and"),
    (of_half, "are .2, 16, 3, 3. and None"),
]


@pytest.mark.parametrize(("made", "sentence"), FAULTS)
def test_what_does_not_fit_is_one_sentence_before_anything_is_loaded(
    checkpoint, tmp_path, made, sentence
):
    path = tmp_path / "few.safetensors"
    made(path, checkpoint)
    settings = Generator(checkpoint=str(checkpoint), device="cpu", lora=str(path))
    for refused in (check_sound, load_generator):
        with pytest.raises(InputError, match=sentence) as caught:
            refused(settings)
        assert "\n" not in str(caught.value)


def test_without_peft_it_says_what_to_install(checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "few.safetensors"
    write(path, checkpoint)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        lora,
        "importlib",
        SimpleNamespace(
            util=SimpleNamespace(find_spec=lambda name: None if name == "peft" else found(name))
        ),
    )
    settings = Generator(checkpoint=str(checkpoint), device="cpu", lora=str(path))
    with pytest.raises(InputError, match=r"pip install 'raybrain\[lora\]'"):
        check_sound(settings)
