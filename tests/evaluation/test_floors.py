import numpy as np

from raybrain.evaluation.floors import (
    category_means,
    mean_image,
    nearest_training,
    random_training,
)


def test_mean_image_equals_the_mean_over_blocks():
    training = np.random.default_rng(0).integers(0, 256, size=(600, 4, 4, 3), dtype=np.uint8)
    row = mean_image(training, images=3)
    assert row.shape == (3, 1, 4, 4, 3)
    wanted = np.rint(training.astype(float).mean(axis=0))
    np.testing.assert_array_equal(row[:, 0], np.stack([wanted] * 3))


def test_nearest_training_finds_the_target_itself_under_noise():
    rng = np.random.default_rng(1)
    training = rng.normal(size=(50, 2, 8)) * rng.uniform(0.1, 9, size=(2, 8)) + 3.0
    training[:, 0, 0] = 5.0  # constant dimensions carry no information and must not divide by zero
    chosen = rng.integers(50, size=20)
    predicted = training[chosen] + 0.01 * rng.normal(size=(20, 2, 8))
    np.testing.assert_array_equal(nearest_training(predicted=predicted, training=training), chosen)


def test_category_means_fall_back_on_the_mean_of_all():
    targets = np.array([[1.0, 0.0], [3.0, 0.0], [0.0, 8.0]])
    found = category_means(targets, categories=["cat", "cat", "bus"], wanted=["bus", "cat", "egg"])
    np.testing.assert_allclose(found, [[0.0, 8.0], [2.0, 0.0], [4 / 3, 8 / 3]], rtol=1e-6)


def test_random_training_depends_on_the_seed_alone():
    a = random_training(training=9, images=30, samples=2, seed=1)
    assert a.shape == (30, 2)
    assert set(a.ravel().tolist()) == set(range(9))
    np.testing.assert_array_equal(a, random_training(training=9, images=30, samples=2, seed=1))
