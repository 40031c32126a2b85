"""Stable Diffusion both ways: stimuli to targets, predictions to images.

Targets and images come from the same autoencoder, scaling factor and text encoder, so both live
here. Importing this package loads neither torch nor diffusers.
"""

from raybrain.diffusion.checkpoint import find_checkpoint, generator_digest
from raybrain.diffusion.compiling import pays
from raybrain.diffusion.drawing import (
    Drawing,
    DrawingUnit,
    DrawingWorker,
    draw,
    noise_seed,
)
from raybrain.diffusion.generator import (
    StableDiffusion,
    TargetShapes,
    drawn_pixels,
    load_generator,
    target_shapes,
)
from raybrain.diffusion.guidance_interval import guided_steps
from raybrain.diffusion.image_layers import LayerTargets, Spread
from raybrain.diffusion.lora import lora_digest
from raybrain.diffusion.published import CHECKPOINTS, wanted_files
from raybrain.diffusion.schedulers import check_steps
from raybrain.diffusion.soundness import check_sound
from raybrain.diffusion.targets import (
    complete_prompt,
    decode_latents,
    embed_images,
    encode_captions,
    encode_images,
    see_images,
)

__all__ = [
    "CHECKPOINTS",
    "Drawing",
    "DrawingUnit",
    "DrawingWorker",
    "LayerTargets",
    "Spread",
    "StableDiffusion",
    "TargetShapes",
    "check_sound",
    "check_steps",
    "complete_prompt",
    "decode_latents",
    "draw",
    "drawn_pixels",
    "embed_images",
    "encode_captions",
    "encode_images",
    "find_checkpoint",
    "generator_digest",
    "guided_steps",
    "load_generator",
    "lora_digest",
    "noise_seed",
    "pays",
    "see_images",
    "target_shapes",
    "wanted_files",
]
