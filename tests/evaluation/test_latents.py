import numpy as np
import pytest

from raybrain.evaluation.latents import latent_scores


def test_scores_equal_the_formulas_dimension_by_dimension():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(40, 2, 3))
    predicted = 0.5 * true + 0.3 * rng.normal(size=true.shape)
    mean = np.full((2, 3), 0.1)
    found = latent_scores(true=true, predicted=predicted, training_mean=mean, resamples=200)
    t, p = true.reshape(40, 6), predicted.reshape(40, 6)
    for d in range(6):
        assert found.pearson[d] == pytest.approx(np.corrcoef(t[:, d], p[:, d])[0, 1])
        explained = 1 - ((t[:, d] - p[:, d]) ** 2).sum() / ((t[:, d] - t[:, d].mean()) ** 2).sum()
        assert found.r2[d] == pytest.approx(explained)
    assert found.mse == pytest.approx(((t - p) ** 2).mean())
    assert found.mse_low < found.mse < found.mse_high
    assert found.mse_of_mean == pytest.approx(((t - 0.1) ** 2).mean())
    assert found.n == 40


def test_predicting_the_training_mean_earns_nothing():
    true = np.random.default_rng(1).normal(size=(30, 4))
    mean = np.zeros(4)
    found = latent_scores(
        true=true, predicted=np.zeros_like(true), training_mean=mean, resamples=100
    )
    assert found.mse == found.mse_of_mean
    assert (found.r2 <= 0).all()
    np.testing.assert_array_equal(found.pearson, 0.0)
    assert found.summary()["skill"] == 0.0
    assert found.summary()["two_way"] == pytest.approx(0.5)


def test_constant_dimensions_give_neither_nan_nor_credit_to_the_means():
    rng = np.random.default_rng(2)
    true = rng.normal(size=(30, 3))
    true[:, 1] = 0.7
    predicted = true.copy()
    predicted[:, 1] = 0.7 + 1e-7 * rng.normal(size=30)
    summary = latent_scores(
        true=true, predicted=predicted, training_mean=true.mean(axis=0), resamples=100
    )
    assert summary.constant == 1
    assert summary.summary()["r2_mean"] == pytest.approx(1.0)
    assert summary.summary()["pearson_mean"] == pytest.approx(1.0)


def test_shapes_that_do_not_fit_are_refused():
    values = np.zeros((5, 3))
    with pytest.raises(ValueError, match="at least 2 images"):
        latent_scores(true=values, predicted=values[:, :2], training_mean=np.zeros(3))
