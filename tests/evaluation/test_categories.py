import numpy as np

from raybrain.evaluation import category_accuracy


def test_clean_predictions_are_all_right_and_unrelated_ones_at_chance():
    rng = np.random.default_rng(0)
    prototypes = rng.normal(size=(8, 4, 5))
    truth = np.repeat(np.arange(8), 50)
    offset = 100.0  # shared by all categories, so it must say nothing
    clean = category_accuracy(
        predicted=prototypes[truth] + offset + 0.05 * rng.normal(size=(400, 4, 5)),
        prototypes=prototypes + offset,
        truth=truth,
        resamples=500,
    )
    assert clean.value == 1.0
    assert clean.p == 1 / 501
    assert abs(clean.permuted - 1 / 8) < 0.01
    blind = category_accuracy(
        predicted=rng.normal(size=(400, 4, 5)), prototypes=prototypes, truth=truth, resamples=500
    )
    assert blind.low < 1 / 8 < blind.high
    assert blind.p > 0.01
    assert (blind.chance, blind.n, blind.categories) == (1 / 8, 400, 8)
