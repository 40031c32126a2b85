import itertools

import numpy as np
import pytest

from raybrain.evaluation.statistics import (
    bootstrap,
    bootstrap_means,
    derangements,
    pairing_p,
)


def test_interval_of_a_mean_agrees_with_the_normal_one():
    scores = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    found = bootstrap(scores, resamples=10_000, seed=1)
    half = 1.96 * scores.std() / 20
    assert found.low == pytest.approx(scores.mean() - half, abs=0.02)
    assert found.high == pytest.approx(scores.mean() + half, abs=0.02)


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(2)
    scores = rng.random((100, 400))  # 400 experiments of 100 images, true mean one half
    found = bootstrap(scores, resamples=1000, seed=3)
    covered = np.mean((found.low < 0.5) & (found.high > 0.5))
    assert 0.91 < covered < 0.98


def test_columns_share_their_resamples():
    a = np.random.default_rng(0).normal(size=50)
    means = bootstrap_means(np.stack([a, a + 1.0], axis=1), resamples=200, seed=0)
    np.testing.assert_allclose(means[:, 1] - means[:, 0], 1.0)


def test_pairing_p_equals_the_enumeration_of_all_pairings():
    matrix = np.random.default_rng(4).normal(size=(5, 5))
    matrix[np.arange(5), np.arange(5)] += 0.8
    observed = np.trace(matrix)
    orders = list(itertools.permutations(range(5)))
    exact = np.mean([matrix[np.arange(5), list(o)].sum() >= observed - 1e-12 for o in orders])
    found = pairing_p([matrix], permutations=20_000, seed=0)[0]
    assert found == pytest.approx(exact, abs=0.01)


def test_pairing_p_of_a_constant_prediction_is_one():
    column = np.random.default_rng(5).random((30, 1))
    assert pairing_p([np.repeat(column, 30, axis=1)], permutations=500, seed=0)[0] == 1.0


def test_pairing_p_is_uniform_without_a_relation():
    rng = np.random.default_rng(6)
    p = pairing_p([rng.normal(size=(20, 20)) for _ in range(200)], permutations=400, seed=0)
    assert 0.4 < p.mean() < 0.6
    assert 0.01 < np.mean(p < 0.05) < 0.1


def test_derangements_leave_nothing_in_place_and_repeat_no_pair():
    orders = derangements(images=7, count=10, seed=0)
    assert orders.shape == (6, 7)
    for order in orders:
        assert sorted(order) == list(range(7))
    pairs = {(j, int(k)) for order in orders for j, k in enumerate(order)}
    assert len(pairs) == 42
    assert all(j != k for j, k in pairs)


def test_one_image_cannot_be_shuffled():
    with pytest.raises(ValueError, match="at least 2 images"):
        derangements(images=1, count=1, seed=0)
