"""Fit one ridge in a process of its own and print seconds, test R² and peak memory."""

import json
import resource
import sys
import time
import warnings

import numpy as np


def problem(*, images, voxels, targets, test=500):
    """Return betas of a low-dimensional brain with noise, and targets that follow from it."""
    draw = np.random.default_rng(0)
    rank = min(200, voxels // 2)
    encode = draw.standard_normal((rank, voxels), np.float32)
    decode = draw.standard_normal((rank, targets), np.float32) / np.sqrt(rank, dtype=np.float32)
    hidden = draw.standard_normal((images + test, rank), np.float32)
    hidden *= np.float32(np.arange(1, rank + 1) ** -0.5)
    betas = hidden @ encode
    betas += 2 * betas.std() * draw.standard_normal(betas.shape, np.float32)
    values = hidden @ decode
    values += values.std() * draw.standard_normal(values.shape, np.float32)
    return betas[:images], values[:images], betas[images:], values[images:]


def raybrain_fit(betas, targets, alphas):
    from raybrain.decoders.ridge import fit_ridge

    return fit_ridge(betas, targets=targets, alphas=alphas)


def ridge_cv(betas, targets, alphas):
    from himalaya.ridge import RidgeCV

    absolute = np.array(alphas) * mean_eigenvalue(betas)
    model = RidgeCV(alphas=absolute, fit_intercept=True, cv=5, solver_params={"warn": False})
    return model.fit(betas, targets)


def kernel_ridge_cv(betas, targets, alphas):
    from himalaya.kernel_ridge import KernelRidgeCV

    absolute = np.array(alphas) * mean_eigenvalue(betas)
    return KernelRidgeCV(alphas=absolute, fit_intercept=True, cv=5).fit(betas, targets)


def mean_eigenvalue(betas):
    return float(((betas - betas.mean(axis=0)) ** 2).sum() / min(len(betas) - 1, betas.shape[1]))


def main():
    contestant, *sizes = sys.argv[1:]
    images, voxels, targets = map(int, sizes)
    betas, values, test_betas, test_values = problem(images=images, voxels=voxels, targets=targets)
    alphas = np.logspace(-3, 3, 13)
    fit = {"raybrain": raybrain_fit, "RidgeCV": ridge_cv, "KernelRidgeCV": kernel_ridge_cv}
    # Imports, and the threads of the BLAS, are no part of the fit.
    warnings.simplefilter("ignore")
    fit[contestant](betas[:64, :32], values[:64, :16], alphas)
    start, processor = time.perf_counter(), time.process_time()
    model = fit[contestant](betas, values, alphas)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    error = ((np.asarray(model.predict(test_betas)) - test_values) ** 2).mean(axis=0)
    print(
        json.dumps(
            {
                "seconds": seconds,
                "processor_seconds": processor,
                "r2": float((1 - error / test_values.var(axis=0)).mean()),
                "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            }
        )
    )


if __name__ == "__main__":
    main()
