"""Kernel ridge against scikit-learn, linear ridge, refitting, and functions no line can follow."""

import warnings

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge

from raybrain import config, outputs
from raybrain.config import InputError
from raybrain.decoders import load_decoder, prepare, train_ridge, write_model
from raybrain.decoders.normalisation import noise_ceiling
from raybrain.decoders.pattern_kernel import PatternKernel, voxel_weights
from raybrain.decoders.ridge import join_blocks, solve_block
from raybrain.decoders.ridge_arrays import host
from raybrain.decoders.ridge_factor import factorise, factorise_kernel
from raybrain.shipped import DEMO


@pytest.fixture(params=[None, "cpu"], ids=["numpy", "torch"])
def device(request):
    """Where ridge is computed; torch on the CPU does what it does on a GPU."""
    return request.param


def patterns(images=50, voxels=12, *, seed=0):
    draw = np.random.default_rng(seed)
    return draw.standard_normal((images, voxels)).astype(np.float32), draw.integers(1, 4, images)


def values(betas, *, targets=5, seed=1):
    draw = np.random.default_rng(seed)
    linear = betas @ draw.standard_normal((betas.shape[1], targets))
    return (np.tanh(linear) + 0.1 * draw.standard_normal(linear.shape) + 4.0).astype(np.float32)


def explicit(betas, others, *, centre, weight, width):
    """k by its formula, pair by pair, in float64."""
    left, right = ((one.astype(float) - centre) * weight for one in (betas, others))
    r = np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in right] for a in left])
    return np.exp(-(1 - r) / width)


def test_the_kernel_is_that_of_its_formula_and_knows_no_gain():
    betas, count = patterns()
    weight = np.random.default_rng(2).uniform(0.5, 2, betas.shape[1]).astype(np.float32)
    kernel = PatternKernel.fit(betas, count=count, weight=weight, width=0.7)
    centre = count @ betas.astype(float) / count.sum()
    new, _ = patterns(7, seed=3)
    wanted = explicit(new, betas, centre=centre, weight=weight, width=0.7)
    np.testing.assert_allclose(kernel.rows(new), wanted, rtol=2e-5)
    louder = (kernel.centre + 3 * (new - kernel.centre)).astype(np.float32)
    np.testing.assert_allclose(kernel.rows(louder), wanted, rtol=2e-5)
    silent = kernel.centre[None]
    np.testing.assert_allclose(kernel.rows(silent), np.exp(-1 / 0.7), rtol=1e-6)


@pytest.mark.parametrize("penalty", [0.01, 1.0])
def test_predictions_are_scikit_learns_on_the_centred_kernel(penalty, device):
    betas, count = patterns()
    targets = values(betas)
    kernel = PatternKernel.fit(
        betas, count=count, weight=np.ones(betas.shape[1], np.float32), width=0.8
    )
    among, new = kernel.rows(betas, device=device), kernel.rows(patterns(9, seed=4)[0])
    factor = factorise_kernel(among, count=count, device=device)
    fit = join_blocks(
        [solve_block(factor, targets=targets, alphas=[penalty])], centre=host(factor.centre)
    )

    among = host(among)
    share = count / count.sum()
    centring = np.eye(len(betas)) - np.outer(np.ones(len(betas)), share)
    centred = centring @ among.astype(float) @ centring.T
    mean = share @ targets.astype(float)
    peer = KernelRidge(alpha=penalty * factor.mean_eigenvalue, kernel="precomputed")
    peer.fit(centred, targets - mean, sample_weight=count)
    rows = (new.astype(float) - share @ among) @ centring.T
    np.testing.assert_allclose(fit.predict(new), peer.predict(rows) + mean, atol=2e-4)


def test_with_the_linear_kernel_it_is_linear_ridge():
    betas, count = patterns(40, 60)
    targets = values(betas)
    linear = factorise(betas, count=count)
    kernel = factorise_kernel(betas.astype(float) @ betas.T, count=count)
    assert kernel.mean_eigenvalue == pytest.approx(linear.mean_eigenvalue, rel=1e-5)
    new, _ = patterns(6, 60, seed=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = join_blocks([solve_block(linear, targets=targets)], centre=linear.centre)
        found = join_blocks([solve_block(kernel, targets=targets)], centre=kernel.centre)
    np.testing.assert_array_equal(found.alpha, expected.alpha)
    np.testing.assert_allclose(found.held_out_r2, expected.held_out_r2, atol=1e-4)
    np.testing.assert_allclose(found.predict(new @ betas.T), expected.predict(new), atol=2e-3)


def test_held_out_error_is_that_of_refitting_without_each_image(device):
    betas, count = patterns(30)
    targets = values(betas).astype(float)
    kernel = PatternKernel.fit(
        betas, count=count, weight=np.ones(betas.shape[1], np.float32), width=0.6
    )
    among = kernel.rows(betas).astype(float)
    factor = factorise_kernel(among, count=count, device=device)
    block = solve_block(factor, targets=targets.astype(np.float32), alphas=[0.2])
    penalty = 0.2 * factor.mean_eigenvalue

    errors = np.empty_like(targets)
    for image in range(len(betas)):
        rest = np.arange(len(betas)) != image
        # The equations of weights and intercept together, as they are without any centring.
        weight = np.diag(count[rest].astype(float))
        inner = among[np.ix_(rest, rest)]
        system = np.block(
            [
                [inner @ weight @ inner + penalty * inner, inner @ weight @ np.ones((29, 1))],
                [np.ones((1, 29)) @ weight @ inner, np.array([[weight.trace()]])],
            ]
        )
        right = np.concatenate([inner @ weight @ targets[rest], count[None, rest] @ targets[rest]])
        solution = np.linalg.lstsq(system, right, rcond=None)[0]
        errors[image] = among[image, rest] @ solution[:-1] + solution[-1] - targets[image]
    mean = count @ targets / count.sum()
    variance = count @ (targets - mean) ** 2
    expected = 1 - count @ errors**2 / variance
    np.testing.assert_allclose(block.held_out_r2, expected, atol=2e-4)


def trials(*, images=80, voxels=10, repeats=3, noise=None, seed=0):
    """Return betas, labels and the images' true patterns."""
    draw = np.random.default_rng(seed)
    clean = draw.standard_normal((images, voxels))
    image_id = draw.permutation(np.repeat(np.arange(images), repeats))
    spread = np.full(voxels, 0.5) if noise is None else noise
    betas = clean[image_id] + spread * draw.standard_normal((len(image_id), voxels))
    session = np.arange(len(image_id)) % 3
    return betas.astype(np.float32), {"session": session, "image_id": image_id}, clean


def test_it_follows_what_no_line_can():
    betas, labels, clean = trials(images=400, noise=np.full(10, 0.2))
    unit = clean / np.linalg.norm(clean, axis=1, keepdims=True)
    targets = np.stack([10 * unit[:, 0] * unit[:, 1], unit[:, 2]], axis=1).astype(np.float32)
    examples = prepare(betas, **labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        line = train_ridge(examples, targets=targets, section=config.Ridge())
        curve = train_ridge(examples, targets=targets, section=config.KernelRidge(width=1.0))
    assert line.held_out_r2[0] < 0.1
    assert curve.held_out_r2[0] > 0.6
    assert curve.held_out_r2[1] > 0.9


def test_voxels_weigh_by_the_power_of_their_ceiling_and_by_their_rois():
    noise = np.linspace(0.1, 4.0, 10)
    betas, labels, _ = trials(noise=noise)
    rois = {"V1": np.arange(10) < 6, "V2": np.arange(10) >= 4}
    examples = prepare(betas, **labels, rois=rois, estimate_ceiling=True)
    standard = examples.scaler.transform(betas, session=labels["session"])
    ceiling = noise_ceiling(standard, image_id=labels["image_id"])
    section = config.KernelRidge(ceiling_power=0.5, weights={"V1": 0.5, "V2": 3.0})
    factor = np.where(np.arange(10) < 4, 0.5, np.where(np.arange(10) < 6, 1.5, 3.0))
    found = voxel_weights(examples, section=section)
    np.testing.assert_allclose(found, np.sqrt(ceiling) * factor, rtol=1e-5)
    assert ceiling[0] > 0.95 > 0.5 > ceiling[-1]
    plain = voxel_weights(prepare(betas, **labels), section=config.KernelRidge())
    np.testing.assert_array_equal(plain, 1)


@pytest.mark.filterwarnings("ignore:of .* targets:UserWarning")
def test_noisy_voxels_do_less_harm_when_weighted():
    noise = np.where(np.arange(200) < 8, 0.3, 6.0)
    betas, labels, clean = trials(images=150, voxels=200, noise=noise)
    targets = clean[:, :4].astype(np.float32)
    examples = prepare(betas, **labels, estimate_ceiling=True)
    r2 = {
        power: train_ridge(
            examples, targets=targets, section=config.KernelRidge(width=3.0, ceiling_power=power)
        ).held_out_r2.mean()
        for power in (0.0, 1.0)
    }
    assert r2[1.0] > r2[0.0] + 0.05


def test_the_smallest_penalty_of_a_kernel_raises_no_alarm():
    betas, labels, clean = trials(noise=np.full(10, 0.05))
    examples = prepare(betas, **labels)
    section = config.KernelRidge(width=0.3, alphas=(1e-3, 1e-2, 1e-1))
    decoder = train_ridge(examples, targets=clean.astype(np.float32), section=section)
    assert (decoder.parameters["alpha"] == np.float32(1e-3)).all()
    hopeless = np.random.default_rng(8).permutation(clean).astype(np.float32)
    with pytest.warns(UserWarning, match="0.0% chose the smallest .* the largest"):
        train_ridge(examples, targets=hopeless, section=section)


def test_a_saved_decoder_predicts_the_same(tmp_path):
    betas, labels, clean = trials()
    section = config.KernelRidge(width=0.7, ceiling_power=0.5, rescale=False)
    examples = prepare(betas, **labels, estimate_ceiling=True)
    decoder = train_ridge(examples, targets=clean.astype(np.float32), section=section)
    again = load_decoder(decoder.save(tmp_path / "decoder"))
    write_model(decoder, tmp_path / "model", card="", about={}, arrays={})
    shared = load_decoder(tmp_path / "model")
    assert again.section == shared.section == section
    first, second, third = (one.predict(betas, **labels) for one in (decoder, again, shared))
    np.testing.assert_array_equal(first.values, second.values)
    np.testing.assert_array_equal(first.values, third.values)
    np.testing.assert_array_equal(first.estimates, first.values)
    with pytest.raises(ValueError, match="'kernel_ridge' is not a network"):
        again.network()


def test_what_cannot_be_weighed_is_refused_in_one_sentence():
    betas, labels, _ = trials(repeats=1)
    with pytest.raises(InputError, match=r"decoder\.ceiling_power needs training images .* once"):
        prepare(betas, **labels, estimate_ceiling=True)
    noise, labels, _ = trials()
    noise[:] = np.random.default_rng(0).standard_normal(noise.shape)
    examples = prepare(noise, **labels, estimate_ceiling=True)
    section = config.KernelRidge(ceiling_power=1.0)
    object.__setattr__(examples, "ceiling", np.zeros_like(examples.ceiling))
    with pytest.raises(InputError, match="no voxel answers repeats of a training image alike"):
        voxel_weights(examples, section=section)
    unknown = config.KernelRidge(weights={"V2": 2.0})
    with pytest.raises(InputError, match=r"weights names the ROI 'V2', but no ROIs are known"):
        voxel_weights(examples, section=unknown)


def test_rois_that_weigh_are_looked_up_in_the_catalog_and_need_not_be_decoded_from():
    demo = config.Experiment.load(DEMO)
    narrower = demo.with_("decode.latents.rois=[V1]")
    assert narrower.decode.latents.named_rois == ("V1", "ventral")
    outputs.dataset_entry(narrower)
    wrong = demo.with_("decode.latents.decoder.weights={V9: 2}")
    with pytest.raises(InputError, match=r"ROI 'V9' is not in the catalog entry simulated"):
        outputs.dataset_entry(wrong)


@pytest.mark.parametrize(
    ("kernel", "sentence"),
    [
        (np.eye(2), "at least 3 training images, found 2"),
        (np.full((4, 4), np.nan), "NaN or infinity"),
        (np.ones((5, 5)), "patterns of all 5 training images are alike"),
    ],
)
def test_kernels_that_tell_nothing_are_refused(kernel, sentence):
    with pytest.raises(ValueError, match=sentence):
        factorise_kernel(kernel)
