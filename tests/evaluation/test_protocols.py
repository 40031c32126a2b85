import dataclasses
import hashlib
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from torch import nn

from raybrain.config import Evaluate, InputError
from raybrain.evaluation import (
    MEAN_IMAGE,
    PROTOCOLS,
    SYSTEM,
    mean_image,
    protocol_named,
    score_rows,
    weights_folder,
    weights_of,
)
from raybrain.evaluation.architectures import build, clip_vision
from raybrain.evaluation.declarations import WeightsFile
from raybrain.evaluation.field_protocols import CLIP_FILE, MINDEYE2_V1
from raybrain.evaluation.networks import extract_features
from raybrain.evaluation.weights import locate
from tests.evaluation.test_scoring import pictures


def test_the_settings_offer_exactly_the_protocols_there_are():
    assert set(get_args(get_type_hints(Evaluate)["protocol"])) == set(PROTOCOLS)


def test_an_unknown_protocol_names_those_there_are():
    with pytest.raises(InputError, match="lite0-v1"):
        protocol_named("mindeye3")


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=list(PROTOCOLS))
def test_every_metric_reads_a_layer_that_exists(protocol):
    layers = {layer.name for network in protocol.networks for layer in network.layers}
    for metric in protocol.metrics:
        assert metric.layer is None or metric.layer in layers
        assert max(len(metric.label), len(metric.group)) <= 8
    assert set(protocol.ranking) <= {metric.name for metric in protocol.metrics}


def test_the_field_reads_efficientnet_b1_of_the_second_version():
    # Trap: torchvision's weights=True means V1 (bac287d4); published numbers use V2 (c27df63c).
    network = next(n for n in MINDEYE2_V1.networks if n.architecture == "efficientnet_b1")
    assert network.weights[0].sha256 == "c27df63c"


def test_missing_weights_are_all_named_with_where_to_put_them(tmp_path):
    with pytest.raises(InputError) as found:
        weights_of(MINDEYE2_V1, folder=tmp_path)
    message = str(found.value)
    for name in ("alexnet-owt-7be5be79.pth", "ViT-L-14.pt", "swav_800ep_pretrain.pth.tar"):
        assert name in message
    assert str(tmp_path) in message
    assert "evaluate.weights=FOLDER" in message


def test_a_protocol_without_its_weights_scores_nothing(tmp_path):
    seen = pictures(images=4, seed=0)
    rows = {SYSTEM: seen[:, None], MEAN_IMAGE: mean_image(seen, images=4)}
    with pytest.raises(InputError, match="mindeye2-v1 needs weights"):
        score_rows(seen, rows, protocol=MINDEYE2_V1, weights=tmp_path)


def test_another_file_of_the_same_name_is_refused(tmp_path):
    (tmp_path / "net.pth").write_bytes(b"something")
    digest = hashlib.sha256(b"something").hexdigest()
    file = WeightsFile("net.pth", digest[:8], "somewhere")
    assert locate(file, folder=tmp_path) == tmp_path / "net.pth"
    (tmp_path / "net.pth").write_bytes(b"something else")
    with pytest.raises(InputError, match="get it again from somewhere"):
        locate(file, folder=tmp_path)


def test_weights_are_looked_for_where_torch_keeps_downloads(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert weights_folder() == tmp_path / "hub" / "checkpoints"
    assert weights_folder(str(tmp_path)) == tmp_path


def saved(state, path):
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("architecture", "name", "layers"),
    [
        ("alexnet", "alexnet", {"features.4": 192 * 31 * 31, "features.11": 256 * 15 * 15}),
        ("inception_v3", "inception_v3", {"avgpool": 2048}),
    ],
)
def test_networks_are_torchvisions_with_the_files_weights(tmp_path, architecture, name, layers):
    from torchvision import models

    torch.manual_seed(0)
    settings = {"init_weights": False} if name == "inception_v3" else {}
    reference = getattr(models, name)(weights=None, **settings).eval()
    path = saved(reference.state_dict(), tmp_path / "weights.pth")
    model = build(architecture, weights=[path])
    images = torch.rand(2, 3, 256, 256)
    kept = {}
    for layer in layers:
        model.get_submodule(layer).register_forward_hook(
            lambda _m, _i, output, layer=layer: kept.update({layer: output.flatten(1)})
        )
    if name == "inception_v3":
        # Trap: without transform_input the features come from images of the wrong range.
        reference.transform_input = True
    with torch.inference_mode():
        np.testing.assert_allclose(model(images), reference(images), atol=1e-4)
    assert {layer: values.shape[1] for layer, values in kept.items()} == layers
    assert not any(p.requires_grad for p in model.parameters())


def test_swav_reads_a_checkpoint_with_another_head_and_prefixes(tmp_path):
    from torchvision import models

    torch.manual_seed(0)
    reference = models.resnet50(weights=None).eval()
    state = {f"module.{k}": v for k, v in reference.state_dict().items() if not k.startswith("fc.")}
    state["module.prototypes.weight"] = torch.zeros(3, 128)
    model = build("resnet50", weights=[saved(state, tmp_path / "swav.pth.tar")])
    images = torch.rand(1, 3, 64, 64)
    reference.fc = model.fc = nn.Identity()
    with torch.inference_mode():
        np.testing.assert_allclose(model(images), reference(images), atol=1e-5)
    del state["module.layer1.0.conv1.weight"]
    with pytest.raises(ValueError, match="no ResNet-50 of SwAV"):
        build("resnet50", weights=[saved(state, tmp_path / "other.pth.tar")])


def test_clip_embeds_images_as_transformers_does():
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    reference = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=2,
            image_size=28, patch_size=14, projection_dim=32,
        )
    ).eval()  # fmt: skip
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.1)
    theirs = reference.state_dict()
    tower = "vision_model."
    state = {
        "visual.class_embedding": theirs[f"{tower}embeddings.class_embedding"],
        "visual.positional_embedding": theirs[f"{tower}embeddings.position_embedding.weight"],
        "visual.conv1.weight": theirs[f"{tower}embeddings.patch_embedding.weight"],
        "visual.proj": theirs["visual_projection.weight"].T,
        "text_projection": torch.zeros(1),
    }
    for mine, name in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")):
        for kind in ("weight", "bias"):
            state[f"visual.{mine}.{kind}"] = theirs[f"{tower}{name}.{kind}"]
    for k in range(2):
        block, layer = f"visual.transformer.resblocks.{k}.", f"{tower}encoder.layers.{k}."
        for kind in ("weight", "bias"):
            state[f"{block}attn.in_proj_{kind}"] = torch.cat(
                [theirs[f"{layer}self_attn.{p}_proj.{kind}"] for p in "qkv"]
            )
            for mine, name in {
                "attn.out_proj": "self_attn.out_proj",
                "ln_1": "layer_norm1",
                "ln_2": "layer_norm2",
                "mlp.c_fc": "mlp.fc1",
                "mlp.c_proj": "mlp.fc2",
            }.items():
                state[f"{block}{mine}.{kind}"] = theirs[f"{layer}{name}.{kind}"]
    model = clip_vision(state).eval()
    images = torch.randn(3, 3, 28, 28)
    with torch.inference_mode():
        np.testing.assert_allclose(
            model(images), reference(pixel_values=images).image_embeds, atol=1e-4
        )


def made_lpips(tmp_path):
    from torchvision import models

    torch.manual_seed(0)
    alexnet = models.alexnet(weights=None)
    linear = {
        f"lin{k}.model.1.weight": torch.rand(1, channels, 1, 1)
        for k, channels in enumerate((64, 192, 384, 256, 256))
    }
    paths = [saved(alexnet.state_dict(), tmp_path / "a.pth"), saved(linear, tmp_path / "l.pth")]
    return build("lpips-alexnet", weights=paths), alexnet.eval(), linear


def test_lpips_is_the_weighted_squared_difference_of_unit_features(tmp_path):
    model, alexnet, linear = made_lpips(tmp_path)
    a, b = torch.randn(2, 1, 3, 96, 96)
    wanted, x, y = 0.0, a, b
    stages = [(0, 2), (2, 5), (5, 8), (8, 10), (10, 12)]  # each ends after a rectifier
    with torch.no_grad():
        for k, (start, end) in enumerate(stages):
            x, y = (alexnet.features[start:end](v) for v in (x, y))
            for i in range(x.shape[2]):
                for j in range(x.shape[3]):
                    u, v = x[0, :, i, j], y[0, :, i, j]
                    u, v = u / (u.norm() + 1e-10), v / (v.norm() + 1e-10)
                    weight = linear[f"lin{k}.model.1.weight"].flatten()
                    wanted += float((weight * (u - v) ** 2).sum()) / (x.shape[2] * x.shape[3])
    with torch.inference_mode():
        found = model.distance(model(a), model(b))
        assert float(found[0]) == pytest.approx(wanted, rel=1e-4)
        assert float(model.distance(model(a), model(a))[0]) == 0.0


@pytest.fixture
def shrunk(tmp_path):
    """Return a function that makes a protocol small, with weights drawn at random."""
    from torchvision import models

    def shrink(protocol, *, architectures):
        networks = []
        for network in protocol.networks:
            name = architectures.get(network.name)
            if name is None:
                continue
            files = []
            for file in network.weights:
                torch.manual_seed(0)
                path = tmp_path / file.name
                if file.name.startswith("alexnet"):
                    torch.save(models.alexnet(weights=None).state_dict(), path)
                elif file.name == "alex.pth":
                    channels = (64, 192, 384, 256, 256)
                    state = {
                        f"lin{k}.model.1.weight": torch.rand(1, count, 1, 1)
                        for k, count in enumerate(channels)
                    }
                    torch.save(state, path)
                files.append(dataclasses.replace(file, sha256=""))
            networks.append(dataclasses.replace(network, size=64, weights=tuple(files)))
        layers = {layer.name for network in networks for layer in network.layers}
        lpips = any(network.architecture == "lpips-alexnet" for network in networks)
        metrics = tuple(
            m for m in protocol.metrics
            if m.layer in layers or m.kind in ("pixcorr", "ssim") or (m.kind == "lpips" and lpips)
        )  # fmt: skip
        return dataclasses.replace(
            protocol,
            canvas=64,
            pixels=64,
            networks=tuple(networks),
            metrics=metrics,
            ranking=(metrics[-1].name,),
        )

    return shrink


def test_takagi_averages_correlations_over_samples_among_reconstructions(shrunk, tmp_path):
    protocol = shrunk(PROTOCOLS["takagi-v1"], architectures={"alexnet": "alexnet"})
    seen = pictures(images=6, seed=0)
    rng = np.random.default_rng(1)
    noisy = np.clip(seen[:, None] + 60 * rng.normal(size=(6, 3, *seen.shape[1:])), 0, 255)
    drawn = noisy.astype(np.uint8)
    found = score_rows(
        seen, {SYSTEM: drawn}, protocol=protocol, weights=tmp_path,
        bootstrap_resamples=50, permutations=50,
    )  # fmt: skip
    features = lambda images: extract_features(images, protocol=protocol, weights=tmp_path)  # noqa: E731
    true = features(seen)["alexnet.early"]
    samples = [features(drawn[:, k])["alexnet.early"] for k in range(3)]
    r = np.mean([np.corrcoef(true, s)[:6, 6:] for s in samples], axis=0)
    wanted = [np.mean([r[j, j] > r[j, k] for k in range(6) if k != j]) for j in range(6)]
    assert found.cells[SYSTEM, "alexnet_early"].shape == (1, 6)
    np.testing.assert_allclose(found.cells[SYSTEM, "alexnet_early"][0], wanted)


def test_cs292f_compares_pair_by_pair_and_shuffles(shrunk, tmp_path):
    protocol = shrunk(PROTOCOLS["cs292f-v1"], architectures={"lpips": "lpips-alexnet"})
    seen = pictures(images=5, seed=0)
    rows = {SYSTEM: seen[:, None], MEAN_IMAGE: mean_image(seen, images=5)}
    found = score_rows(
        seen, rows, protocol=protocol, weights=tmp_path, bootstrap_resamples=50, permutations=50
    )
    assert found.score(row=SYSTEM, metric="lpips").value == pytest.approx(0.0, abs=1e-6)
    assert found.score(row="shuffled brain", metric="lpips").value > 0.01
    assert found.score(row=SYSTEM, metric="ssim").value == pytest.approx(1.0)
    assert found.difference(metric="lpips", better=SYSTEM, than="shuffled brain").low > 0
    assert set(found.weights) == {"alexnet-owt-7be5be79.pth", "alex.pth"}


def test_the_declared_clip_is_openais_large_one():
    assert CLIP_FILE.name == "ViT-L-14.pt"
    assert CLIP_FILE.sha256 in CLIP_FILE.source
