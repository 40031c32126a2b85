import numpy as np

from raybrain.evaluation import nearest_first, retrieval


def test_the_first_place_is_what_the_score_counts():
    rng = np.random.default_rng(0)
    true = rng.standard_normal((30, 6)) + 4
    predicted = true + 2 * rng.standard_normal((30, 6))
    for centred in (False, True):
        order = nearest_first(predicted=predicted, true=true, centred=centred)
        score = retrieval(predicted=predicted, true=true, pool=30, centred=centred)
        np.testing.assert_array_equal(order[:, 0] == np.arange(30), score.brain_to_image == 1)
        assert sorted(order[3]) == list(range(30))
