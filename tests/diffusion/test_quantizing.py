"""Eight bits: what they round, and where they are refused."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from raybrain.config import Generator, InputError
from raybrain.diffusion import check_sound, generator_digest, load_generator, quantizing
from tests.diffusion.generators import drawn

installed = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="torchao is not installed: extra quantize"
)
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj"


def settings(checkpoint, kind):
    return Generator(checkpoint=str(checkpoint), device="cpu", quantize=kind)


@installed
def test_a_layer_is_off_by_the_rounding_of_its_weights_and_tokens(checkpoint, tiny):
    """A step is a 127th of the largest of an output's weights, or of a token's values."""
    layer = load_generator(settings(checkpoint, "int8")).pipeline.unet.get_submodule(LAYER)
    plain = tiny.pipeline.unet.get_submodule(LAYER)
    tokens = torch.randn((2, 5, plain.in_features), generator=torch.Generator().manual_seed(0))
    tokens[0] *= 100  # its scale is its own: the other row's steps are not coarser for it
    of_token = tokens.abs().amax(-1, keepdim=True) / 127
    of_output = plain.weight.abs().amax(1) / 127
    most = (
        of_token * plain.weight.abs().sum(1)
        + tokens.abs().sum(-1, keepdim=True) * of_output
        + plain.in_features * of_token * of_output
    )
    with torch.no_grad():
        off = (layer(tokens) - plain(tokens)).abs()
    assert (off < most).all()
    assert (off > 0).float().mean() > 0.9


@installed
def test_only_the_transformers_linear_layers_are_quantized(adapters, checkpoint, targets):
    generator = load_generator(adapters["pooled"].model_copy(update={"quantize": "int8"}))
    plain = load_generator(adapters["pooled"])
    layers = dict(plain.pipeline.unet.named_modules())
    for name, layer in generator.pipeline.unet.named_modules():
        if isinstance(layer, torch.nn.Linear):
            within = ".transformer_blocks." in name and ".processor." not in name
            assert (type(layer.weight.data) is not torch.Tensor) is within, name
        elif isinstance(getattr(layer, "weight", None), torch.nn.Parameter):
            assert torch.equal(layer.weight, layers[name].weight)
    embeds = np.random.default_rng(0).standard_normal((3, 24), np.float32)
    one, other = (
        drawn(each, latents=targets.latents, prompt_embeds=None, image_embeds=embeds, mode="z+e")
        for each in (plain, generator)
    )
    assert 0 < np.abs(one.astype(float) - other).mean() < 2


@installed
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_float8_is_refused_where_nothing_computes_in_it(checkpoint):
    with pytest.raises(InputError, match=r"capability 8\.9 .* a CPU; type generator.quantize=int8"):
        load_generator(settings(checkpoint, "float8"))


@pytest.mark.parametrize("kind", ["int8", "float8"])
def test_without_torchao_it_says_what_to_install(checkpoint, monkeypatch, kind):
    none = SimpleNamespace(util=SimpleNamespace(find_spec=lambda _: None))
    monkeypatch.setattr(quantizing, "importlib", none)
    for refused in (check_sound, load_generator):
        with pytest.raises(InputError, match=r"pip install 'raybrain\[quantize\]'") as caught:
            refused(settings(checkpoint, kind))
        assert "\n" not in str(caught.value)


def test_what_encodes_is_not_quantized(checkpoint, tiny, monkeypatch):
    none = SimpleNamespace(util=SimpleNamespace(find_spec=lambda _: None))
    monkeypatch.setattr(quantizing, "importlib", none)
    loaded = load_generator(settings(checkpoint, "int8"), draws=False)
    torch.testing.assert_close(loaded.unconditional, tiny.unconditional, atol=0, rtol=0)
    assert generator_digest(loaded.settings) == generator_digest(tiny.settings)
