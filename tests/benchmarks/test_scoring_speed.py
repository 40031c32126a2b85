"""A thousand images of five samples through `lite0-v1`: time, and the memory it takes."""

import resource
import time

import numpy as np
import pytest

from raybrain.evaluation import MEAN_IMAGE, NEAREST_TRAINING, PROTOCOLS, SYSTEM, score_rows
from raybrain.evaluation.identification import credits_among, ranks

pytestmark = pytest.mark.benchmark


def test_a_test_set_is_scored_within_minutes_and_memory(scale):
    images, samples = scale(1000), 5
    rng = np.random.default_rng(0)
    seen = rng.integers(0, 256, size=(images, 64, 64, 3), dtype=np.uint8)
    noise = rng.integers(0, 256, size=(images, samples, 64, 64, 3), dtype=np.uint8)
    rows = {
        MEAN_IMAGE: np.broadcast_to(seen[:1, None], (images, 1, *seen.shape[1:])),
        NEAREST_TRAINING: np.roll(seen, 1, axis=0)[:, None],
        SYSTEM: (seen[:, None] // 2 + noise // 2).astype(np.uint8),
        "ceiling": (seen[:, None] // 8 * 7 + noise // 8).astype(np.uint8),
    }
    start = time.perf_counter()
    table = score_rows(seen, rows, protocol=PROTOCOLS["lite0-v1"])
    seconds = time.perf_counter() - start
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\n{table.to_text()}\n{seconds:.0f} s, peak {gigabytes:.2f} GB")
    scale.claim(seconds < 1200, f"{seconds:.0f} s for {images} x {samples} (goal under 1200)")
    scale.claim(gigabytes < 6, f"peak {gigabytes:.2f} GB (goal under 6)")


def test_identification_itself_takes_seconds(scale):
    images, samples, layers = scale(1000), 5, 4
    r = np.random.default_rng(0).normal(size=(layers * samples, images, images)).astype(np.float32)
    start = time.perf_counter()
    for matrix in r:
        credits_among(ranks(matrix), ways=2)
    seconds = time.perf_counter() - start
    scale.claim(seconds < 5, f"{seconds:.2f} s for {len(r)} matrices of {images} (goal under 5)")
