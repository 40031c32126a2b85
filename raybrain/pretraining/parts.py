"""The parts of a pocket generator and the diffusers folder they are shipped in."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
    StableUnCLIPImageNormalizer,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from raybrain.config import InputError
from raybrain.diffusion.checkpoint import IMAGE_ENCODER, UNCLIP
from raybrain.diffusion.lite1 import Lite1WithProjection, describe
from raybrain.pretraining.autoencoder import new_autoencoder
from raybrain.pretraining.denoiser import new_denoiser, new_scheduler
from raybrain.pretraining.image_encoder import new_image_encoder, new_noising_scheduler
from raybrain.pretraining.settings import Pretraining
from raybrain.pretraining.text import new_text_encoder, new_tokenizer

CLASSES = "class_embedding."
"""Weights that turn an image embedding into a class embedding."""


@dataclass(frozen=True)
class Parts:
    """What Stable Diffusion consists of."""

    vae: AutoencoderKL
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    scheduler: DDIMScheduler
    image_encoder: Lite1WithProjection | None = None
    """With it the U-Net takes its embeddings."""

    def state(self) -> dict[str, Any]:
        """Return copies of all weights."""
        trained = {name: getattr(self, name) for name in ("vae", "text_encoder", "unet")}
        if self.image_encoder is not None:
            trained["projection"] = self.image_encoder.projection
        return {
            name: {k: v.detach().cpu().clone() for k, v in module.state_dict().items()}
            for name, module in trained.items()
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over the weights that `state` returned."""
        for name, weights in state.items():
            if name != "projection":
                getattr(self, name).load_state_dict(weights)
            elif self.image_encoder is not None:
                self.image_encoder.projection.load_state_dict(weights)


def new_parts(settings: Pretraining, *, captions: list[str]) -> Parts:
    """Return parts that fit each other, with the weights of ``start`` or untrained.

    Without a start the tokenizer is trained on `captions`.

    Raises
    ------
    InputError
        If ``start`` is no generator of these sizes.
    """
    torch.manual_seed(settings.seed)
    if settings.start is None:
        tokenizer = new_tokenizer(captions, settings=settings.text)
    else:
        tokenizer = CLIPTokenizer.from_pretrained(_subfolder(settings.start, "tokenizer"))
    factor = 2 ** (len(settings.autoencoder.channels) - 1)
    parts = Parts(
        vae=new_autoencoder(settings=settings.autoencoder, size=settings.images.size),
        tokenizer=tokenizer,
        text_encoder=new_text_encoder(tokenizer, settings=settings.text),
        unet=new_denoiser(
            settings=settings.denoiser,
            sample_size=settings.images.size // factor,
            latent_channels=settings.autoencoder.latent_channels,
            text_width=settings.text.width,
            components=settings.image_encoder.components if settings.image_encoder else None,
        ),
        scheduler=new_scheduler(settings.denoiser),
        image_encoder=None
        if settings.image_encoder is None
        else new_image_encoder(settings.image_encoder),
    )
    if settings.start is not None:
        _take_over(parts, settings.start)
    return parts


def _take_over(parts: Parts, start: str) -> None:
    for name in ("vae", "text_encoder", "unet"):
        module = getattr(parts, name)
        weights = type(module).from_pretrained(_subfolder(start, name)).float().state_dict()
        own = module.state_dict()
        # A start may know no image embeddings: their weights stay as they are, which is at zero.
        added = {key: own[key] for key in own.keys() - weights.keys() if key.startswith(CLASSES)}
        try:
            module.load_state_dict(weights | added)
        except RuntimeError as error:
            raise InputError(
                f"start: {name} in {start} has other sizes than these settings: give the settings "
                "it was trained with, or leave start out"
            ) from error
    fitted = Path(start) / IMAGE_ENCODER / "model.safetensors"
    if parts.image_encoder is not None and fitted.is_file():
        weights = load_file(fitted)
        projection = parts.image_encoder.projection
        if len(weights["projection.bias"]) != projection.out_features:
            raise InputError(
                f"start: the image encoder of {start} has {len(weights['projection.bias'])} "
                f"components: give the settings it was trained with, or leave start out"
            )
        projection.load_state_dict(
            {name.removeprefix("projection."): value for name, value in weights.items()}
        )


def _subfolder(start: str, name: str) -> Path:
    folder = Path(start) / name
    if not folder.is_dir():
        raise InputError(f"start: {folder} was not found: point start at a diffusers folder")
    return folder


def export(parts: Parts, folder: Path) -> None:
    """Write a diffusers folder in half precision.

    Any Stable Diffusion pipeline loads it, or with an image encoder raybrain and diffusers'
    ``StableUnCLIPImg2ImgPipeline`` once it is given the encoder.
    """
    for module in (parts.vae, parts.text_encoder, parts.unet):
        module.eval()
    StableDiffusionPipeline(
        vae=_half(parts.vae),
        text_encoder=_half(parts.text_encoder),
        tokenizer=parts.tokenizer,
        unet=_half(parts.unet),
        scheduler=parts.scheduler,
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)
    if parts.image_encoder is not None:
        _export_image_parts(parts.image_encoder, folder)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors leaves them to their owner alone


def _export_image_parts(encoder: Lite1WithProjection, folder: Path) -> None:
    inside = folder / IMAGE_ENCODER
    inside.mkdir(exist_ok=True)
    (inside / "config.json").write_text(json.dumps(describe(encoder), indent=2) + "\n")
    # In full precision: the weights are few, and their products with features are large.
    fitted = {f"projection.{k}": v for k, v in encoder.projection.state_dict().items()}
    save_file(fitted, inside / "model.safetensors")
    # Embeddings are white already: the normaliser's mean is 0 and its deviation 1.
    components = encoder.projection.out_features
    StableUnCLIPImageNormalizer(components).save_pretrained(folder / "image_normalizer")
    new_noising_scheduler().save_pretrained(folder / "image_noising_scheduler")
    index = folder / "model_index.json"
    described = json.loads(index.read_text())
    for unused in ("safety_checker", "requires_safety_checker"):
        described.pop(unused, None)
    described |= {
        "_class_name": UNCLIP,
        "feature_extractor": [None, None],
        "image_encoder": [type(encoder).__module__, type(encoder).__name__],
        "image_normalizer": ["stable_diffusion", "StableUnCLIPImageNormalizer"],
        "image_noising_scheduler": ["diffusers", "DDPMScheduler"],
    }
    index.write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")


def _half(module: Any) -> Any:
    import copy

    return copy.deepcopy(module).to(torch.float16)
