import itertools

import numpy as np
import pytest

from raybrain.evaluation.identification import (
    correlation_distance,
    correlations,
    credits_among,
    n_way,
    ranks,
    two_way,
)


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def test_two_way_equals_the_definition_pair_by_pair(rng):
    seen = rng.normal(size=(9, 30))
    drawn = seen + 2.0 * rng.normal(size=(9, 30))
    r = np.corrcoef(seen, drawn)[:9, 9:]
    others = lambda j: [i for i in range(9) if i != j]  # noqa: E731
    by_seen = [np.mean([r[i, j] < r[j, j] for i in others(j)]) for j in range(9)]
    by_drawn = [np.mean([r[j, i] < r[j, j] for i in others(j)]) for j in range(9)]
    np.testing.assert_allclose(two_way(seen=seen, reconstructed=drawn), by_seen)
    found = two_way(seen=seen, reconstructed=drawn, distractors="reconstructed")
    np.testing.assert_allclose(found, by_drawn)
    assert by_seen != by_drawn


def test_identification_uses_pearson_not_cosine():
    # By cosine the first reconstruction is closer to the second image (.96 against .95).
    seen = np.array([[10.0, 11.0, 12.0], [12.0, 11.0, 9.0]])
    drawn = np.array([[20.0, 20.5, 21.0], [21.0, 20.0, 19.0]])
    np.testing.assert_array_equal(two_way(seen=seen, reconstructed=drawn), [1.0, 1.0])


@pytest.mark.parametrize("distractors", ["seen", "reconstructed"])
@pytest.mark.parametrize("ways", [2, 5, 20])
def test_constant_prediction_scores_exactly_chance(rng, ways, distractors):
    seen = rng.normal(size=(20, 50))
    same = np.tile(rng.normal(size=(1, 50)), (20, 1))
    r = np.repeat(correlations(seen=seen, reconstructed=same[:1]), 20, axis=1)
    scores = np.diagonal(credits_among(ranks(r, distractors=distractors), ways=ways))
    assert scores.mean() == pytest.approx(1.0 / ways, abs=1e-12)
    flat = n_way(
        seen=seen, reconstructed=np.full((20, 50), 0.3), ways=ways, distractors=distractors
    )
    np.testing.assert_allclose(flat, 1.0 / ways, rtol=1e-9)


def test_perfect_prediction_is_always_identified(rng):
    seen = rng.normal(size=(20, 50))
    for ways in (2, 20):
        np.testing.assert_allclose(n_way(seen=seen, reconstructed=seen, ways=ways), 1.0)


def test_shuffled_predictions_score_chance_within_their_spread(rng):
    seen = rng.normal(size=(400, 40))
    drawn = (seen + rng.normal(size=seen.shape))[rng.permutation(400)]
    scores = two_way(seen=seen, reconstructed=drawn)
    assert abs(scores.mean() - 0.5) < 3 * scores.std() / 20


def test_many_ways_equal_the_enumeration_of_all_draws():
    r = np.array(
        [
            [0.5, 0.1, 0.2, 0.2, 0.9],
            [0.5, 0.4, 0.2, 0.1, 0.1],
            [0.1, 0.4, 0.2, 0.3, 0.2],
            [0.5, 0.6, 0.2, 0.3, 0.3],
            [0.2, 0.1, 0.2, 0.1, 0.4],
        ]
    )
    found = np.diagonal(credits_among(ranks(r), ways=3))
    for j in range(5):
        credit = []
        for pair in itertools.combinations([i for i in range(5) if i != j], 2):
            best = [r[j, j], *r[list(pair), j]]
            wins = r[j, j] == max(best)
            credit.append(wins / best.count(max(best)))
        assert found[j] == pytest.approx(np.mean(credit))


def test_too_few_images_for_the_ways_is_not_a_number(rng):
    values = rng.normal(size=(10, 5))
    assert np.isnan(n_way(seen=values, reconstructed=values, ways=11)).all()
    assert n_way(seen=values, reconstructed=values, ways=10) == pytest.approx(1.0)


def test_one_image_cannot_be_identified():
    with pytest.raises(ValueError, match="at least 2 images"):
        two_way(seen=np.ones((1, 3)), reconstructed=np.ones((1, 3)))


def test_correlation_distance_equals_numpy_and_is_one_for_flat_features(rng):
    a, b = rng.normal(size=(2, 6, 100))
    b[5] = 7.0
    wanted = [1 - np.corrcoef(x, y)[0, 1] for x, y in zip(a[:5], b[:5], strict=True)]
    found = correlation_distance(seen=a, reconstructed=b)
    np.testing.assert_allclose(found, [*wanted, 1.0], atol=1e-6)
