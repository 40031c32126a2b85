"""Tables of random scores: what is shown, saved and compared must not depend on what they say."""

import numpy as np

from raybrain.evaluation.protocols import PROTOCOLS
from raybrain.evaluation.scoring import CEILING, MEAN_IMAGE, SHUFFLED, SYSTEM
from raybrain.evaluation.statistics import bootstrap
from raybrain.evaluation.table import Score, Table

PROTOCOL = PROTOCOLS["lite0-v1"]
ROWS = (MEAN_IMAGE, SHUFFLED, SYSTEM, CEILING)


def made_table(*, images, samples=2, seed=0):
    rng = np.random.default_rng(seed)
    cells, scores = {}, []
    for row in ROWS:
        for metric in PROTOCOL.metrics:
            values = rng.random((samples, images))
            if metric.name == "fifty_way":
                values[:] = np.nan
            cells[row, metric.name] = values
            interval = bootstrap(values.mean(axis=0), resamples=200, seed=0)
            scores.append(
                Score(
                    row=row,
                    metric=metric.name,
                    value=float(values.mean()),
                    low=float(interval.low),
                    high=float(interval.high),
                    sd_samples=0.01,
                    n=images,
                    samples=samples,
                    chance=np.nan if metric.chance is None else metric.chance,
                    p=0.02 if metric.kind != "ssim" else np.nan,
                )
            )
    return Table(
        protocol=PROTOCOL,
        image_ids=tuple(f"im{k:04d}" for k in range(images)),
        rows=ROWS,
        scores=tuple(scores),
        cells=cells,
        bootstrap=200,
        permutations=200,
        seed=0,
        about={SYSTEM: "what is tested"},
        weights={"net.pth": "0123abcd" * 8},
    )
