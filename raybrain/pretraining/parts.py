"""The parts of a pocket generator and the diffusers folder they are shipped in."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from raybrain.config import InputError
from raybrain.pretraining.autoencoder import new_autoencoder
from raybrain.pretraining.denoiser import new_denoiser, new_scheduler
from raybrain.pretraining.settings import Pretraining
from raybrain.pretraining.text import new_text_encoder, new_tokenizer


@dataclass(frozen=True)
class Parts:
    """What Stable Diffusion consists of."""

    vae: AutoencoderKL
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    scheduler: DDIMScheduler

    def state(self) -> dict[str, Any]:
        """Return copies of all weights."""
        return {
            name: {k: v.detach().cpu().clone() for k, v in getattr(self, name).state_dict().items()}
            for name in ("vae", "text_encoder", "unet")
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over the weights that `state` returned."""
        for name, weights in state.items():
            getattr(self, name).load_state_dict(weights)


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
        ),
        scheduler=new_scheduler(settings.denoiser),
    )
    if settings.start is not None:
        _take_over(parts, settings.start)
    return parts


def _take_over(parts: Parts, start: str) -> None:
    for name in ("vae", "text_encoder", "unet"):
        module = getattr(parts, name)
        weights = type(module).from_pretrained(_subfolder(start, name)).float().state_dict()
        try:
            module.load_state_dict(weights)
        except RuntimeError as error:
            raise InputError(
                f"start: {name} in {start} has other sizes than these settings: give the settings "
                "it was trained with, or leave start out"
            ) from error


def _subfolder(start: str, name: str) -> Path:
    folder = Path(start) / name
    if not folder.is_dir():
        raise InputError(f"start: {folder} was not found: point start at a diffusers folder")
    return folder


def export(parts: Parts, folder: Path) -> None:
    """Write a diffusers folder in half precision that any Stable Diffusion pipeline loads."""
    for module in (parts.vae, parts.text_encoder, parts.unet):
        module.eval()
    half = Parts(
        vae=_half(parts.vae),
        tokenizer=parts.tokenizer,
        text_encoder=_half(parts.text_encoder),
        unet=_half(parts.unet),
        scheduler=parts.scheduler,
    )
    StableDiffusionPipeline(
        vae=half.vae,
        text_encoder=half.text_encoder,
        tokenizer=half.tokenizer,
        unet=half.unet,
        scheduler=half.scheduler,
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)


def _half(module: Any) -> Any:
    import copy

    return copy.deepcopy(module).to(torch.float16)
