"""A Stable Diffusion small enough for tests, and drawing with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from raybrain.config import Reconstruct
from raybrain.diffusion import draw

TOKENS, WIDTH, LATENT, PIXELS = 12, 16, 8, 32


TINY: dict[str, dict[str, Any]] = {
    "text": {
        "vocab_size": 200,
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": TOKENS,
    },
    "vae": {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (8, 16, 16),
        "norm_num_groups": 4,
        "sample_size": PIXELS,
        "scaling_factor": 0.9,
    },
    "unet": {
        "sample_size": LATENT,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 8,
    },
}


V1_4: dict[str, dict[str, Any]] = {
    "text": {
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
    },
    "vae": {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "sample_size": 512,
        "scaling_factor": 0.18215,
    },
    "unet": {
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
}
"""As the configs of Stable Diffusion v1.4 say."""


def write_tiny_generator(folder: Path) -> None:
    """Write a generator of 32-pixel images and 12 tokens of width 16."""
    write_generator(folder, **TINY)


def write_generator(
    folder: Path, *, text: dict[str, Any], vae: dict[str, Any], unet: dict[str, Any]
) -> None:
    """Write a Stable Diffusion folder as diffusers does, with random weights."""
    import torch
    from diffusers import (
        AutoencoderKL,
        PNDMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    letters = [chr(code) for code in range(33, 127)]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    start, end = len(vocabulary), len(vocabulary) + 1
    vocabulary |= {"<|startoftext|>": start, "<|endoftext|>": end}
    StableDiffusionPipeline(
        vae=AutoencoderKL(**vae),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(**text, bos_token_id=start, eos_token_id=end, pad_token_id=end)
        ),
        tokenizer=CLIPTokenizer(
            vocab=vocabulary, merges=[], model_max_length=text["max_position_embeddings"]
        ),
        unet=UNet2DConditionModel(**unet),
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


def drawn(
    generator,
    *,
    rows=(0, 1, 2),
    samples=None,
    seed=5,
    latents,
    prompt_embeds,
    image_embeds=None,
    image_features=None,
    **settings,
):
    rows = list(rows)
    return draw(
        generator,
        latents=None if latents is None else latents[rows],
        prompt_embeds=None if prompt_embeds is None else prompt_embeds[rows],
        image_embeds=None if image_embeds is None else image_embeds[rows],
        image_features=None if image_features is None else image_features.rows(rows),
        image_ids=[100 + row for row in rows],
        samples=samples or [0] * len(rows),
        seed=seed,
        settings=Reconstruct(**{"steps": 4, "strength": 0.5, "guidance": 3.0} | settings),
    )


def far(one, other):
    """Return the largest difference between images in grey levels."""
    return np.abs(one.astype(int) - other.astype(int)).max()


EMBEDDING, SEEN, PATCH, HIDDEN = 24, 16, 8, 32
"""Width of a pooled embedding, pixels and patch of the tiny image encoder, and its hidden width."""


def write_image_encoder(folder: Path, *, projection: int = EMBEDDING) -> None:
    """Write a CLIP vision model of 16 pixels with its processor, random weights."""
    import torch
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(1)
    config = CLIPVisionConfig(
        hidden_size=HIDDEN,
        intermediate_size=48,
        projection_dim=projection,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SEEN,
        patch_size=PATCH,
    )
    network = CLIPVisionModelWithProjection(config)
    for weight in network.parameters():
        if weight.ndim > 1:  # as drawn, they are so small that all pictures look alike
            weight.data *= 10
    network.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": SEEN}, crop_size=SEEN).save_pretrained(folder)


def write_adapter(path: Path, *, unet: Any, plus: bool, context: int = WIDTH) -> None:
    """Write an IP-Adapter for a UNet in the layout of its authors' files, random weights."""
    import torch
    from diffusers.models.embeddings import ImageProjection, IPAdapterPlusImageProjection
    from safetensors.torch import save_file

    torch.manual_seed(2)
    state = {}
    if plus:
        state |= _plus_projection(
            IPAdapterPlusImageProjection(
                embed_dims=HIDDEN, output_dims=context, hidden_dims=32, depth=4, dim_head=64,
                heads=1, num_queries=5,
            )
        )  # fmt: skip
    else:
        projection = ImageProjection(
            image_embed_dim=EMBEDDING, cross_attention_dim=context, num_image_text_embeds=4
        )
        # Not so small that all pictures give nearly the same tokens.
        projection.image_embeds.weight.data *= 100
        for name, value in projection.state_dict().items():
            state[f"image_proj.{name.replace('image_embeds.', 'proj.')}"] = value
    crossing = [name for name in unet.attn_processors if not name.endswith("attn1.processor")]
    for number, name in enumerate(crossing):
        hidden = unet.get_submodule(name.removesuffix(".processor")).to_q.in_features
        for part in ("k", "v"):
            key = f"ip_adapter.{2 * number + 1}.to_{part}_ip.weight"
            state[key] = torch.randn(hidden, context)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().contiguous() for name, value in state.items()}, path)


def _plus_projection(module: Any) -> dict[str, Any]:
    """Return a resampler's weights under the names of the authors' files."""
    import torch

    state = {}
    for name, value in module.state_dict().items():
        if not name.startswith("layers."):
            state[f"image_proj.{name}"] = value
    for number, layer in enumerate(module.layers):
        own = f"image_proj.layers.{number}"
        attention, feed_forward = layer.attn, layer.ff
        state |= {
            f"{own}.0.norm1.weight": layer.ln0.weight,
            f"{own}.0.norm1.bias": layer.ln0.bias,
            f"{own}.0.norm2.weight": layer.ln1.weight,
            f"{own}.0.norm2.bias": layer.ln1.bias,
            f"{own}.0.to_q.weight": attention.to_q.weight,
            f"{own}.0.to_kv.weight": torch.cat([attention.to_k.weight, attention.to_v.weight]),
            f"{own}.0.to_out.weight": attention.to_out[0].weight,
            f"{own}.1.0.weight": feed_forward[0].weight,
            f"{own}.1.0.bias": feed_forward[0].bias,
            f"{own}.1.1.weight": feed_forward[1].net[0].proj.weight,
            f"{own}.1.3.weight": feed_forward[1].net[2].weight,
        }
    return state


def write_unclip(folder: Path, *, projection: int = EMBEDDING) -> None:
    """Write a Stable unCLIP folder as diffusers does, with random weights and pure final noise."""
    import torch
    from diffusers import (
        DDIMScheduler,
        DDPMScheduler,
        StableDiffusionPipeline,
        StableUnCLIPImg2ImgPipeline,
        UNet2DConditionModel,
    )
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
        StableUnCLIPImageNormalizer,
    )
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    plain, encoder = folder.with_name("plain"), folder.with_name("encoder")
    write_tiny_generator(plain)
    write_image_encoder(encoder, projection=projection)
    whole = StableDiffusionPipeline.from_pretrained(plain)
    torch.manual_seed(3)
    config = dict(whole.unet.config)
    config |= {
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 2 * EMBEDDING,
    }
    normalizer = StableUnCLIPImageNormalizer(embedding_dim=projection)
    normalizer.mean.data = torch.randn(1, projection)
    normalizer.std.data = 0.5 + torch.rand(1, projection)
    StableUnCLIPImg2ImgPipeline(
        feature_extractor=CLIPImageProcessor.from_pretrained(encoder),
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(encoder),
        image_normalizer=normalizer,
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=whole.tokenizer,
        text_encoder=whole.text_encoder,
        unet=UNet2DConditionModel.from_config(config),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            clip_sample=False,
        ),
        vae=whole.vae,
    ).save_pretrained(folder)
