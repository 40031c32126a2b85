"""Ridge against closed forms, brute force, scikit-learn and himalaya."""

import warnings

import numpy as np
import pytest

from raybrain.decoders import ridge
from raybrain.decoders.ridge_selection import choose_penalties, leave_one_out


def problem(*, images, voxels, targets=7, noise=1.0, seed=0):
    draw = np.random.default_rng(seed)
    betas = draw.standard_normal((images, voxels)) @ draw.standard_normal((voxels, voxels))
    betas = (betas / betas.std() + 0.3).astype(np.float32)
    weights = draw.standard_normal((voxels, targets)) / np.sqrt(voxels)
    values = betas @ weights + noise * draw.standard_normal((images, targets)) + 5.0
    return betas, values.astype(np.float32)


def closed_form(betas, targets, *, count, alpha):
    """Weights and intercept by the normal equations, in float64."""
    betas, targets = betas.astype(float), targets.astype(float)
    count = np.asarray(count, float)[:, None]
    centre, mean = (count * betas).sum(0) / count.sum(), (count * targets).sum(0) / count.sum()
    gram = (count * (betas - centre)).T @ (betas - centre)
    weights = np.linalg.solve(
        gram + alpha * np.eye(betas.shape[1]), (count * (betas - centre)).T @ (targets - mean)
    )
    return weights, mean - centre @ weights


@pytest.fixture(params=[None, "cpu"], ids=["numpy", "torch"])
def device(request):
    """Where ridge is computed; torch on the CPU does what it does on a GPU."""
    return request.param


SHAPES = [(60, 12), (25, 40), (30, 30), (31, 30), (30, 31)]


@pytest.mark.parametrize(("images", "voxels"), SHAPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_weights_are_those_of_the_normal_equations(images, voxels, weighted, device):
    betas, targets = problem(images=images, voxels=voxels)
    draw = np.random.default_rng(1)
    count = draw.integers(1, 4, images) if weighted else np.ones(images, int)
    factor = ridge.factorise(betas, count=count)
    fit = ridge.fit_ridge(betas, targets=targets, count=count, alphas=[0.1], device=device)
    weights, intercept = closed_form(
        betas, targets, count=count, alpha=0.1 * factor.mean_eigenvalue
    )
    new = draw.standard_normal((50, voxels)).astype(np.float32)
    expected = new @ weights + intercept
    np.testing.assert_allclose(fit.predict(new), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("images", "voxels"), SHAPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_held_out_error_is_that_of_refitting_without_each_image(images, voxels, weighted, device):
    betas, targets = problem(images=images, voxels=voxels)
    draw = np.random.default_rng(2)
    count = draw.integers(1, 4, images) if weighted else np.ones(images, int)
    unit = ridge.factorise(betas, count=count).mean_eigenvalue
    alphas = np.array([1e-3, 0.03, 1.0, 30.0])
    errors = np.zeros((len(alphas), targets.shape[1]))
    predictions = np.zeros((len(alphas), *targets.shape))
    for at, alpha in enumerate(alphas):
        for image in range(images):
            rest = np.arange(images) != image
            weights, intercept = closed_form(
                betas[rest], targets[rest], count=count[rest], alpha=alpha * unit
            )
            predictions[at, image] = betas[image].astype(float) @ weights + intercept
        errors[at] = count @ (predictions[at] - targets) ** 2 / count.sum()
    mean = count @ targets / count.sum()
    variance = count @ (targets - mean) ** 2 / count.sum()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = ridge.fit_ridge(betas, targets=targets, count=count, alphas=alphas, device=device)
    best = errors.argmin(axis=0)
    np.testing.assert_allclose(fit.alpha, alphas[best], rtol=1e-6)
    np.testing.assert_allclose(fit.held_out_r2, 1 - errors.min(axis=0) / variance, atol=2e-4)
    chosen = predictions[best, :, np.arange(targets.shape[1])].T
    spread = np.sqrt(count @ (chosen - count @ chosen / count.sum()) ** 2 / count.sum())
    np.testing.assert_allclose(fit.gain, np.sqrt(variance) / spread, rtol=1e-3)


@pytest.mark.parametrize(("images", "voxels"), [(80, 20), (50, 90)])
def test_agrees_with_scikit_learn_leave_one_out(images, voxels, device):
    from sklearn.linear_model import RidgeCV

    betas, targets = problem(images=images, voxels=voxels, targets=12)
    unit = ridge.factorise(betas).mean_eigenvalue
    alphas = np.logspace(-3, 1, 9)
    reference = RidgeCV(alphas=alphas * unit, alpha_per_target=True).fit(
        betas.astype(float), targets.astype(float)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = ridge.fit_ridge(betas, targets=targets, alphas=alphas, device=device)
    np.testing.assert_allclose(fit.alpha * unit, reference.alpha_, rtol=1e-5)
    np.testing.assert_allclose(
        fit.weights.T, reference.coef_, atol=1e-4 * np.abs(reference.coef_).max()
    )


def test_fitting_trials_is_fitting_averages_with_the_scatter_of_repeats_as_a_penalty():
    betas, targets = problem(images=40, voxels=15)
    draw = np.random.default_rng(3)
    count = draw.integers(1, 4, 40)
    image = np.repeat(np.arange(40), count)
    trials = betas[image] + 0.5 * draw.standard_normal((len(image), 15)).astype(np.float32)
    averaged = np.stack([trials[image == i].mean(axis=0) for i in range(40)])
    alpha = 7.0
    unit = ridge.factorise(averaged, count=count).mean_eigenvalue
    fit = ridge.fit_ridge(averaged, targets=targets, count=count, alphas=[alpha / unit])
    within = (trials - averaged[image]).astype(float)
    gram = within.T @ within
    centre = count @ averaged / count.sum()
    mean = count @ targets / count.sum()
    left = (count[:, None] * (averaged - centre)).T.astype(float)
    by_hand = np.linalg.solve(
        left @ (averaged - centre) + gram + alpha * np.eye(15), left @ (targets - mean)
    )
    on_trials, _ = closed_form(trials, targets[image], count=np.ones(len(image)), alpha=alpha)
    np.testing.assert_allclose(by_hand, on_trials, rtol=1e-5, atol=1e-6)
    on_averages, _ = closed_form(averaged, targets, count=count, alpha=alpha)
    np.testing.assert_allclose(fit.weights, on_averages, atol=1e-4)


@pytest.mark.parametrize("voxels", [20, 120])
def test_a_linear_gaussian_brain_is_decoded_to_its_ceiling(voxels):
    """The posterior mean is the best any decoder can do; its R² is known in closed form."""
    draw = np.random.default_rng(4)
    dimensions, noise = 10, 1.5
    encode = draw.standard_normal((dimensions, voxels))
    images = 1500

    def sample(n):
        latent = draw.standard_normal((n, dimensions))
        betas = latent @ encode + noise * draw.standard_normal((n, voxels))
        return betas.astype(np.float32), latent.astype(np.float32)

    posterior = np.linalg.inv(np.eye(dimensions) + encode @ encode.T / noise**2)
    ceiling = 1 - np.diag(posterior)
    betas, latents = sample(images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = ridge.fit_ridge(betas, targets=latents)
    new, truth = sample(3000)
    reached = 1 - ((fit.predict(new) - truth) ** 2).mean(axis=0) / truth.var(axis=0)
    assert reached.mean() >= 0.97 * ceiling.mean()
    assert reached.mean() <= ceiling.mean() + 0.02
    assert fit.held_out_r2.mean() == pytest.approx(reached.mean(), abs=0.03)


@pytest.mark.parametrize(("images", "voxels"), [(300, 40), (120, 400)])
def test_shuffled_trials_give_no_credit(images, voxels):
    betas, targets = problem(images=images, voxels=voxels, targets=40, noise=0.1)
    shuffled = targets[np.random.default_rng(5).permutation(images)]
    with pytest.warns(UserWarning, match="chose the smallest penalty"):
        fit = ridge.fit_ridge(betas, targets=shuffled)
    new, truth = problem(images=2000, voxels=voxels, targets=40, noise=0.1, seed=6)
    r2 = 1 - ((fit.predict(new) - truth) ** 2).mean(axis=0) / truth.var(axis=0)
    assert r2.mean() <= 0
    assert fit.held_out_r2.mean() <= 0.01


def test_gain_gives_held_out_predictions_the_spread_of_the_targets():
    betas, targets = problem(images=1000, voxels=30, noise=2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = ridge.fit_ridge(betas[:600], targets=targets[:600])
    predictions = fit.predict(betas[600:])
    assert np.all(predictions.std(axis=0) < 0.95 * targets[:600].std(axis=0))
    rescaled = fit.mean + fit.gain * (predictions - fit.mean)
    np.testing.assert_allclose(rescaled.std(axis=0), targets[:600].std(axis=0), rtol=0.12)


def test_constant_targets_are_predicted_as_constants_without_credit(device):
    betas, targets = problem(images=60, voxels=10)
    targets[:, 2] = 28.125
    targets[:, 4] = 0.0
    jitter = np.random.default_rng(7).standard_normal(60).astype(np.float32)
    targets[:, 5] = 28.0 + 3e-6 * jitter
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # four targets are few for a share of 5 %
        fit = ridge.fit_ridge(betas, targets=targets, device=device)
    constant = [2, 4, 5]
    new = problem(images=20, voxels=10, seed=8)[0]
    np.testing.assert_allclose(
        fit.predict(new)[:, constant], np.tile([28.125, 0.0, 28.0], (20, 1)), rtol=1e-6
    )
    assert np.all(fit.held_out_r2[constant] == 0)
    assert np.all(fit.gain[constant] == 1)
    assert np.isnan(fit.alpha[constant]).all()
    for part in (fit.weights, fit.gain, fit.held_out_r2):
        assert np.isfinite(part).all()


def test_blocks_of_targets_give_the_same_fit(device):
    betas, targets = problem(images=50, voxels=70, targets=100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = ridge.fit_ridge(betas, targets=targets, device=device)
        blocks = ridge.fit_ridge(betas, targets=targets, memory=1, device=device)
    np.testing.assert_allclose(blocks.weights, whole.weights, atol=1e-5)
    np.testing.assert_array_equal(blocks.alpha, whole.alpha)
    factor = ridge.factorise(betas, device=device)
    assert len(list(ridge.solve_blocks(factor, targets=targets, memory=1))) == 7


def test_one_voxel_gives_simple_regression(device):
    betas, targets = problem(images=40, voxels=1)
    fit = ridge.fit_ridge(betas, targets=targets, alphas=[1e-9], device=device)
    slope = [np.polyfit(betas[:, 0], column, 1)[0] for column in targets.T]
    np.testing.assert_allclose(fit.weights[0], slope, rtol=1e-4)


def test_a_short_grid_raises_an_alarm_with_the_numbers():
    betas, targets = problem(images=200, voxels=10, noise=0.01)
    with pytest.warns(UserWarning, match=r"of 7 targets 100.0% chose the smallest penalty \(1\)"):
        ridge.fit_ridge(betas, targets=targets, alphas=[1, 10, 100])


def test_faults_are_named(device):
    betas, targets = problem(images=20, voxels=5)
    with pytest.raises(ValueError, match="at least 3 training images, found 2"):
        ridge.factorise(betas[:2], device=device)
    with pytest.raises(ValueError, match="at least one voxel"):
        ridge.factorise(betas[:, :0], device=device)
    with pytest.raises(ValueError, match="none of the 5 voxels varies"):
        ridge.factorise(np.ones_like(betas), device=device)
    with pytest.raises(ValueError, match="should have 20 rows"):
        ridge.solve_block(ridge.factorise(betas, device=device), targets=targets[:10])
    with pytest.raises(ValueError, match="penalties should be positive"):
        ridge.fit_ridge(betas, targets=targets, alphas=[0.0, 1.0])
    targets[3, 1] = np.nan
    with pytest.raises(ValueError, match="1 target dimensions hold NaN"):
        ridge.fit_ridge(betas, targets=targets, device=device)
    betas[0, 0] = np.inf
    with pytest.raises(ValueError, match="1 voxels hold NaN"):
        ridge.factorise(betas, device=device)


@pytest.mark.parametrize(("images", "voxels"), [(60, 12), (40, 70)])
def test_left_out_folds_are_those_of_refitting_without_them(images, voxels, device):
    betas, targets = problem(images=images, voxels=voxels)
    draw = np.random.default_rng(9)
    count = draw.integers(1, 4, images)
    folds = draw.integers(0, 5, images)
    unit = ridge.factorise(betas, count=count).mean_eigenvalue
    alphas = np.array([1e-2, 0.1, 1.0, 10.0])
    errors = np.zeros((len(alphas), targets.shape[1]))
    for at, alpha in enumerate(alphas):
        for fold in range(5):
            out = folds == fold
            weights, intercept = closed_form(
                betas[~out], targets[~out], count=count[~out], alpha=alpha * unit
            )
            predictions = betas[out].astype(float) @ weights + intercept
            errors[at] += count[out] @ (predictions - targets[out]) ** 2 / count.sum()
    mean = count @ targets / count.sum()
    variance = count @ (targets - mean) ** 2 / count.sum()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = ridge.fit_ridge(
            betas, targets=targets, count=count, alphas=alphas, folds=folds, device=device
        )
    np.testing.assert_allclose(fit.alpha, alphas[errors.argmin(axis=0)], rtol=1e-6)
    np.testing.assert_allclose(fit.held_out_r2, 1 - errors.min(axis=0) / variance, atol=2e-4)


@pytest.mark.parametrize(("images", "voxels"), [(100, 30), (60, 90)])
def test_agrees_with_himalaya_on_the_same_penalties_and_folds(images, voxels, device):
    from himalaya.ridge import RidgeCV
    from sklearn.model_selection import KFold

    betas, targets = problem(images=images, voxels=voxels, targets=20)
    unit = ridge.factorise(betas).mean_eigenvalue
    alphas = np.logspace(-3, 2, 11)
    folds = np.empty(images, int)
    cv = KFold(n_splits=5)
    for number, (_, out) in enumerate(cv.split(betas)):
        folds[out] = number
    reference = RidgeCV(
        alphas=alphas * unit, fit_intercept=True, cv=cv, solver_params={"warn": False}
    )
    reference.fit(betas.astype(float), targets.astype(float))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = ridge.fit_ridge(betas, targets=targets, alphas=alphas, folds=folds, device=device)
    np.testing.assert_allclose(fit.alpha * unit, reference.best_alphas_, rtol=1e-5)
    largest = np.abs(reference.coef_).max()
    np.testing.assert_allclose(fit.weights, reference.coef_, atol=1e-4 * largest)
    new = problem(images=50, voxels=voxels, seed=10)[0]
    expected = reference.predict(new.astype(float))
    np.testing.assert_allclose(fit.predict(new), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("images", "voxels"), [(200, 40), (120, 300)])
@pytest.mark.parametrize("noise", [0.1, 3.0])
def test_bounds_choose_what_trying_every_penalty_chooses(images, voxels, noise):
    betas, targets = problem(images=images, voxels=voxels, targets=60, noise=noise)
    factor = ridge.factorise(betas)
    standard = ((targets - targets.mean(axis=0)) / targets.std(axis=0)).astype(np.float32)
    penalties = np.array(ridge.ALPHAS) * factor.mean_eigenvalue
    held_out = leave_one_out(factor, penalties=penalties)
    projected = factor.left.T @ standard

    chosen = choose_penalties(
        factor,
        standard=standard,
        projected=projected,
        penalties=penalties,
        held_out=held_out,
    )
    basis = factor.left.astype(float)
    losses = []
    for at, penalty in enumerate(penalties):
        share = factor.eigenvalues / (factor.eigenvalues + penalty)
        residual = standard - (basis * share) @ (basis.T @ standard)
        losses.append((held_out.errors(residual, at=at) ** 2).mean(axis=0))
    np.testing.assert_array_equal(chosen.at, np.argmin(losses, axis=0))
    # The reference is in float64, the products in float32: up to 2e-4 apart, by number of threads.
    np.testing.assert_allclose(chosen.loss, np.min(losses, axis=0), rtol=5e-4)
    assert chosen.computed < (0.7 if voxels < images else 0.9)


def test_stored_weights_predict_the_same(tmp_path):
    betas, targets = problem(images=50, voxels=70, targets=40)
    factor = ridge.factorise(betas)
    blocks = list(ridge.solve_blocks(factor, targets=targets, memory=1))
    stored = [
        ridge.store_block(block, path=tmp_path / "part" / f"{number}.safetensors")
        for number, block in enumerate(blocks)
    ]
    assert all(isinstance(block.weights, ridge.StoredWeights) for block in stored)
    kept = ridge.join_blocks(blocks, centre=factor.centre)
    on_disk = ridge.join_blocks(stored, centre=factor.centre)
    np.testing.assert_array_equal(on_disk.predict(betas), kept.predict(betas))


def test_grouped_folds_keep_groups_together_and_even():
    groups = np.repeat(np.arange(30), np.random.default_rng(11).integers(1, 20, 30))
    folds = ridge.grouped_folds(groups, number=5)
    for group in range(30):
        assert len(set(folds[groups == group])) == 1
    sizes = np.bincount(folds, minlength=5)
    assert sizes.max() - sizes.min() <= 20
    with pytest.raises(ValueError, match="3 folds need"):
        ridge.grouped_folds([1, 1, 2], number=3)
