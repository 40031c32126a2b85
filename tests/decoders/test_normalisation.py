import numpy as np
import pytest

from raybrain.config import InputError
from raybrain.decoders import prepare
from raybrain.decoders.normalisation import (
    average_repeats,
    fit_session_scaler,
    fit_target_scaler,
    noise_ceiling,
)


def trials(*, images=200, repeats=3, voxels=30, signal=1.0, noise=1.0, sessions=4, seed=0):
    """Return trials of ``signal`` and ``noise``, with gain and offset by session."""
    draw = np.random.default_rng(seed)
    response = signal * draw.standard_normal((images, voxels))
    image_id = draw.permutation(np.repeat(np.arange(images) * 10, repeats))
    session = np.sort(draw.integers(1, sessions + 1, len(image_id)))
    clean = response[image_id // 10] + noise * draw.standard_normal((len(image_id), voxels))
    gain = np.exp(draw.standard_normal((sessions + 1, voxels)))
    offset = 5 * draw.standard_normal((sessions + 1, voxels))
    betas = (clean * gain[session] + offset[session]).astype(np.float32)
    return betas, session, image_id, clean


def test_every_voxel_of_every_session_has_mean_0_and_deviation_1():
    betas, session, _, _ = trials()
    standard = fit_session_scaler(betas, session=session).transform(betas, session=session)
    for name in np.unique(session):
        np.testing.assert_allclose(standard[session == name].mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(standard[session == name].std(axis=0), 1, atol=1e-5)


def test_statistics_are_those_of_the_fitted_trials_alone():
    betas, session, _, _ = trials()
    train = np.random.default_rng(1).random(len(betas)) < 0.8
    scaler = fit_session_scaler(betas[train], session=session[train])
    other = betas.copy()
    other[~train] = 1e6
    again = fit_session_scaler(other[train], session=session[train])
    np.testing.assert_array_equal(again.mean, scaler.mean)
    rows = train & (session == 2)
    expected = (betas[~train & (session == 2)] - betas[rows].mean(axis=0)) / betas[rows].std(axis=0)
    found = scaler.transform(betas[~train], session=session[~train])
    np.testing.assert_allclose(found[session[~train] == 2], expected, atol=1e-4)


def test_an_unseen_session_is_scaled_by_pooled_statistics():
    betas, session, _, _ = trials()
    scaler = fit_session_scaler(betas, session=session)
    found = scaler.transform(betas[:5], session=np.full(5, 99))
    np.testing.assert_allclose(
        found, (betas[:5] - betas.mean(axis=0)) / betas.std(axis=0), atol=1e-4
    )


def test_a_session_with_few_trials_is_scaled_by_pooled_statistics():
    betas, session, _, _ = trials()
    session = session.copy()
    session[-3:] = 50
    scaler = fit_session_scaler(betas, session=session)
    assert 50 not in scaler.session
    found = scaler.transform(betas[-3:], session=session[-3:])
    np.testing.assert_allclose(
        found, (betas[-3:] - betas.mean(axis=0)) / betas.std(axis=0), atol=1e-4
    )


def test_large_offsets_lose_no_precision():
    draw = np.random.default_rng(2)
    betas = (1e4 + draw.standard_normal((500, 4))).astype(np.float32)
    scaler = fit_session_scaler(betas, session=np.ones(500, int))
    np.testing.assert_allclose(scaler.scale[0], betas.astype(float).std(axis=0), rtol=1e-5)


def test_constant_voxels_are_zero_in_their_session_and_dropped_if_zero_everywhere():
    betas, session, image_id, _ = trials()
    betas[:, 3] = 7.0
    betas[session == 1, 5] = 2.0
    examples = prepare(betas, session=session, image_id=image_id, repeats="trial")
    assert list(np.flatnonzero(~examples.voxels)) == [3]
    assert np.all(examples.betas[session == 1, 4] == 0)
    assert np.isfinite(examples.betas).all()


def test_nan_is_named():
    betas, session, _, _ = trials()
    betas[session == 2, 1] = np.nan
    with pytest.raises(ValueError, match="session 2 hold NaN or infinity in 1 voxels"):
        fit_session_scaler(betas, session=session)


def test_averaging_takes_the_mean_of_each_images_trials():
    betas, _, image_id, _ = trials(images=50)
    drop = np.random.default_rng(3).random(len(betas)) < 0.7
    averaged = average_repeats(betas[drop], image_id=image_id[drop])
    assert list(averaged.image_id) == sorted(set(image_id[drop]))
    for image, row, count in zip(averaged.image_id, averaged.betas, averaged.count, strict=True):
        own = betas[drop][image_id[drop] == image]
        assert count == len(own)
        np.testing.assert_allclose(row, own.mean(axis=0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("signal", [0.0, 0.38, 1.0])
def test_noise_ceiling_is_that_of_the_true_signal_to_noise_ratio(signal):
    _, _, image_id, clean = trials(images=1500, signal=signal)
    true = signal**2 / (signal**2 + 1 / 3)
    found = noise_ceiling(clean / clean.std(axis=0), image_id=image_id)
    assert np.abs(found.mean() - true) < 0.03


def test_noise_ceiling_without_repeats_says_what_to_do():
    with pytest.raises(InputError, match="shown more than once"):
        noise_ceiling(np.zeros((5, 2)), image_id=np.arange(5))


def test_selection_keeps_the_voxels_with_signal():
    betas, session, image_id, _ = trials(images=400)
    draw = np.random.default_rng(4)
    betas[:, 10:] = draw.standard_normal((len(betas), 20))
    examples = prepare(betas, session=session, image_id=image_id, min_noise_ceiling=0.4)
    assert list(np.flatnonzero(examples.voxels)) == list(range(10))
    given = np.linspace(0, 1, 30)
    examples = prepare(
        betas, session=session, image_id=image_id, min_noise_ceiling=0.9, ceiling=given
    )
    assert list(np.flatnonzero(examples.voxels)) == list(np.flatnonzero(given >= 0.9))
    with pytest.raises(InputError, match=r"no voxel reaches min_noise_ceiling=0.99; the best"):
        prepare(betas, session=session, image_id=image_id, min_noise_ceiling=0.99)


def test_other_trials_are_treated_as_the_fitted_ones():
    betas, session, image_id, _ = trials()
    train = image_id < 1500
    examples = prepare(betas[train], session=session[train], image_id=image_id[train])
    same = examples.like(betas[train], session=session[train], image_id=image_id[train])
    np.testing.assert_array_equal(same.betas, examples.betas)
    other = examples.like(betas[~train], session=session[~train], image_id=image_id[~train])
    assert list(other.image_id) == sorted(set(image_id[~train]))
    assert list(other.count) == [3] * len(other.image_id)


def test_missing_trials_and_voxels_are_named():
    none = np.zeros(0, int)
    with pytest.raises(InputError, match="no training trials"):
        prepare(np.zeros((0, 4)), session=none, image_id=none)
    with pytest.raises(InputError, match="hold no voxels"):
        prepare(np.zeros((4, 0)), session=np.ones(4), image_id=np.arange(4))
    with pytest.raises(InputError, match="none of the 2 voxels"):
        prepare(np.ones((4, 2)), session=np.ones(4), image_id=np.arange(4))


def test_predicting_the_mean_of_standardised_targets_has_loss_1():
    draw = np.random.default_rng(5)
    count = draw.integers(1, 4, 100)
    targets = (draw.standard_normal((100, 6)) * [1, 2, 3, 0, 5, 6] + 40).astype(np.float32)
    scaler = fit_target_scaler(targets, count=count)
    standard = scaler.transform(targets)
    assert standard.shape == (100, 5)
    assert np.average((standard**2).mean(axis=1), weights=count) == pytest.approx(1, rel=1e-4)
    np.testing.assert_allclose(scaler.restore(standard), targets, rtol=1e-5)
    with pytest.raises(InputError, match="none of the 2 target dimensions varies"):
        fit_target_scaler(np.ones((10, 2)))


def test_what_differs_by_the_rounding_of_a_batch_is_constant():
    """The first token of all captions is the same; encoded in batches of two shapes it is not."""
    draw = np.random.default_rng(0)
    level = np.float32([1.0, 1e-3, -0.4])
    first = np.repeat(level[None], 40, axis=0)
    first[32:] += np.float32(3e-7) * draw.standard_normal((8, 3), np.float32)
    targets = np.concatenate([first, draw.standard_normal((40, 2), np.float32)], axis=1)
    scaler = fit_target_scaler(targets)
    assert scaler.varying.tolist() == [False, False, False, True, True]
    assert scaler.deviation[:3].tolist() == [0, 0, 0]
    assert scaler.scale == pytest.approx(np.sqrt((targets[:, 3:].var(axis=0)).mean()), rel=1e-5)
    few = fit_target_scaler(1e-3 * targets[:, 3:] + 1)
    assert few.varying.all()
