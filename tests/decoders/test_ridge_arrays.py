"""Ridge through torch, as on a GPU, beside ridge through NumPy in float64."""

import sys
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from raybrain import cluster, config
from raybrain.decoders import prepare, ridge, ridge_factor, train_ridge
from raybrain.decoders.ridge_arrays import eigenpairs, full_precision, host, namespace, place


def dominated(images, voxels, *, targets=150, loud=3.0):
    """Betas that mostly share one course, as of attention, with targets in what they do not."""
    draw = np.random.default_rng(images + voxels)
    quiet = draw.standard_normal((images, voxels)) * np.arange(1, voxels + 1) ** -0.5
    betas = quiet + loud * draw.standard_normal((images, 1)) * draw.standard_normal(voxels) / 10
    weights = draw.standard_normal((voxels, targets))
    values = quiet @ weights + draw.standard_normal((images, targets)) * draw.uniform(0, 9, targets)
    return betas.astype(np.float32), values.astype(np.float32)


@pytest.mark.parametrize(("images", "voxels"), [(400, 150), (250, 600), (300, 300)])
@pytest.mark.parametrize("left_out", ["images", "folds"])
def test_float32_eigenvectors_choose_and_predict_as_float64_does(images, voxels, left_out):
    betas, targets = dominated(images, voxels)
    draw = np.random.default_rng(1)
    given = {
        "targets": targets,
        "count": draw.integers(1, 4, images),
        "folds": draw.integers(0, 6, images) if left_out == "folds" else None,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exact, found = (ridge.fit_ridge(betas, **given, device=device) for device in (None, "cpu"))
    assert np.mean(found.alpha == exact.alpha) >= 0.99
    expected = exact.predict(betas) - exact.mean
    same = found.alpha == exact.alpha
    error = np.linalg.norm((found.predict(betas) - found.mean - expected)[:, same])
    assert error <= 1e-3 * np.linalg.norm(expected[:, same])
    np.testing.assert_allclose(found.held_out_r2, exact.held_out_r2, atol=1e-4)
    np.testing.assert_allclose(found.gain[same], exact.gain[same], rtol=1e-3)
    for part in (found.weights, found.mean, found.deviation, found.alpha, found.gain):
        assert type(part) is np.ndarray
        assert part.dtype == np.float32


@pytest.mark.parametrize("rank", [40, 120, 400])
def test_eigenpairs_of_float32_solve_as_those_of_float64(rank):
    draw = np.random.default_rng(rank)
    rows = draw.standard_normal((300, rank)) * np.arange(1, rank + 1) ** -1.0
    rows -= rows.mean(axis=0)
    matrix = rows @ rows.T
    penalty = 1e-3 * matrix.trace() / len(matrix)
    intercept = np.full(300, 300**-0.5)
    values, basis = map(
        host, eigenpairs(place(matrix, device="cpu"), without=place(intercept, device="cpu"))
    )
    assert basis.shape == (300, 299)
    np.testing.assert_allclose(basis.T @ basis, np.eye(299), atol=1e-6)
    np.testing.assert_allclose(intercept @ basis, 0, atol=1e-7)
    right = draw.standard_normal((300, 5))
    right -= right.mean(axis=0)
    wanted = np.linalg.solve(matrix + penalty * np.eye(300), right)
    solved = basis @ ((basis.T @ right) / (values[:, None] + penalty))
    assert np.linalg.norm(solved - wanted) <= 1e-3 * np.linalg.norm(wanted)


@pytest.mark.parametrize(("images", "voxels"), [(200, 30), (600, 250)])
def test_voxels_that_repeat_others_add_nothing(images, voxels):
    betas, targets = dominated(images, voxels)
    twice = np.concatenate([betas, betas, np.zeros((images, 2), np.float32)], axis=1)
    factor = ridge.factorise(twice, device="cpu")
    assert factor.form == "primal"
    assert len(factor.eigenvalues) == voxels
    alone, both = (
        ridge.fit_ridge(one, targets=targets, alphas=[0.1], device="cpu") for one in (betas, twice)
    )
    # Twice the variance in as many directions: the same penalty in units of its mean.
    np.testing.assert_allclose(both.predict(twice), alone.predict(betas), atol=2e-3)


@pytest.mark.parametrize("kind", ["ridge", "kernel_ridge"])
def test_a_decoder_is_the_same_wherever_it_is_fitted(kind):
    betas, targets = dominated(120, 60, targets=20)
    section = config.Ridge() if kind == "ridge" else config.KernelRidge()
    examples = prepare(betas, session=np.repeat([1, 2], 60), image_id=np.arange(120))
    examples = replace(examples, ceiling=np.ones(examples.betas.shape[1], np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        here, there = (
            train_ridge(examples, targets=targets, section=section, device=device)
            for device in (None, "cpu")
        )
    given = {"session": np.repeat([1, 2], 60), "image_id": np.arange(120)}
    expected = here.predict(betas, **given).estimates
    found = there.predict(betas, **given).estimates
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())


def test_a_factor_moves_and_what_is_read_only_is_left_as_it_is():
    betas, targets = dominated(50, 80, targets=8)
    for array in (betas, targets):
        array.flags.writeable = False  # as arrays in Ray's object store are
    kept = betas.copy(), targets.copy()
    factor = ridge.factorise(betas, device="cpu")
    assert (factor.device, factor.on(None).device) == ("cpu", None)
    blocks = [
        ridge.solve_block(one, targets=targets, alphas=[1.0])
        for one in (factor, factor.on(None), factor.on(None).on("cpu"))
    ]
    np.testing.assert_allclose(blocks[1].weights, blocks[0].weights, atol=1e-5)
    np.testing.assert_array_equal(blocks[2].weights, blocks[0].weights)
    tensors = torch.tensor(kept[0]), torch.tensor(kept[1])
    already = ridge.fit_ridge(tensors[0], targets=tensors[1], alphas=[1.0], device="cpu")
    np.testing.assert_array_equal(already.weights, blocks[0].weights)
    np.testing.assert_array_equal(betas, kept[0])
    np.testing.assert_array_equal(targets, kept[1])


def test_targets_in_halves_and_doubles_are_solved_in_floats():
    betas, targets = dominated(60, 20, targets=4)
    expected = ridge.fit_ridge(betas, targets=targets, alphas=[1.0], device="cpu")
    for dtype, tolerance in ((np.float16, 2e-2), (np.float64, 1e-4)):
        fit = ridge.fit_ridge(betas, targets=targets.astype(dtype), alphas=[1.0], device="cpu")
        assert fit.weights.dtype == np.float32
        np.testing.assert_allclose(fit.weights, expected.weights, atol=tolerance)


def test_blocks_fill_what_is_free(monkeypatch):
    free = {"mem_get_info": (6 * 2**30, 0), "memory_reserved": 3 * 2**30, "memory_allocated": 2**30}
    for name, value in free.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert ridge_factor.working_memory("cuda:0") == 4 * 2**30
    assert ridge_factor.working_memory("cpu") == ridge_factor.working_memory(None)
    betas, _ = dominated(50, 80)
    numpy, tensors = ridge.factorise(betas), ridge.factorise(betas, device="cpu")
    numbers = 5 * 50 + 4 * 49 + 80
    for factor in (numpy, tensors):
        assert factor.targets_per_block(4 * numbers * 100) == 100
        assert factor.targets_per_block(1) == 16
    assert tensors.targets_per_block(2**40) == ridge_factor.TARGETS_ON_GPU
    assert numpy.targets_per_block(2**40) > ridge_factor.TARGETS_ON_GPU


def test_products_are_of_float32_and_the_setting_is_put_back():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with full_precision("cpu"):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert namespace(np.ones(1)) is np


def test_a_gpu_that_ray_gave_is_found_and_no_other(monkeypatch):
    assert cluster.gpu() is None  # Ray did not start this process
    given = SimpleNamespace(is_initialized=lambda: True, get_gpu_ids=lambda: ["0"])
    monkeypatch.setitem(sys.modules, "ray", given)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cluster.gpu() is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert cluster.gpu() == "cuda:0"
    given.get_gpu_ids = list
    assert cluster.gpu() is None
