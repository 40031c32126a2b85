"""What a subject's voxels would say without noise, and how much noise each one gets."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from raybrain.config import InputError

NCSNR_SPREAD = 0.46
"""Standard deviation of log ncsnr: with the median at .36, two thousand voxels reach 2 (NSD)."""
PERCENT_MEDIAN, PERCENT_SPREAD = 1.8, 0.3
"""Total standard deviation of betas in percent signal change: median, and spread of its log."""
PERCENT_MEAN, PERCENT_MEAN_SPREAD = 0.6, 0.8
SESSION_LEVEL = 0.3
"""Standard deviation of a session's offset, in units of a voxel's total standard deviation."""
WITHIN_SESSION_DRIFT = 0.1
"""The same, of the drift from the middle of a session to its end. Z-scoring per session leaves it
in: it takes .3 % off the variance that is left."""


@dataclass(frozen=True)
class GroundTruth:
    """Everything the noise hides; voxels in C order of (x, y, z)."""

    responses: np.ndarray
    """(image, voxel) float32: zero mean and unit variance over images."""
    ncsnr: np.ndarray
    """(voxel,) float32: standard deviation of the signal over that of the noise."""
    percent: np.ndarray
    """(voxel,) percent signal change of one unit of response."""
    baseline: np.ndarray
    """(voxel,) mean percent signal change."""
    trial_image: np.ndarray
    """(trial,) 0-based image shown."""
    index: np.ndarray
    """(voxel,) int64: flat C-order index into the volume."""
    area: np.ndarray
    """(voxel,) str: V1v, V1d, ... hV4 or ventral."""
    hemisphere: np.ndarray
    """(voxel,) str: lh or rh."""
    eccentricity: np.ndarray
    """(voxel,) degrees; NaN for ventral voxels, which have no receptive field."""
    polar_angle: np.ndarray
    """(voxel,) degrees anticlockwise from the right horizontal meridian."""
    prf_size: np.ndarray
    """(voxel,) degrees."""

    def noise_ceiling(self, repeats: int) -> np.ndarray:
        """Return the explainable share of variance of the mean over ``repeats``, (voxel,).

        ``ncsnr^2 / (ncsnr^2 + 1 / repeats)`` (NSD data manual; Allen et al. 2022).

        Parameters
        ----------
        repeats : int
            Presentations of an image that are averaged; 1 for single trials.
        """
        power = np.square(self.ncsnr.astype(np.float64))
        return power / (power + 1 / repeats)


def draw_ncsnr(voxels: int, *, median: float, rng: np.random.Generator) -> np.ndarray:
    """Return a skewed distribution with exactly this median, (voxel,)."""
    ncsnr = rng.lognormal(sigma=NCSNR_SPREAD, size=voxels)
    return ncsnr * (median / np.median(ncsnr))


def ground_truth_file(root: Path, *, subject: str) -> Path:
    """Return where the ground truth of a subject lies: outside NSD's own folders."""
    return root / "simulation" / subject / "ground_truth.npz"


def load_ground_truth(root: Path, *, subject: str) -> GroundTruth:
    """Return what `simulate` made the subject's betas from.

    Raises
    ------
    InputError
        If there is none under ``root``.
    """
    path = ground_truth_file(root, subject=subject)
    if not path.is_file():
        raise InputError(f"there is no simulated {subject} at {root}; type: raybrain simulate ...")
    with np.load(path) as content:
        return GroundTruth(**{field.name: content[field.name] for field in fields(GroundTruth)})


def noisy_betas(
    truth: GroundTruth, *, trials: slice, gain: float, rng: np.random.Generator
) -> np.ndarray:
    """Return the betas of one scan session in percent signal change, (trial, voxel) float32.

    ``baseline + percent * gain * (response + noise / ncsnr) + offset``: the gain scales signal and
    noise alike, so ``ncsnr`` holds within every session, and across them after z-scoring.

    Parameters
    ----------
    truth : GroundTruth
        Of the subject.
    trials : slice
        The session's trials.
    gain : float
        Of the session.
    rng : Generator
        Noise and offset.
    """
    signal = truth.responses[truth.trial_image[trials]]
    noise = rng.standard_normal(signal.shape, dtype=np.float32) / truth.ncsnr
    total = truth.percent * np.sqrt(1 + 1 / truth.ncsnr.astype(np.float64) ** 2)
    level, drift = rng.standard_normal((2, len(total))) * total
    along = np.linspace(-1, 1, len(signal))[:, None]
    offset = truth.baseline + SESSION_LEVEL * level + WITHIN_SESSION_DRIFT * drift * along
    return (truth.percent * gain * (signal + noise) + offset).astype(np.float32)
