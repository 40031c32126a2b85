"""What a pocket generator must be able to do, measured: the scores of its model card."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raybrain.config import Generator, Reconstruct
from raybrain.diffusion import (
    StableDiffusion,
    draw,
    embed_images,
    encode_captions,
    encode_images,
    load_generator,
)
from raybrain.evaluation import extract_features, protocol_named, two_way
from raybrain.stimuli import (
    Emoji,
    emoji_objects,
    held_out_emoji,
    held_out_families,
    render_all,
)

PROTOCOL = "lite0-v1"
LAYER = "lite0.pooled"
TIMED_BATCH = 8
COLUMNS = 12
BATCH = 26


@dataclass(frozen=True)
class Bar:
    """One score beside what is asked of it."""

    name: str
    value: float
    wanted: float
    n: int
    about: str

    @property
    def met(self) -> bool:
        """Whether the score is good enough; times should be below what is asked."""
        return self.value <= self.wanted if "seconds" in self.name else self.value >= self.wanted


def measure_bars(
    checkpoint: str,
    *,
    settings: Reconstruct,
    strengths: Sequence[float] = (0.5, 0.8),
    seed: int = 0,
    sheets: Path | None = None,
    count: int | None = None,
) -> list[Bar]:
    """Return what a generator of OpenMoji achieves on pictures and captions.

    Held-out pictures are encoded and decoded (PSNR and two-way identification), drawn again from
    their true latents and captions at each strength and from their image embeddings alone, and
    training pictures are drawn from their captions alone.

    Parameters
    ----------
    checkpoint
        As ``generator.checkpoint``.
    settings
        Guidance, scheduler and steps; the last of `strengths` should reach 85 %, the others 95 %.
    sheets
        Folder for contact sheets, originals above drawings; none when not given.
    count
        How many pictures of each set; all held-out and 100 training pictures when not given.
    """
    started = time.monotonic()
    generator = load_generator(Generator(checkpoint=checkpoint, device="cpu", dtype="float32"))
    held_out = held_out_emoji()[:count]
    _draw(generator, held_out[:TIMED_BATCH], seed=seed, settings=settings)
    seconds = time.monotonic() - started
    side = generator.resolution
    seen = render_all(held_out, size=side)
    decoded = _decode(generator, seen)
    bars = [
        Bar("vae_psnr_db", _psnr(seen, decoded), 22.0, len(seen), "held-out pictures, VAE alone"),
        Bar(
            "vae_two_way", _two_way(seen, decoded), 0.99, len(seen), "held-out pictures, VAE alone"
        ),
    ]
    _sheet(sheets, "vae", seen=seen, drawn=decoded)
    for strength in strengths:
        at = settings.model_copy(update={"mode": "z+c", "strength": strength})
        drawn = _draw(generator, held_out, seed=seed, settings=at)
        wanted = 0.85 if strength == strengths[-1] else 0.95
        name = f"img2img_two_way_{strength:g}"
        about = f"held-out pictures from true latents and captions, strength {strength:g}"
        bars.append(Bar(name, _two_way(seen, drawn), wanted, len(seen), about))
        _sheet(sheets, name, seen=seen, drawn=drawn)
    if generator.image is not None:
        alone = settings.model_copy(update={"mode": "e"})
        drawn = _draw(generator, held_out, seed=seed, settings=alone)
        about = "held-out pictures from their image embeddings alone"
        bars.append(Bar("embedding_two_way", _two_way(seen, drawn), 0.9, len(seen), about))
        _sheet(sheets, "embedding", seen=seen, drawn=drawn)
    known = [e for e in emoji_objects() if e.family not in held_out_families()]
    order = np.random.default_rng(seed).permutation(len(known))[: min(100, count or 100)]
    chosen = [known[i] for i in order]
    trained = render_all(chosen, size=side)
    alone = settings.model_copy(update={"mode": "c"})
    drawn = _draw(generator, chosen, seed=seed, settings=alone)
    score = _two_way(trained, drawn)
    bars.append(Bar("text_two_way", score, 0.85, len(chosen), "training captions alone"))
    bars.append(
        Bar("seconds", seconds, 15.0, TIMED_BATCH, f"loading and one batch of {TIMED_BATCH}")
    )
    _sheet(sheets, "text", seen=trained, drawn=drawn)
    if sheets is not None:
        lines = [e.captions[0] for e in chosen]
        (sheets / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return bars


def _draw(
    generator: StableDiffusion, emoji: Sequence[Emoji], *, seed: int, settings: Reconstruct
) -> NDArray[np.uint8]:
    pixels = render_all(emoji, size=generator.resolution)
    latents = encode_images(generator, images=pixels)
    seen = embed_images(generator, images=pixels) if generator.image is not None else None
    embeds = encode_captions(generator, captions=[e.captions[:1] for e in emoji])
    drawn = [
        draw(
            generator,
            latents=latents[part],
            prompt_embeds=embeds[part],
            image_embeds=None if seen is None else seen[part],
            image_ids=[e.code for e in emoji[part]],
            samples=[0] * len(emoji[part]),
            seed=seed,
            settings=settings,
        )
        for part in (slice(k, k + BATCH) for k in range(0, len(emoji), BATCH))
    ]
    return np.concatenate(drawn)


def _decode(generator: StableDiffusion, seen: NDArray[np.uint8]) -> NDArray[np.uint8]:
    import torch

    latents = torch.from_numpy(encode_images(generator, images=seen)) / generator.scaling_factor
    with torch.inference_mode():
        pixels = torch.cat([generator.pipeline.vae.decode(z).sample for z in latents.split(BATCH)])
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def _psnr(seen: NDArray[np.uint8], drawn: NDArray[np.uint8]) -> float:
    # Of the error over all pictures: the mean of per-picture decibels flatters (by .8 dB here).
    error = np.square(seen.astype(np.float64) - drawn).mean()
    return float(10 * np.log10(255**2 / error))


def _two_way(seen: NDArray[np.uint8], drawn: NDArray[np.uint8]) -> float:
    protocol = protocol_named(PROTOCOL)
    one, other = (extract_features(x, protocol=protocol)[LAYER] for x in (seen, drawn))
    return float(two_way(seen=one, reconstructed=other).mean())


def _sheet(
    folder: Path | None, name: str, *, seen: NDArray[np.uint8], drawn: NDArray[np.uint8]
) -> None:
    if folder is None:
        return
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for start in range(0, len(seen), COLUMNS):
        for images in (seen, drawn):
            row = images[start : start + COLUMNS]
            blank = np.full((COLUMNS - len(row), *row.shape[1:]), 255, np.uint8)
            rows.append(np.concatenate([*row, *blank], axis=1))
    Image.fromarray(np.concatenate(rows)).save(folder / f"{name}.png")
