"""How alike each reconstruction is to each image seen: the part that takes time.

Work is cut into parts that can be measured anywhere in any order; what comes back is small (one
number per image seen, layer and reconstruction).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raybrain.config import InputError
from raybrain.evaluation.declarations import Metric, Protocol
from raybrain.evaluation.identification import standardised
from raybrain.evaluation.networks import (
    BATCH_SIZE,
    canvases,
    lpips_model,
    prepared,
    read_layers,
    resize,
)
from raybrain.evaluation.pixels import grey, ssim

Images = NDArray[np.uint8]

PART = 64
"""Reconstructions measured together: 2 s of `lite0-v1` on one core."""


@dataclass(frozen=True)
class Part:
    """Distinct reconstructions to measure."""

    images: tuple[Images, ...]
    """(y, x, rgb) each, of one size."""
    partners: tuple[tuple[int, ...], ...]
    """Of each reconstruction, the images seen with which it is compared pair by pair."""
    dear: tuple[tuple[int, ...], ...]
    """The same for LPIPS, which costs a pass through a network for every partner."""


@dataclass(frozen=True)
class Likeness:
    """(seen, reconstruction) by layer, ``pixels`` and the names of pairwise metrics.

    Pearson r for layers and pixels; for pairwise metrics their value, NaN where not computed.
    """

    values: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Reference:
    """What is measured of images alone: of those seen once, of reconstructions in batches."""

    layers: Mapping[str, NDArray[np.float32]]
    """Standardised (image, feature) of each layer, and of ``pixels``."""
    grey: NDArray[np.float32]
    """(image, y, x) in 0..1."""
    pixels: NDArray[np.float32]
    """(image, y, x, rgb) in 0..1; none where no function of another package looks at them."""


@dataclass(frozen=True, eq=False)
class Measurer:
    """Compares parts with the images seen; each process measures those once, when first needed."""

    seen: Images
    """(image, y, x, rgb)."""
    protocol: Protocol
    weights: Path | None = None
    batch_size: int = BATCH_SIZE

    @cached_property
    def key(self) -> bytes:
        """A digest of what determines the reference."""
        digest = blake2b(np.ascontiguousarray(self.seen).tobytes())
        digest.update(repr((self.seen.shape, self.protocol, self.weights)).encode())
        return digest.digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Measurer) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __call__(self, part: Part) -> Likeness:
        """Return how alike the reconstructions of a part are to every image seen."""
        reference = _reference(self)
        columns: dict[str, list[NDArray[np.float32]]] = {}
        batches = []
        for start in range(0, len(part.images), self.batch_size):
            batch = np.stack(part.images[start : start + self.batch_size])
            batches.append(_measured(batch, measurer=self))
            for name, values in batches[-1].layers.items():
                columns.setdefault(name, []).append(reference.layers[name] @ values.T)
        found = {name: np.concatenate(parts, axis=1) for name, parts in columns.items()}
        mine = np.concatenate([one.grey for one in batches])
        pixels = np.concatenate([one.pixels for one in batches])
        for metric in self.protocol.metrics:
            if metric.kind == "ssim":
                seen, drawn = _pairs(part.partners)
                pairs = ssim(
                    seen=reference.grey[seen], reconstructed=mine[drawn], window=metric.window
                )
            elif metric.function is not None:
                seen, drawn = _pairs(part.partners)
                pairs = _of_function(metric, seen=reference.pixels[seen], drawn=pixels[drawn])
            elif metric.kind == "lpips":
                seen, drawn = _pairs(part.dear)
                pairs = self._lpips(part.images, seen=seen, drawn=drawn)
            else:
                continue
            table = np.full((len(self.seen), len(part.images)), np.nan, dtype=np.float32)
            table[seen, drawn] = pairs
            found[metric.name] = table
        return Likeness(values=found)

    def _lpips(
        self, images: Sequence[Images], *, seen: Sequence[int], drawn: Sequence[int]
    ) -> NDArray[np.float64]:
        import torch

        network, model = lpips_model(self.protocol, weights=self.weights)
        found = []
        with torch.inference_mode():
            for j, k in zip(seen, drawn, strict=True):
                maps = [
                    model(prepared(canvas, network=network))
                    for pair in (self.seen[j], images[k])
                    for canvas in canvases(pair[None], size=self.protocol.canvas)
                ]
                found.append(float(model.distance(*maps)[0]))
        return np.array(found)


def _pairs(partners: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    seen = [j for chosen in partners for j in chosen]
    drawn = [k for k, chosen in enumerate(partners) for _ in chosen]
    return seen, drawn


def forget() -> None:
    """Release the memory of the images seen last."""
    _reference.cache_clear()


@lru_cache(maxsize=1)
def _reference(measurer: Measurer) -> Reference:
    return _measured(measurer.seen, measurer=measurer)


def _measured(images: Images, *, measurer: Measurer) -> Reference:
    protocol = measurer.protocol
    wanted = any(metric.function is not None for metric in protocol.metrics)
    kept = []
    layers: dict[str, list[NDArray[np.float32]]] = {}
    greys = []
    for canvas in canvases(images, size=protocol.canvas, batch_size=measurer.batch_size):
        pixels = resize(canvas, size=protocol.pixels).permute(0, 2, 3, 1).contiguous().numpy()
        greys.append(grey(pixels))
        if wanted:
            kept.append(pixels)
        features = read_layers(canvas, protocol=protocol, weights=measurer.weights)
        for name, values in {"pixels": pixels, **features}.items():
            layers.setdefault(name, []).append(standardised(values))
    return Reference(
        layers={name: np.concatenate(v) for name, v in layers.items()},
        grey=np.concatenate(greys),
        pixels=np.concatenate(kept) if kept else np.empty(0, np.float32),
    )


def _of_function(
    metric: Metric, *, seen: NDArray[np.float32], drawn: NDArray[np.float32]
) -> NDArray[np.float64]:
    assert metric.function is not None
    found = np.asarray(metric.function(seen, drawn), dtype=np.float64)
    if found.shape != (len(seen),) or not np.isfinite(found).all():
        raise InputError(
            f"the metric '{metric.name}' should give a finite number for each of {len(seen)} "
            f"pairs; found {found.dtype} {found.shape}: mend its function"
        )
    return found


@dataclass(frozen=True)
class Plan:
    """Which distinct reconstructions there are and whose they are."""

    parts: tuple[Part, ...]
    index: Mapping[str, NDArray[np.int64]]
    """Row to (image, sample): position among all distinct reconstructions."""


def plan_parts(
    rows: Mapping[str, Images], *, images: int, shuffled: Mapping[str, NDArray[np.int64]]
) -> Plan:
    """Return the parts to measure; equal reconstructions, of whatever row, are measured once.

    That makes a constant prediction exactly tied with itself, and cheap.

    Parameters
    ----------
    rows
        Row to (image, sample, y, x, rgb).
    images
        How many were seen.
    shuffled
        Row to pairings (derangement, image) whose pairwise scores are wanted as well.
    """
    place: dict[bytes, int] = {}
    pictures: list[Images] = []
    partners: list[set[int]] = []
    dear: list[set[int]] = []
    index = {}
    for row, drawn in rows.items():
        if drawn.ndim != 5 or len(drawn) != images or drawn.dtype != np.uint8:
            raise ValueError(
                f"row '{row}' should be uint8 (image, sample, y, x, rgb) with {images} images, as "
                f"many as were seen; found {drawn.dtype} {drawn.shape}"
            )
        positions = np.empty(drawn.shape[:2], dtype=np.int64)
        for k in range(images):
            for sample, picture in enumerate(drawn[k]):
                digest = blake2b(picture.tobytes(), digest_size=16).digest()
                digest += str(picture.shape).encode()
                if digest not in place:
                    place[digest] = len(pictures)
                    pictures.append(picture)
                    partners.append(set())
                    dear.append(set())
                positions[k, sample] = place[digest]
                partners[place[digest]].add(k)
                dear[place[digest]].add(k)
        index[row] = positions
        for number, order in enumerate(shuffled.get(row, ())):
            for k in range(images):
                for position in positions[order[k]]:
                    partners[position].add(k)
                    if number == 0:
                        dear[position].add(k)
    parts = []
    start = 0
    while start < len(pictures):
        end = start + 1
        same = pictures[start].shape
        while end < len(pictures) and end - start < PART and pictures[end].shape == same:
            end += 1
        parts.append(
            Part(
                images=tuple(pictures[start:end]),
                partners=tuple(tuple(sorted(p)) for p in partners[start:end]),
                dear=tuple(tuple(sorted(p)) for p in dear[start:end]),
            )
        )
        start = end
    return Plan(parts=tuple(parts), index=index)
