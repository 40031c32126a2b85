"""Score every row of the table under one protocol, with floors, ceiling, intervals and p values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from raybrain.evaluation.identification import credits_among, ranks, standardised
from raybrain.evaluation.networks import BATCH_SIZE, canvases, read_layers, resize
from raybrain.evaluation.pixels import grey, ssim
from raybrain.evaluation.protocols import Metric, Protocol
from raybrain.evaluation.statistics import bootstrap, derangements, pairing_p
from raybrain.evaluation.table import Score, Table

Images = NDArray[np.uint8]

MEAN_IMAGE = "mean image"
RANDOM_TRAINING = "random training"
NEAREST_TRAINING = "nearest training"
SHUFFLED = "shuffled brain"
CATEGORY_ORACLE = "category oracle"
SYSTEM = "system"
CEILING = "ceiling"
ROW_ORDER = (
    MEAN_IMAGE,
    RANDOM_TRAINING,
    NEAREST_TRAINING,
    SHUFFLED,
    CATEGORY_ORACLE,
    SYSTEM,
    CEILING,
)
ABOUT = {
    MEAN_IMAGE: "the mean of the training images, for everyone: what PixCorr and SSIM pay for blur",
    RANDOM_TRAINING: "a training image drawn at random",
    NEAREST_TRAINING: "the training image whose target is nearest the predicted one; no generator",
    SHUFFLED: "the system's reconstructions, each scored as that of another image",
    CATEGORY_ORACLE: "mean latents with the embedding of the true category, through the generator",
    SYSTEM: "reconstructions from brain activity, each sample scored by itself, then averaged",
    CEILING: "true latents and true embeddings through the same generator",
}
SHUFFLES = 5
"""Derangements over which the shuffled row is averaged."""


@dataclass(frozen=True)
class Reference:
    """The images seen, measured once: what every row is compared with."""

    protocol: Protocol
    layers: Mapping[str, NDArray[np.float32]]
    """Standardised (image, feature) of each layer, and of ``pixels``."""
    grey: NDArray[np.float32]
    """(image, y, x) in 0..1."""

    @property
    def images(self) -> int:
        """How many there are."""
        return len(self.grey)


@dataclass(frozen=True)
class Likeness:
    """How alike every reconstruction of one row is to every image seen."""

    r: Mapping[str, NDArray[np.float32]]
    """Pearson r (seen, distinct reconstruction) by layer, and of ``pixels``."""
    grey: NDArray[np.float32]
    """(distinct reconstruction, y, x)."""
    index: NDArray[np.int64]
    """(image, sample): which distinct reconstruction it is."""


def measure_seen(seen: Images, *, protocol: Protocol, batch_size: int = BATCH_SIZE) -> Reference:
    """Return the features and pixels of the images seen, ready to be compared with rows.

    Parameters
    ----------
    seen
        (image, y, x, rgb), 0..255.
    protocol
        What to measure.
    batch_size
        Images per forward pass.
    """
    layers, greys = _measure(seen, protocol=protocol, batch_size=batch_size)
    return Reference(protocol=protocol, layers=layers, grey=greys)


def compare_with(
    reference: Reference, *, reconstructed: Images, batch_size: int = BATCH_SIZE
) -> Likeness:
    """Return the likeness of one row's reconstructions to all images seen.

    Identical reconstructions are measured once, which makes a constant prediction exactly tied
    (and cheap). The features of a batch are dropped as soon as they are compared.

    Parameters
    ----------
    reference
        From `measure_seen`.
    reconstructed
        (image, sample, y, x, rgb), 0..255, images in the order of those seen.
    batch_size
        Reconstructions per forward pass.
    """
    if reconstructed.ndim != 5 or len(reconstructed) != reference.images:
        raise ValueError(
            f"a row is uint8 (image, sample, y, x, rgb) with {reference.images} images, as many as "
            f"were seen; found {reconstructed.dtype} {reconstructed.shape}"
        )
    flat = reconstructed.reshape(-1, *reconstructed.shape[2:])
    digests = [blake2b(np.ascontiguousarray(image).tobytes()).digest() for image in flat]
    first: dict[bytes, int] = {}
    for position, digest in enumerate(digests):
        first.setdefault(digest, position)
    place = {digest: k for k, digest in enumerate(first)}
    distinct = list(first.values())
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in reference.layers}
    greys = []
    for start in range(0, len(distinct), batch_size):
        batch = flat[distinct[start : start + batch_size]]
        layers, batch_grey = _measure(batch, protocol=reference.protocol, batch_size=batch_size)
        greys.append(batch_grey)
        for name, values in layers.items():
            parts[name].append(reference.layers[name] @ values.T)
    return Likeness(
        r={name: np.concatenate(columns, axis=1) for name, columns in parts.items()},
        grey=np.concatenate(greys),
        index=np.array([place[d] for d in digests]).reshape(reconstructed.shape[:2]),
    )


def _measure(
    images: Images, *, protocol: Protocol, batch_size: int
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.float32]]:
    layers: dict[str, list[NDArray[np.float32]]] = {}
    greys = []
    for canvas in canvases(images, size=protocol.canvas, batch_size=batch_size):
        pixels = resize(canvas, size=protocol.pixels).permute(0, 2, 3, 1).contiguous().numpy()
        greys.append(grey(pixels))
        for name, values in {"pixels": pixels, **read_layers(canvas, protocol=protocol)}.items():
            layers.setdefault(name, []).append(standardised(values))
    return {name: np.concatenate(v) for name, v in layers.items()}, np.concatenate(greys)


def score_rows(
    seen: Images,
    rows: Mapping[str, Images],
    *,
    protocol: Protocol,
    system: str = SYSTEM,
    image_ids: Sequence[str] | None = None,
    bootstrap_resamples: int = 10_000,
    permutations: int = 10_000,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[str, int, int], None] | None = None,
) -> Table:
    """Return the table of a protocol: every row's score with its interval, chance, n and p.

    Each sample of a row is scored by itself and the scores are averaged; features are never
    averaged over samples. A row of shuffled brains is derived from the system's unless `rows`
    brings one.

    Parameters
    ----------
    seen
        (image, y, x, rgb), 0..255.
    rows
        Row name to (image, sample, y, x, rgb), images in the order of `seen`; the size may differ
        from that of the images seen. Must hold the mean image, beside which alone PixCorr and SSIM
        can be read.
    protocol
        What to measure.
    system
        Which row to shuffle.
    image_ids
        Names of the images, kept so that two tables can be paired; positions when not given.
    bootstrap_resamples, permutations
        For intervals and p values.
    seed
        Of resamples, permutations and derangements.
    batch_size
        Images per forward pass.
    progress
        Called with a row's name, rows done and rows in all.

    Raises
    ------
    ValueError
        If rows and images do not fit together, or the mean image is missing.
    """
    if any(m.kind in ("pixcorr", "ssim") for m in protocol.metrics) and MEAN_IMAGE not in rows:
        raise ValueError(
            f"PixCorr and SSIM reward blur, so {protocol.name} needs a row '{MEAN_IMAGE}' "
            f"beside them; found {', '.join(rows)}"
        )
    reference = measure_seen(seen, protocol=protocol, batch_size=batch_size)
    measured: dict[tuple[str, str], _Measured] = {}
    for done, (row, images) in enumerate(rows.items()):
        if progress:
            progress(row, done, len(rows))
        likeness = compare_with(reference, reconstructed=images, batch_size=batch_size)
        for metric in protocol.metrics:
            measured[row, metric.name] = _scores(metric, reference=reference, likeness=likeness)
        if row == system and SHUFFLED not in rows:
            orders = derangements(images=reference.images, count=SHUFFLES, seed=seed)
            for metric in protocol.metrics:
                measured[SHUFFLED, metric.name] = _shuffled(
                    metric,
                    found=measured[row, metric.name],
                    orders=orders,
                    reference=reference,
                    likeness=likeness,
                )
    ids = [str(k) for k in range(len(seen))] if image_ids is None else [str(i) for i in image_ids]
    if len(ids) != len(seen):
        raise ValueError(f"{len(seen)} images were seen but {len(ids)} ids were given")
    names = list(dict.fromkeys(row for row, _ in measured))
    known = [row for row in ROW_ORDER if row in names]
    ordered = (*known, *(row for row in names if row not in known))
    return Table(
        protocol=protocol,
        image_ids=tuple(ids),
        rows=ordered,
        scores=_summaries(
            measured,
            rows=ordered,
            protocol=protocol,
            bootstrap_resamples=bootstrap_resamples,
            permutations=permutations,
            seed=seed,
        ),
        cells={cell: found.per_sample for cell, found in measured.items()},
        bootstrap=bootstrap_resamples,
        permutations=permutations,
        seed=seed,
        about={row: ABOUT[row] for row in ordered if row in ABOUT},
    )


@dataclass(frozen=True)
class _Measured:
    per_sample: NDArray[np.float64]
    """(sample, image)."""
    matrix: NDArray[np.float64] | None
    """(image, reconstruction) averaged over samples: any pairing's scores; None if too dear."""


def _scores(metric: Metric, *, reference: Reference, likeness: Likeness) -> _Measured:
    if metric.kind == "ssim":
        columns = [
            ssim(seen=reference.grey, reconstructed=likeness.grey[chosen])
            for chosen in likeness.index.T
        ]
        return _Measured(per_sample=np.stack(columns), matrix=None)
    matrices = [_matrix(metric, r=likeness.r[_layer(metric)][:, k]) for k in likeness.index.T]
    return _Measured(
        per_sample=np.stack([np.diagonal(matrix) for matrix in matrices]),
        matrix=sum(matrices[1:], start=matrices[0]) / len(matrices),
    )


def _layer(metric: Metric) -> str:
    return "pixels" if metric.layer is None else metric.layer


def _matrix(metric: Metric, *, r: NDArray[np.float32]) -> NDArray[np.float64]:
    if metric.kind == "identification":
        return credits_among(ranks(r, distractors=metric.distractors), ways=metric.ways)
    if metric.kind == "distance":
        return 1.0 - r.astype(np.float64)
    return r.astype(np.float64)


def _shuffled(
    metric: Metric,
    *,
    found: _Measured,
    orders: NDArray[np.int64],
    reference: Reference,
    likeness: Likeness,
) -> _Measured:
    if found.matrix is not None:
        rows = np.arange(reference.images)
        return _Measured(
            per_sample=np.stack([found.matrix[rows, order] for order in orders]), matrix=None
        )
    per_order = []
    for order in orders:
        by_sample = [
            ssim(seen=reference.grey, reconstructed=likeness.grey[chosen[order]])
            for chosen in likeness.index.T
        ]
        per_order.append(np.mean(by_sample, axis=0))
    return _Measured(per_sample=np.stack(per_order), matrix=None)


def _summaries(
    measured: Mapping[tuple[str, str], _Measured],
    *,
    rows: Sequence[str],
    protocol: Protocol,
    bootstrap_resamples: int,
    permutations: int,
    seed: int,
) -> tuple[Score, ...]:
    cells = [(row, metric) for row in rows for metric in protocol.metrics]
    columns = [measured[row, metric.name].per_sample.mean(axis=0) for row, metric in cells]
    interval = bootstrap(np.stack(columns, axis=1), resamples=bootstrap_resamples, seed=seed)
    p = dict.fromkeys(range(len(cells)), np.nan)
    signed = {}
    for k, (row, metric) in enumerate(cells):
        matrix = measured[row, metric.name].matrix
        if matrix is not None and np.isfinite(matrix).all():
            signed[k] = matrix if metric.higher_is_better else -matrix
    found = pairing_p(list(signed.values()), permutations=permutations, seed=seed)
    p |= dict(zip(signed, found.tolist(), strict=True))
    scores = []
    for k, (row, metric) in enumerate(cells):
        means = measured[row, metric.name].per_sample.mean(axis=1)
        scores.append(
            Score(
                row=row,
                metric=metric.name,
                value=float(columns[k].mean()),
                low=float(interval.low[k]),
                high=float(interval.high[k]),
                sd_samples=float(means.std(ddof=1)) if len(means) > 1 else np.nan,
                n=len(columns[k]),
                samples=len(means),
                chance=np.nan if metric.chance is None else metric.chance,
                p=p[k],
            )
        )
    return tuple(scores)
