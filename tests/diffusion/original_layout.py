"""The names that the original Stable Diffusion repository gives to the weights of a pipeline."""

from __future__ import annotations

import re
from typing import Any


def original_weights(pipeline: Any) -> dict[str, Any]:
    """Return the weights of a pipeline as one state dict in the original layout."""
    named = {}
    for name, tensor in pipeline.unet.state_dict().items():
        named[f"model.diffusion_model.{_unet_name(name, pipeline.unet)}"] = tensor
    for name, tensor in pipeline.vae.state_dict().items():
        original = _vae_name(name, levels=len(pipeline.vae.config.block_out_channels))
        # Attention was written as 1 x 1 convolutions.
        projection = ".attn_1." in original and "norm" not in original and tensor.ndim == 2
        named[f"first_stage_model.{original}"] = tensor[..., None, None] if projection else tensor
    for name, tensor in pipeline.text_encoder.state_dict().items():
        inside = name.removeprefix("text_model.")
        named[f"cond_stage_model.transformer.text_model.{inside}"] = tensor
    # contiguous: the loader may have put them in another memory format
    return {name: tensor.clone().contiguous() for name, tensor in named.items()}


def _unet_name(name: str, unet: Any) -> str:
    per_block = unet.config.layers_per_block + 1
    fixed = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }
    for prefix, original in fixed.items():
        if name.startswith(f"{prefix}."):
            return _resnet_name(name.replace(prefix, original, 1))
    side, block, kind, layer, rest = re.match(
        r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name
    ).groups()
    block, layer = int(block), int(layer)
    if side == "down":
        index = 1 + block * per_block + layer
        if kind == "downsamplers":
            return f"input_blocks.{(block + 1) * per_block}.0.{rest.replace('conv', 'op')}"
        return _resnet_name(f"input_blocks.{index}.{'0' if kind == 'resnets' else '1'}.{rest}")
    if kind == "upsamplers":
        attends = hasattr(unet.up_blocks[block], "attentions")
        return f"output_blocks.{(block + 1) * per_block - 1}.{2 if attends else 1}.{rest}"
    index = block * per_block + layer
    return _resnet_name(f"output_blocks.{index}.{'0' if kind == 'resnets' else '1'}.{rest}")


def _resnet_name(name: str) -> str:
    if "transformer_blocks" in name:
        return name
    for own, original in {
        ".norm1.": ".in_layers.0.",
        ".conv1.": ".in_layers.2.",
        ".norm2.": ".out_layers.0.",
        ".conv2.": ".out_layers.3.",
        ".time_emb_proj.": ".emb_layers.1.",
        ".conv_shortcut.": ".skip_connection.",
    }.items():
        name = name.replace(own, original)
    return name


def _vae_name(name: str, *, levels: int) -> str:
    name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(
        r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", name
    )
    name = re.sub(
        r"up_blocks\.(\d+)\.upsamplers\.0",
        lambda m: f"up.{levels - 1 - int(m[1])}.upsample",
        name,
    )
    name = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    for own, original in {
        "mid_block.attentions.0": "mid.attn_1",
        "group_norm": "norm",
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
        "to_out.0": "proj_out",
        "conv_shortcut": "nin_shortcut",
        "conv_norm_out": "norm_out",
    }.items():
        name = name.replace(own, original)
    return name
