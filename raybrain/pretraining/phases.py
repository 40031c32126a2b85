"""Autoencoder, text encoder, denoiser: trained one after the other, each on what came before."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raybrain.pretraining.autoencoder import (
    ReconstructionLoss,
    encode,
    fit_autoencoder,
    standardise_latents,
)
from raybrain.pretraining.degradation import fit_latent_prior
from raybrain.pretraining.denoiser import Pictured, VelocityLoss, fit_denoiser
from raybrain.pretraining.image_encoder import fit_projection
from raybrain.pretraining.optimise import Progress, use_average
from raybrain.pretraining.parts import Parts, new_parts
from raybrain.pretraining.perception import Eye
from raybrain.pretraining.pictures import Pictures, open_pictures, to_unit, vary
from raybrain.pretraining.settings import Pretraining
from raybrain.pretraining.text import ContrastiveLoss, embed_captions, fit_text_encoder, tokenize

PHASES = ("autoencoder", "text", "denoiser")
FEATURE_COPIES = 2
"""Varied copies of each picture whose features captions are matched with."""


@dataclass(frozen=True)
class Report:
    """How far pretraining is."""

    phase: str
    step: int
    """Within the phase."""
    epoch: int
    """Steps of all phases together so far."""
    metrics: dict[str, float]
    state: Callable[[], dict[str, Any]]
    """Everything needed to continue from here, or to export what is there."""


def pretrain(
    settings: Pretraining,
    *,
    state: dict[str, Any] | None = None,
    **how: Any,
) -> Iterator[Report]:
    """Train all parts of a pocket generator and yield reports.

    Parameters
    ----------
    state
        Of an earlier ``Report.state()``: training continues from there.
    how
        ``parallel``, ``device``, ``rank`` and ``world``, as for `optimise.optimise`.
    """
    pictures = open_pictures(settings.images)
    parts = new_parts(settings, captions=_all_captions(pictures))
    state = state or {"phase": PHASES[0], "optimiser": None, "parts": {}}
    parts.load_state(state["parts"])
    offset = 0
    for index, phase in enumerate(PHASES):
        steps = getattr(settings, phase).optimisation.steps
        if steps and index >= PHASES.index(state["phase"]):
            resumed = state["optimiser"] if phase == state["phase"] else None
            begin = (_begin_autoencoder, _begin_text, _begin_denoiser)[index]
            objective, fit = begin(parts, pictures, settings)
            last = resumed
            for progress in fit(state=resumed, **how):
                yield _report(progress, phase=phase, offset=offset, parts=parts)
                if progress.step == progress.steps:
                    last = progress.state()
            objective.to("cpu")
            assert last is not None  # a phase that was complete resumes from its last state
            use_average(objective, last)
            if phase == "autoencoder":
                parts.vae.eval()
                standardise_latents(parts.vae, pictures)
        offset += steps


def finished_parts(settings: Pretraining, state: dict[str, Any]) -> Parts:
    """Return the parts of a state with the averaged weights of the phase it was saved in."""
    pictures = open_pictures(settings.images)
    parts = new_parts(settings, captions=_all_captions(pictures))
    parts.load_state(state["parts"])
    holder = nn.Module()
    attribute = {"autoencoder": "vae", "text": "encoder", "denoiser": "unet"}[state["phase"]]
    part = {"autoencoder": parts.vae, "text": parts.text_encoder, "denoiser": parts.unet}
    setattr(holder, attribute, part[state["phase"]])
    use_average(holder, state["optimiser"])
    return parts


def _report(progress: Progress, *, phase: str, offset: int, parts: Parts) -> Report:
    return Report(
        phase=phase,
        step=progress.step,
        epoch=offset + progress.step,
        metrics=progress.metrics,
        state=lambda: {
            "phase": phase,
            "optimiser": progress.state(),
            "parts": parts.state(),
        },
    )


def _begin_autoencoder(
    parts: Parts, pictures: Pictures, settings: Pretraining
) -> tuple[nn.Module, Callable[..., Iterator[Progress]]]:
    objective = ReconstructionLoss(parts.vae, settings=settings.autoencoder)
    return objective, lambda **how: fit_autoencoder(objective, pictures, seed=settings.seed, **how)


def _begin_text(
    parts: Parts, pictures: Pictures, settings: Pretraining
) -> tuple[nn.Module, Callable[..., Iterator[Progress]]]:
    eye = Eye()
    torch.manual_seed(settings.seed + 1)
    features = torch.stack(
        [
            torch.cat(
                [
                    eye.embed(
                        vary(to_unit(chunk), flip=0.5, shift=0.04, zoom=0.08, hue=0.0), size=96
                    )
                    for chunk in pictures.pixels.split(64)
                ]
            )
            for _ in range(FEATURE_COPIES)
        ]
    )
    torch.manual_seed(settings.seed + 2)
    objective = ContrastiveLoss(parts.text_encoder, features=features.shape[-1])
    ids = [tokenize(captions, tokenizer=parts.tokenizer) for captions in pictures.captions]
    return objective, lambda **how: fit_text_encoder(
        objective,
        ids=ids,
        features=features,
        weight=pictures.weight,
        settings=settings.text,
        seed=settings.seed + 1,
        **how,
    )


def _begin_denoiser(
    parts: Parts, pictures: Pictures, settings: Pretraining
) -> tuple[nn.Module, Callable[..., Iterator[Progress]]]:
    counts = torch.tensor([len(captions) for captions in pictures.captions])
    last = counts.cumsum(0)
    embedded = embed_captions(
        ["", *_all_captions(pictures)], tokenizer=parts.tokenizer, encoder=parts.text_encoder
    )
    latents, pixels, embeds = _varied(parts, pictures, settings)
    weight = pictures.weight.repeat(min(2, len(latents)))
    objective = VelocityLoss(
        parts.unet,
        settings=settings.denoiser,
        prior=fit_latent_prior(latents[:2].flatten(0, 1), weight=weight)
        if settings.denoiser.degraded
        else None,
        vae=parts.vae,
    )
    encoder = parts.image_encoder
    pictured = None
    if encoder is not None and settings.image_encoder is not None and embeds is not None:
        variance = encoder.projection.variance
        pictured = Pictured(embeds, variance=variance, settings=settings.image_encoder)
    return objective, lambda **how: fit_denoiser(
        objective,
        latents=latents,
        pixels=pixels,
        captions=embedded[1:],
        owner=torch.stack([last - counts, last], dim=1),
        empty=embedded[0],
        weight=pictures.weight,
        seed=settings.seed + 2,
        pictured=pictured,
        **how,
    )


def _varied(
    parts: Parts, pictures: Pictures, settings: Pretraining
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return latents, pixels and image embeddings, each (copy, picture, ...), of varied pictures.

    The copies are the picture, its mirror image, then variations. The projection of the image
    encoder is fitted on the first two, unless it came with ``start`` or was fitted before.
    """
    torch.manual_seed(settings.seed + 3)
    parts.vae.eval()
    pixels = to_unit(pictures.pixels)
    latents, seen, features = [], [], []
    for copy in range(settings.denoiser.copies):
        if copy < 2:
            varied = pixels.flip(-1) if copy == 1 else pixels
        else:
            zoom, hue = settings.denoiser.zoom, settings.denoiser.hue
            varied = vary(pixels, flip=0.5, shift=0.03, zoom=zoom, hue=hue)
        latents.append(encode(parts.vae, varied, batch_size=16))
        seen.append(((varied + 1) * 127.5).round().byte())
        if parts.image_encoder is not None:
            found = [parts.image_encoder.features(chunk) for chunk in varied.split(64)]
            features.append(torch.cat(found))
    if parts.image_encoder is None:
        return torch.stack(latents), torch.stack(seen), None
    projection = parts.image_encoder.projection
    if not projection.fitted:
        own = torch.cat(features[:2])
        weight = pictures.weight.repeat(len(own) // len(pictures))
        fit_projection(parts.image_encoder, features=own, weight=weight)
    return torch.stack(latents), torch.stack(seen), projection(torch.stack(features))


def _all_captions(pictures: Pictures) -> list[str]:
    return [caption for captions in pictures.captions for caption in captions]
