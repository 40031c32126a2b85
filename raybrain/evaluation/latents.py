"""Scores of predicted targets before any image is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from raybrain.evaluation.identification import two_way
from raybrain.evaluation.statistics import bootstrap

ERROR, ERROR_OF_MEAN, ERROR_OF_RIDGE = "error", "error_of_mean", "error_of_ridge"


@dataclass(frozen=True)
class LatentScores:
    """How well one target is predicted, by dimension and in all, beside predicting the mean."""

    r2: NDArray[np.float64]
    """(dimension,) 1 - squared error / squared distance from the test mean; NaN if constant."""
    pearson: NDArray[np.float64]
    """(dimension,) correlation over images; NaN if the truth is constant, 0 if the prediction is.
    Chance is 0."""
    ceiling: NDArray[np.float64] | None
    """(dimension,) the share of the predictions' variance that repeats of an image agree on, where
    there are repeats: noise leaves no larger R², and no correlation above its square root."""
    mse: float
    """Mean squared error over images and dimensions, in the squared unit of the target."""
    mse_low: float
    """95 % bootstrap interval over images."""
    mse_high: float
    """Upper end of the interval."""
    mse_of_mean: float
    """What predicting the training mean for every image scores."""
    mse_of_ridge: float | None
    """What ridge on the same voxels scores, where it was fitted beside the decoder."""
    identification: float
    """Two-way identification on the flattened target; chance is one half."""
    n: int
    """Images."""
    constant: int
    """Dimensions left out of `r2` and `pearson` because the truth does not vary."""
    errors: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """`ERROR`, `ERROR_OF_MEAN`, `ERROR_OF_RIDGE` where there is ridge -> (image,) mean squared
    errors over dimensions."""

    def summary(self) -> dict[str, float]:
        """Return single numbers for logging, floors and chance beside the scores."""
        numbers = {
            "r2_mean": _mean(self.r2),
            "r2_median": float(np.nanmedian(self.r2)) if self.constant < self.r2.size else np.nan,
            "pearson_mean": _mean(self.pearson),
            "mse": self.mse,
            "mse_low": self.mse_low,
            "mse_high": self.mse_high,
            "mse_of_mean": self.mse_of_mean,
            "skill": 1.0 - self.mse / self.mse_of_mean if self.mse_of_mean else np.nan,
            "two_way": self.identification,
            "two_way_chance": 0.5,
            "n": float(self.n),
        }
        if self.mse_of_ridge is not None:
            numbers["mse_of_ridge"] = self.mse_of_ridge
        if self.ceiling is not None:
            numbers["r2_ceiling_mean"] = _mean(self.ceiling)
        return {name: value for name, value in numbers.items() if np.isfinite(value)}


def latent_scores(
    *,
    true: NDArray[np.floating],
    predicted: NDArray[np.floating],
    training_mean: NDArray[np.floating],
    ridge: NDArray[np.floating] | None = None,
    ceiling: NDArray[np.floating] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> LatentScores:
    """Return R², Pearson r and MSE of predicted targets beside the MSE of the training mean.

    Parameters
    ----------
    true, predicted
        (image, ...); trailing axes are flattened into dimensions.
    training_mean : ndarray, shape (...)
        The prediction that knows nothing of the brain; shape of one image's target.
    ridge
        (image, ...), predictions of ridge on the same voxels, if there are any.
    ceiling
        (dimension,), the largest R² that noise leaves possible, if known.
    resamples
        Of the images, for the interval of the MSE.
    seed
        Of the resamples.

    Raises
    ------
    ValueError
        If shapes do not fit or there are fewer than two images.
    """
    if true.shape != predicted.shape or true.shape[1:] != training_mean.shape or len(true) < 2:
        raise ValueError(
            f"true and predicted targets are (image, ...) with at least 2 images and a mean of "
            f"(...); found {true.shape}, {predicted.shape} and {training_mean.shape}"
        )
    truth = true.reshape(len(true), -1).astype(np.float64)
    guess = predicted.reshape(len(true), -1).astype(np.float64)
    error = (guess - truth) ** 2
    spread = ((truth - truth.mean(axis=0)) ** 2).sum(axis=0)
    # A dimension that varies only by rounding would turn rounding into an R² of minus millions.
    varies = spread > 1e-12 * np.maximum((truth**2).sum(axis=0), np.finfo(float).tiny)
    r2 = np.full(truth.shape[1], np.nan)
    r2[varies] = 1.0 - error.sum(axis=0)[varies] / spread[varies]
    interval = bootstrap(error.mean(axis=1), resamples=resamples, seed=seed)
    errors = {ERROR: error.mean(axis=1)}
    from_mean = (training_mean.reshape(1, -1).astype(np.float64) - truth) ** 2
    errors[ERROR_OF_MEAN] = from_mean.mean(axis=1)
    if ridge is not None:
        beside = ridge.reshape(len(true), -1).astype(np.float64)
        errors[ERROR_OF_RIDGE] = ((beside - truth) ** 2).mean(axis=1)
    return LatentScores(
        r2=r2,
        pearson=_pearson(truth, guess, varies=varies),
        ceiling=None if ceiling is None else np.asarray(ceiling, dtype=np.float64).reshape(-1),
        mse=_mse(predicted, truth=truth),
        mse_low=float(interval.low),
        mse_high=float(interval.high),
        mse_of_mean=float(from_mean.mean()),
        mse_of_ridge=None if ridge is None else _mse(ridge, truth=truth),
        identification=float(two_way(seen=truth, reconstructed=guess).mean()),
        n=len(truth),
        constant=int((~varies).sum()),
        errors=errors,
    )


def _mse(predicted: NDArray[np.floating], *, truth: NDArray[np.float64]) -> float:
    return float(((predicted.reshape(len(truth), -1).astype(np.float64) - truth) ** 2).mean())


def _pearson(
    truth: NDArray[np.float64], guess: NDArray[np.float64], *, varies: NDArray[np.bool_]
) -> NDArray[np.float64]:
    a = truth - truth.mean(axis=0)
    b = guess - guess.mean(axis=0)
    lengths = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    r = np.divide((a * b).sum(axis=0), lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return np.where(varies, r, np.nan)


def _mean(values: NDArray[np.float64]) -> float:
    kept = values[np.isfinite(values)]
    return float(kept.mean()) if kept.size else float("nan")
