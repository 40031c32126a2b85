"""Score every row of the table under one protocol, with floors, ceiling, intervals and p values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raybrain.evaluation.declarations import Metric, Protocol
from raybrain.evaluation.identification import credits_among, ranks
from raybrain.evaluation.measuring import (
    Images,
    Likeness,
    Measurer,
    Part,
    forget,
    plan_parts,
)
from raybrain.evaluation.networks import BATCH_SIZE
from raybrain.evaluation.statistics import bootstrap, derangements, pairing_p
from raybrain.evaluation.table import NEAREST_TRAINING, Score, Table
from raybrain.evaluation.weights import weights_folder, weights_of

Mapper = Callable[[Callable[[Part], Likeness], Sequence[Part]], Iterable[Likeness]]
"""Calls a function on every part, wherever, and gives the results in order."""

MEAN_IMAGE = "mean image"
RANDOM_TRAINING = "random training"
SHUFFLED = "shuffled brain"
CATEGORY_ORACLE = "category oracle"
SYSTEM = "system"
RERANKED = "brain reranked"
EMBEDDING_RERANKED = "embedding reranked"
Z_ONLY = "latents only"
E_ONLY = "embedding only"
CEILING = "ceiling"
ROW_ORDER = (
    MEAN_IMAGE,
    RANDOM_TRAINING,
    NEAREST_TRAINING,
    SHUFFLED,
    CATEGORY_ORACLE,
    Z_ONLY,
    E_ONLY,
    SYSTEM,
    RERANKED,
    EMBEDDING_RERANKED,
    CEILING,
)
ABOUT = {
    MEAN_IMAGE: "the mean of the training images, for everyone: what PixCorr and SSIM pay for blur",
    RANDOM_TRAINING: "a training image drawn at random",
    NEAREST_TRAINING: "the training image whose target is nearest the predicted one; no generator",
    SHUFFLED: "the system's reconstructions, each scored as that of another image",
    CATEGORY_ORACLE: "mean latents with the embedding of the true category, through the generator",
    SYSTEM: "reconstructions from brain activity, each sample scored by itself, then averaged",
    RERANKED: "of the system's samples, the one whose predicted response fits the brain's best",
    EMBEDDING_RERANKED: "of the system's samples, the one with the embedding nearest the decoded",
    Z_ONLY: "drawn from the decoded latents alone: layout and colour",
    E_ONLY: "drawn from the decoded image embedding alone: what it is of, from pure noise",
    CEILING: "true latents and true embeddings through the same generator",
}
SHUFFLES = 5
"""Derangements over which the shuffled row is averaged."""


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
    weights: Path | None = None,
    batch_size: int = BATCH_SIZE,
    mapper: Mapper | None = None,
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
    weights
        Folder of weights; torch's own when not given.
    batch_size
        Images per forward pass.
    mapper
        Measures the parts: ``mapper(function, parts)``. One after another in this process when not
        given.

    Raises
    ------
    ValueError
        If rows and images do not fit together, or the mean image is missing.
    InputError
        If weights are missing or are not the declared ones.
    """
    if any(m.kind in ("pixcorr", "ssim") for m in protocol.metrics) and MEAN_IMAGE not in rows:
        raise ValueError(
            f"PixCorr and SSIM reward blur, so {protocol.name} needs a row '{MEAN_IMAGE}' "
            f"beside them; found {', '.join(rows)}"
        )
    ids = [str(k) for k in range(len(seen))] if image_ids is None else [str(i) for i in image_ids]
    if len(ids) != len(seen):
        raise ValueError(f"{len(seen)} images were seen but {len(ids)} ids were given")
    folder = weights_folder() if weights is None else weights
    digests = weights_of(protocol, folder=folder)
    shuffles = {}
    if system in rows and SHUFFLED not in rows:
        shuffles[system] = derangements(images=len(seen), count=SHUFFLES, seed=seed)
    plan = plan_parts(rows, images=len(seen), shuffled=shuffles)
    measurer = Measurer(seen=seen, protocol=protocol, weights=folder, batch_size=batch_size)
    try:
        found = list((mapper or map)(measurer, plan.parts))
    finally:
        forget()
    values = {
        name: np.concatenate([likeness.values[name] for likeness in found], axis=1)
        for name in found[0].values
    }
    measured: dict[tuple[str, str], _Measured] = {}
    for row, index in plan.index.items():
        for metric in protocol.metrics:
            likeness = values[_measure_of(metric)]
            scored = _scores(metric, values=likeness, index=index)
            measured[row, metric.name] = scored
            if row in shuffles:
                measured[SHUFFLED, metric.name] = _shuffled(
                    scored, orders=shuffles[row], values=likeness, index=index
                )
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
        weights=digests,
    )


@dataclass(frozen=True)
class _Measured:
    per_sample: NDArray[np.float64]
    """(sample, image)."""
    matrix: NDArray[np.float64] | None
    """(image, reconstruction) averaged over samples: any pairing's scores; None if too dear."""


def _measure_of(metric: Metric) -> str:
    if metric.pairwise:
        return metric.name
    return "pixels" if metric.layer is None else metric.layer


def _scores(metric: Metric, *, values: NDArray[np.float32], index: NDArray[np.int64]) -> _Measured:
    if metric.pairwise:
        rows = np.arange(len(index))
        return _Measured(
            per_sample=np.stack([values[rows, column].astype(np.float64) for column in index.T]),
            matrix=None,
        )
    tables = [values[:, column] for column in index.T]
    if metric.samples == "mean_r":
        tables = [np.mean(tables, axis=0)]
    matrices = [_matrix(metric, r=r) for r in tables]
    return _Measured(
        per_sample=np.stack([np.diagonal(matrix) for matrix in matrices]),
        matrix=sum(matrices[1:], start=matrices[0]) / len(matrices),
    )


def _matrix(metric: Metric, *, r: NDArray[np.float32]) -> NDArray[np.float64]:
    if metric.kind == "identification":
        return credits_among(ranks(r, distractors=metric.distractors), ways=metric.ways)
    if metric.kind == "distance":
        return 1.0 - r.astype(np.float64)
    return r.astype(np.float64)


def _shuffled(
    found: _Measured,
    *,
    orders: NDArray[np.int64],
    values: NDArray[np.float32],
    index: NDArray[np.int64],
) -> _Measured:
    rows = np.arange(len(index))
    if found.matrix is not None:
        per_order = [found.matrix[rows, order] for order in orders]
    else:
        by_sample = [
            np.mean([values[rows, column[order]] for column in index.T], axis=0) for order in orders
        ]
        # LPIPS is computed for one derangement only.
        per_order = [scores for scores in by_sample if np.isfinite(scores).all()]
    return _Measured(per_sample=np.stack(per_order).astype(np.float64), matrix=None)


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
