"""Statistics that turn betas and targets into what a decoder is fitted on; training trials only.

Every function here is given the trials a decoder is fitted on and nothing else, so nothing of the
test set can enter a mean, a scale or a selection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from raybrain.config import InputError
from raybrain.decoders.ridge_arrays import Array, device_of, namespace, place

Floats = NDArray[np.float32]
Integers = NDArray[np.integer]
Counts = NDArray[np.integer] | NDArray[np.floating]

FEWEST_TRIALS = 20
"""Below this, a session's mean is off by more than .22 sd and its sd by more than 16 %."""

CONSTANT = 1e-5
"""A spread below this share of the level is rounding, such as that of a start-of-text embedding."""

ROWS_AT_ONCE = 256


class Rows(Protocol):
    """A matrix that gives float32 slices of its rows: an array, or one that lies on disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""

    def __getitem__(self, rows: slice, /) -> NDArray:
        """Return a slice of rows, all columns."""


@dataclass(frozen=True)
class SessionScaler:
    """Betas as z-scores per voxel within each scan session.

    Attributes
    ----------
    session : ndarray of int64, shape (session,)
        Sessions with statistics of their own.
    mean, scale : ndarray of float32, shape (session, voxel)
        Mean and standard deviation over the fitted trials of a session. A voxel that is constant in
        a session has scale 1, hence z-score 0.
    pooled_mean, pooled_scale : ndarray of float32, shape (voxel,)
        Over all fitted trials, for sessions that were not seen or had fewer than 20 trials.
    """

    session: NDArray[np.int64]
    mean: Floats
    scale: Floats
    pooled_mean: Floats
    pooled_scale: Floats

    def transform(self, betas: NDArray, *, session: Integers) -> Floats:
        """Return z-scores of ``betas`` (trial, voxel), given the session of each trial.

        Parameters
        ----------
        betas : ndarray, shape (trial, voxel)
            The voxels that the scaler was fitted on.
        session : ndarray of int, shape (trial,)
            One without statistics of its own gets the pooled ones.

        Raises
        ------
        ValueError
            If there are other voxels than the scaler was fitted on.
        """
        if betas.ndim != 2 or betas.shape[1] != len(self.pooled_mean):
            raise ValueError(
                f"betas should be (trial, {len(self.pooled_mean)}), found {betas.shape}; "
                f"give the voxels the scaler was fitted on"
            )
        known = {int(name): row for row, name in enumerate(self.session)}
        result = np.empty(betas.shape, np.float32)
        for name in np.unique(session):
            rows = np.flatnonzero(session == name)
            at = known.get(int(name))
            mean = self.pooled_mean if at is None else self.mean[at]
            scale = self.pooled_scale if at is None else self.scale[at]
            result[rows] = (betas[rows] - mean) / scale
        return result

    @staticmethod
    def join(parts: Sequence[SessionScaler]) -> SessionScaler:
        """Return the scaler of all voxels from those of consecutive voxels, fitted alike."""
        return SessionScaler(
            session=parts[0].session,
            mean=np.concatenate([part.mean for part in parts], axis=1),
            scale=np.concatenate([part.scale for part in parts], axis=1),
            pooled_mean=np.concatenate([part.pooled_mean for part in parts]),
            pooled_scale=np.concatenate([part.pooled_scale for part in parts]),
        )

    def select(self, voxels: NDArray[np.bool_]) -> SessionScaler:
        """Return the scaler of the voxels in a mask (voxel,).

        Parameters
        ----------
        voxels : ndarray of bool, shape (voxel,)
            Which voxels of this scaler to keep.
        """
        return SessionScaler(
            session=self.session,
            mean=self.mean[:, voxels],
            scale=self.scale[:, voxels],
            pooled_mean=self.pooled_mean[voxels],
            pooled_scale=self.pooled_scale[voxels],
        )


def fit_session_scaler(betas: NDArray, *, session: Integers) -> SessionScaler:
    """Return the mean and standard deviation of every voxel in every scan session.

    Parameters
    ----------
    betas : ndarray, shape (trial, voxel)
        Trials the decoder is fitted on, any unit.
    session : ndarray of int, shape (trial,)

    Raises
    ------
    ValueError
        If a beta is not finite, or there are fewer than two trials.
    """
    if len(betas) < 2:
        raise ValueError(f"z-scores need at least 2 trials, found {len(betas)}")
    names = np.unique(session)
    kept, means, scales, counts = [], [], [], []
    pooled_sum = np.zeros(betas.shape[1])
    pooled_square = np.zeros(betas.shape[1])
    origin = betas[: min(len(betas), 100)].astype(np.float64).mean(axis=0)
    for name in names:
        rows = betas[session == name].astype(np.float64) - origin
        total = rows.sum(axis=0)
        square = np.einsum("tv,tv->v", rows, rows)
        if not np.isfinite(square).all():
            bad = int((~np.isfinite(square)).sum())
            raise ValueError(
                f"betas of session {name} hold NaN or infinity in {bad} voxels; "
                f"leave those voxels out when the store is made"
            )
        pooled_sum += total
        pooled_square += square
        if len(rows) >= FEWEST_TRIALS:
            mean = total / len(rows)
            deviation = np.sqrt(np.maximum(square / len(rows) - mean**2, 0.0))
            kept.append(int(name))
            means.append(mean + origin)
            scales.append(_one_where_constant(deviation, level=mean + origin))
            counts.append(len(rows))
    pooled_mean = pooled_sum / len(betas)
    pooled = np.sqrt(np.maximum(pooled_square / len(betas) - pooled_mean**2, 0.0))
    voxels = betas.shape[1]
    return SessionScaler(
        session=np.array(kept, np.int64),
        mean=np.array(means, np.float32).reshape(len(kept), voxels),
        scale=np.array(scales, np.float32).reshape(len(kept), voxels),
        pooled_mean=(pooled_mean + origin).astype(np.float32),
        pooled_scale=_one_where_constant(pooled, level=pooled_mean + origin).astype(np.float32),
    )


def _one_where_constant(deviation: NDArray, *, level: NDArray) -> NDArray:
    return np.where(deviation > CONSTANT * np.abs(level), deviation, 1.0)


@dataclass(frozen=True)
class Averaged:
    """The mean over the repeats of each image.

    Attributes
    ----------
    betas : ndarray of float32, shape (image, voxel)
    image_id : ndarray of int64, shape (image,)
        Ascending.
    count : ndarray of int64, shape (image,)
        Repeats that went into the mean.
    """

    betas: Floats
    image_id: NDArray[np.int64]
    count: NDArray[np.int64]


def average_repeats(betas: NDArray, *, image_id: Integers) -> Averaged:
    """Return one mean response per image, images in ascending order.

    Parameters
    ----------
    betas : ndarray, shape (trial, voxel)
    image_id : ndarray of int, shape (trial,)
    """
    images, at, count = np.unique(image_id, return_inverse=True, return_counts=True)
    share = (1.0 / count[at]).astype(np.float32)
    trials = np.arange(len(at))
    # A sparse product sums in place; sorting the trials would copy gigabytes.
    mean = sparse.csr_matrix((share, (at, trials)), shape=(len(images), len(at)))
    return Averaged(
        betas=mean @ np.asarray(betas, np.float32),
        image_id=images.astype(np.int64),
        count=count.astype(np.int64),
    )


def noise_ceiling(
    betas: NDArray, *, image_id: Integers, setting: str = "min_noise_ceiling"
) -> Floats:
    """Return the share of each voxel's variance in averaged responses that images explain, 0 to 1.

    The noise variance is the mean variance over the repeats of an image, the signal variance what
    remains of the variance over all trials; the ceiling is signal / (signal + noise / k) with 1/k
    the mean over images of one over the number of repeats (Allen et al. 2022, noise ceiling
    estimation).

    Parameters
    ----------
    betas : ndarray, shape (trial, voxel)
        Z-scores of training trials.
    image_id : ndarray of int, shape (trial,)
    setting : str
        What asks for it, for the message.

    Returns
    -------
    ndarray of float32, shape (voxel,)

    Raises
    ------
    InputError
        If no image was repeated.
    """
    averaged = average_repeats(betas, image_id=image_id)
    spare = int((averaged.count - 1).sum())
    if spare == 0:
        raise InputError(
            f"{setting} needs training images that were shown more than once, found none; set it "
            f"to 0"
        )
    at = np.searchsorted(averaged.image_id, image_id)
    within = np.zeros(betas.shape[1])
    total = np.zeros(betas.shape[1])
    mean = np.asarray(betas).mean(axis=0, dtype=np.float64)
    for start in range(0, len(betas), 1000):
        rows = np.asarray(betas[start : start + 1000], np.float64)
        within += ((rows - averaged.betas[at[start : start + 1000]]) ** 2).sum(axis=0)
        total += ((rows - mean) ** 2).sum(axis=0)
    noise = within / spare
    signal = np.maximum(total / (len(betas) - 1) - noise, 0.0)
    denominator = signal + noise * np.mean(1.0 / averaged.count)
    return np.divide(signal, denominator, out=np.zeros_like(signal), where=denominator > 0).astype(
        np.float32
    )


@dataclass(frozen=True)
class TargetScaler:
    """Targets in units of their mean spread, without the dimensions that never vary.

    Predicting the mean has a mean squared error of exactly 1 over the varying dimensions, so a
    loss below 1 is the part of the variance that is left unexplained.

    Attributes
    ----------
    mean : ndarray of float32, shape (dimension,)
    deviation : ndarray of float32, shape (dimension,)
        Standard deviation over training images; 0 where constant.
    scale : float
        Root mean square of ``deviation`` over the varying dimensions.
    varying : ndarray of bool, shape (dimension,)
        Not by rounding alone.
    """

    mean: Floats
    deviation: Floats
    scale: float
    varying: NDArray[np.bool_]

    @classmethod
    def of(cls, moments: Moments, *, images: int) -> TargetScaler:
        """Return the scaler of moments over so many images.

        Raises
        ------
        InputError
            If no target varies, as embeddings do not where images have no captions.
        """
        if not moments.varying.any():
            raise InputError(
                f"none of the {len(moments.mean)} target dimensions varies over {images} images; "
                f"give the images captions of their own, or set decode.prompt_embeds=null"
            )
        # What a network makes of the same input, such as a caption's first token, is rounded
        # otherwise in a batch of another shape: much beside a dimension whose mean is near 0.
        varying = moments.varying & (moments.deviation > CONSTANT * moments.deviation.max())
        spread = moments.deviation[varying].astype(np.float64)
        return cls(
            mean=moments.mean,
            deviation=np.where(varying, moments.deviation, np.float32(0)),
            scale=float(np.sqrt(np.mean(spread**2))),
            varying=varying,
        )

    def transform(self, targets: NDArray) -> Floats:
        """Return standardised targets (image, varying dimension)."""
        centred = targets[:, self.varying] - self.mean[self.varying]
        return (centred / self.scale).astype(np.float32, copy=False)

    def restore(self, values: NDArray) -> Floats:
        """Return targets (image, dimension) of standardised ``values``, constants at their mean."""
        result = np.repeat(self.mean[None], len(values), axis=0)
        result[:, self.varying] += self.scale * values
        return result


@dataclass(frozen=True)
class StandardisedRows:
    """Standardised targets (row, varying dimension) of rows that are read when asked for."""

    targets: Rows
    scaler: TargetScaler

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and varying dimensions."""
        return self.targets.shape[0], int(self.scaler.varying.sum())

    def __getitem__(self, rows: slice) -> Floats:
        """Return a slice of rows, all dimensions."""
        return self.scaler.transform(self.targets[rows])


def fit_target_scaler(targets: Rows, *, count: Counts | None = None) -> TargetScaler:
    """Return the mean and spread of training targets (image, dimension), weighted by repeats.

    Parameters
    ----------
    targets : ndarray or rows on disk, shape (image, dimension)
        Of the training images.
    count : ndarray, shape (image,), optional
        Weight of each image, such as its repeats; all weigh the same when not given.

    Raises
    ------
    InputError
        If no target varies, as embeddings do not where images have no captions.
    ValueError
        If a target is not finite.
    """
    return TargetScaler.of(target_moments(targets, count=count), images=targets.shape[0])


@dataclass(frozen=True)
class Moments:
    """Weighted mean and standard deviation per dimension, and which dimensions vary at all."""

    mean: Array
    deviation: Array
    varying: Array


def target_moments(targets: Rows, *, count: Counts | None = None) -> Moments:
    """Return the moments of ``targets`` (image, dimension); the deviation of a constant is 0.

    Of a tensor they are tensors on its device.

    Raises
    ------
    ValueError
        If a target is not finite.
    """
    xp, device = namespace(targets), device_of(targets)
    weight = np.ones(targets.shape[0]) if count is None else count
    share = xp.asarray(place(weight, device=device), dtype=xp.float64)
    share = share / share.sum()
    parts = [
        slice(start, start + ROWS_AT_ONCE) for start in range(0, targets.shape[0], ROWS_AT_ONCE)
    ]
    mean = xp.zeros(targets.shape[1], dtype=xp.float64, device=share.device)
    variance = xp.zeros_like(mean)
    for part in parts:  # a few rows at a time: they may be read from disk
        mean += share[part] @ xp.asarray(targets[part], dtype=xp.float64)
    for part in parts:
        variance += share[part] @ (targets[part] - mean) ** 2
    if not xp.isfinite(variance).all():
        raise ValueError(
            f"{int((~xp.isfinite(variance)).sum())} target dimensions hold NaN or infinity; "
            f"remake the features"
        )
    deviation = xp.sqrt(variance)
    varying = deviation > CONSTANT * xp.abs(mean)
    return Moments(
        mean=xp.asarray(mean, dtype=xp.float32),
        deviation=xp.asarray(xp.where(varying, deviation, 0.0), dtype=xp.float32),
        varying=varying,
    )
