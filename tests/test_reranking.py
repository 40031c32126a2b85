"""Choosing among samples on linear brains whose encoding is known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from raybrain.reranking import fit_encoding, nearest_sample, rerank, side_by_side

TRAINING, IMAGES, SAMPLES, FEATURES, DRIVEN, SILENT = 400, 120, 5, 20, 60, 60


def brain(*, noise, seed=0):
    """Return a linear brain: responses = features @ weights + noise; half its voxels are silent."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((FEATURES, DRIVEN + SILENT)) / np.sqrt(FEATURES)
    weights[:, DRIVEN:] = 0

    def respond(features):
        signal = features @ weights
        return (signal + noise * rng.standard_normal(signal.shape)).astype(np.float32)

    training = rng.standard_normal((TRAINING, FEATURES)).astype(np.float32)
    seen = rng.standard_normal((IMAGES, FEATURES)).astype(np.float32)
    candidates = rng.standard_normal((IMAGES, SAMPLES, FEATURES)).astype(np.float32)
    true = rng.integers(SAMPLES, size=IMAGES)
    candidates[np.arange(IMAGES), true] = seen
    return SimpleNamespace(
        weights=weights,
        training=training,
        training_responses=respond(training) + 3,
        candidates=candidates,
        responses=respond(seen) + 3,
        true=true,
    )


def test_the_true_image_is_chosen_among_others():
    quiet = brain(noise=0.3)
    model = fit_encoding(quiet.training, responses=quiet.training_responses)
    ranked = rerank(model, candidates=quiet.candidates, responses=quiet.responses)
    np.testing.assert_array_equal(ranked.chosen, quiet.true)


def test_the_correlation_is_pearsons_about_the_training_mean():
    noisy = brain(noise=1.0)
    model = fit_encoding(noisy.training, responses=noisy.training_responses)
    ranked = rerank(model, candidates=noisy.candidates, responses=noisy.responses)
    mean = noisy.training_responses.mean(0)[model.voxels]
    for image in (0, 7):
        for sample in range(SAMPLES):
            predicted = model.predict(noisy.candidates[image, sample][None])[0] - mean
            measured = noisy.responses[image][model.voxels] - mean
            expected = np.corrcoef(predicted, measured)[0, 1]
            assert ranked.correlation[image, sample] == pytest.approx(expected, abs=1e-4)
    np.testing.assert_array_equal(ranked.chosen, ranked.correlation.argmax(1))


def test_the_brains_own_weights_are_recovered_and_silent_voxels_left_out():
    quiet = brain(noise=0.3)
    model = fit_encoding(quiet.training, responses=quiet.training_responses)
    assert model.voxels[:DRIVEN].all()
    # A voxel without signal is above its mean by chance at most half the time.
    assert model.voxels[DRIVEN:].mean() < 0.5
    np.testing.assert_allclose(model.fit.weights[:, :DRIVEN], quiet.weights[:, :DRIVEN], atol=0.1)


def test_shuffled_brains_choose_at_chance():
    quiet = brain(noise=0.3)
    model = fit_encoding(quiet.training, responses=quiet.training_responses)
    hits = [
        rerank(
            model,
            candidates=quiet.candidates,
            responses=np.random.default_rng(seed).permutation(quiet.responses),
        ).chosen
        == quiet.true
        for seed in range(20)
    ]
    # 2,400 draws at 1/5: three standard deviations are .025.
    assert np.mean(hits) == pytest.approx(1 / SAMPLES, abs=0.025)


def test_responses_that_nothing_predicts_are_refused():
    rng = np.random.default_rng(1)
    with pytest.raises(ValueError, match="none of 2 voxels is predicted"):
        fit_encoding(
            rng.standard_normal((200, 5)).astype(np.float32),
            responses=np.zeros((200, 2), np.float32),
        )


def test_a_blank_candidate_has_no_correlation():
    quiet = brain(noise=0.3)
    model = fit_encoding(quiet.training, responses=quiet.training_responses)
    blank = np.broadcast_to(quiet.training.mean(0), (1, 2, FEATURES)).copy()
    blank[0, 1] = quiet.candidates[0, quiet.true[0]]
    ranked = rerank(model, candidates=blank, responses=quiet.responses[:1])
    assert ranked.chosen[0] == 1
    with pytest.raises(ValueError, match="1 images need 1 responses"):
        rerank(model, candidates=blank, responses=quiet.responses)


def test_the_sample_nearest_the_decoded_embedding_is_chosen_about_the_training_mean():
    rng = np.random.default_rng(0)
    training = 5 + np.array([1.0, 10.0, 0.1]) * rng.standard_normal((200, 3))
    mean, deviation = training.mean(0), training.std(0)
    candidates = mean + deviation * np.array(
        [[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 3.0]], [[1, 1, 0], [-1, 1, 0], [0, 0, 0]]]
    )
    # Far from the mean in its unit, though a small number: only the scale tells.
    decoded = mean + deviation * np.array([[0.1, 0.2, 0.3], [-0.5, 0.4, 0.0]])
    chosen = nearest_sample(candidates, decoded=decoded, training=training)
    assert chosen.tolist() == [2, 1]


def test_kinds_of_features_stand_side_by_side_with_the_same_variance():
    rng = np.random.default_rng(1)
    seen = {"a": 100 * rng.standard_normal((50, 2, 3)), "b": 3 + rng.standard_normal((50, 4))}
    candidates = {"a": seen["a"][:10].reshape(5, 2, 2, 3), "b": seen["b"][:10].reshape(5, 2, 4)}
    fitted, drawn = side_by_side(seen, candidates)
    assert fitted.shape == (50, 10)
    assert drawn.shape == (5, 2, 10)
    for part in (slice(0, 6), slice(6, 10)):
        assert fitted[:, part].var(0).sum() == pytest.approx(1, rel=1e-4)
        assert np.allclose(fitted[:, part].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(drawn.reshape(10, 10), fitted[:10], rtol=1e-5)
