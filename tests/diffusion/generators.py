"""A Stable Diffusion small enough for tests, and drawing with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from raybrain.config import Reconstruct
from raybrain.diffusion import draw

TOKENS, WIDTH, LATENT, PIXELS = 12, 16, 8, 32


def write_tiny_generator(folder: Path) -> None:
    """Write a generator of 32-pixel images and 12 tokens of width 16."""
    write_generator(
        folder,
        text={
            "vocab_size": 200,
            "hidden_size": WIDTH,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": TOKENS,
        },
        vae={
            "down_block_types": ("DownEncoderBlock2D",) * 3,
            "up_block_types": ("UpDecoderBlock2D",) * 3,
            "block_out_channels": (8, 16, 16),
            "norm_num_groups": 4,
            "sample_size": PIXELS,
            "scaling_factor": 0.9,
        },
        unet={
            "sample_size": LATENT,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "cross_attention_dim": WIDTH,
            "attention_head_dim": 8,
        },
    )


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
