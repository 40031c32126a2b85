import dataclasses

import numpy as np
import pytest

from raybrain.evaluation import (
    SYSTEM,
    likeness_to_training,
    nearness_text,
    quantile_labels,
    retrieval,
    scores_by,
    thumbnails,
)
from tests.evaluation.made import made_table


def test_likeness_is_the_largest_correlation_whatever_the_blocks():
    rng = np.random.default_rng(0)
    images, training = rng.normal(size=(6, 20)), rng.normal(size=(50, 20))
    training[7] = 3 * images[2] + 1
    wanted = np.corrcoef(images, training)[:6, 6:].max(axis=1)
    for block in (7, 1000):
        found = likeness_to_training(images, training=training, block=block)
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert wanted[2] == pytest.approx(1.0)


def test_deciles_are_equal_and_in_order():
    values = np.random.default_rng(1).permutation(100) / 100
    labels = quantile_labels(values, parts=10)
    assert all(labels.count(label) == 10 for label in set(labels))
    assert len(set(labels)) == 10
    by_value = [label for _, label in sorted(zip(values, labels, strict=True))]
    assert by_value == sorted(by_value)


def test_equal_values_share_a_decile():
    labels = quantile_labels(np.array([0.5] * 8 + [0.9, 0.1]), parts=10)
    assert len(set(labels[:8])) == 1
    assert quantile_labels(np.full(5, 0.3), parts=10)[0].startswith("1 ")


def test_scores_of_groups_average_to_the_score_of_all():
    table = made_table(images=30)
    labels = ["held out" if k % 3 else "seen in training" for k in range(30)]
    found = scores_by(table, labels=labels, row=SYSTEM, metric="two_way", resamples=100)
    assert [s.label for s in found] == ["held out", "seen in training"]
    assert [s.n for s in found] == [20, 10]
    mean = sum(s.n * s.value for s in found) / 30
    assert mean == pytest.approx(table.score(row=SYSTEM, metric="two_way").value)
    assert all(s.low <= s.value <= s.high for s in found)
    with pytest.raises(ValueError, match="30 images were scored"):
        scores_by(table, labels=["a"], row=SYSTEM, metric="two_way")


def test_strata_follow_the_difficulty_that_was_put_in():
    table = made_table(images=40)
    cells = dict(table.cells)
    cells[SYSTEM, "two_way"] = np.linspace(0.5, 1.0, 40)[None]
    easy = dataclasses.replace(table, cells=cells)
    labels = quantile_labels(np.linspace(0, 1, 40), parts=4)
    values = [s.value for s in scores_by(easy, labels=labels, row=SYSTEM, metric="two_way")]
    assert values == sorted(values)


def test_retrieval_equals_the_average_over_draws():
    rng = np.random.default_rng(2)
    true = rng.normal(size=(40, 15)) + 2.0
    predicted = true + 1.2 * rng.normal(size=true.shape)
    found = retrieval(predicted=predicted, true=true, pool=10)
    brain, image = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (predicted, true))
    forward, backward = [], []
    for _ in range(3000):
        chosen = rng.choice(40, 10, replace=False)
        similarity = brain[chosen] @ image[chosen].T
        backward.append(np.mean(similarity.argmax(axis=1) == np.arange(10)))
        forward.append(np.mean(similarity.argmax(axis=0) == np.arange(10)))
    assert found.brain_to_image.mean() == pytest.approx(np.mean(backward), abs=0.01)
    assert found.image_to_brain.mean() == pytest.approx(np.mean(forward), abs=0.01)
    assert found.chance == 0.1


def test_the_two_directions_differ_when_one_prediction_attracts_all():
    # One prediction lies near every image: images find it, while brains still find their own.
    true = np.eye(6) + 0.4
    predicted = true.copy()
    predicted[0] = true.mean(axis=0)
    found = retrieval(predicted=predicted, true=true, pool=6)
    assert found.brain_to_image[1:].mean() == 1.0
    assert found.brain_to_image[0] < 1.0


def test_centring_takes_away_what_all_embeddings_share():
    rng = np.random.default_rng(3)
    true = rng.normal(size=(50, 20))
    predicted = true + 0.5 * rng.normal(size=true.shape) + 30 * rng.normal(size=20)
    raw = retrieval(predicted=predicted, true=true, pool=50)
    centred = retrieval(predicted=predicted, true=true, pool=50, centred=True)
    assert raw.brain_to_image.mean() < 0.1
    assert centred.brain_to_image.mean() > 0.9


@pytest.mark.parametrize("centred", [False, True])
def test_equal_predictions_retrieve_at_chance(centred):
    true = np.random.default_rng(4).normal(size=(30, 8))
    found = retrieval(predicted=np.ones((30, 8)), true=true, pool=30, centred=centred)
    assert found.brain_to_image.mean() == pytest.approx(1 / 30)
    assert found.image_to_brain.mean() == pytest.approx(1 / 30)


def test_a_pool_larger_than_the_test_set_is_refused():
    with pytest.raises(ValueError, match="a pool of at most 20"):
        retrieval(predicted=np.ones((20, 3)), true=np.ones((20, 3)))


def test_thumbnails_are_means_over_squares() -> None:
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (3, 35, 35, 3), dtype=np.uint8)
    found = thumbnails(images, side=16, block=2).reshape(3, 17, 17, 3)
    # 35 pixels make 17 squares of 2, and one row is left over.
    np.testing.assert_allclose(found[1, 4, 7], images[1, 8:10, 14:16].mean(axis=(0, 1)), rtol=1e-6)
    small = rng.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(thumbnails(small), small.reshape(2, -1))


def test_a_copy_in_training_is_near_whatever_its_brightness() -> None:
    rng = np.random.default_rng(6)
    training = rng.integers(0, 200, (40, 32, 32, 3), dtype=np.uint8)
    seen = np.stack([training[17] + 40, rng.integers(0, 200, (32, 32, 3), dtype=np.uint8)])
    r = likeness_to_training(thumbnails(seen), training=thumbnails(training))
    assert r[0] == pytest.approx(1.0, abs=1e-5)
    assert r[1] < 0.5
    text = nearness_text({"pixels": np.full(4, 0.25), "latents": np.full(4, 0.5)})
    assert text.splitlines() == [
        f"nearest training image by {what}: r {r} at the median, {r} to {r} for nine in ten "
        f"test images"
        for what, r in (("pixels", "0.25"), ("latents", "0.50"))
    ]
