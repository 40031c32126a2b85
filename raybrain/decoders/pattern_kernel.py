"""How alike two response patterns are: the kernel of `raybrain.config.KernelRidge`.

With x the z-scores of a pattern less their training mean, every voxel times its weight, and r the
cosine of two such patterns (their correlation distance is 1 - r, as in Kriegeskorte et al. 2008),

    k(x, y) = exp(-(1 - r(x, y)) / width)

The gain of a whole pattern, which drifts with attention and with how many repeats were averaged,
does not enter. A wide kernel is a linear function of unit patterns; a narrow one sees only
neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raybrain import config
from raybrain.config import InputError
from raybrain.decoders.examples import Examples
from raybrain.decoders.normalisation import Counts, Floats
from raybrain.decoders.ridge_arrays import Array, Device, full_precision, namespace, place

ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class PatternKernel:
    """The training patterns that others are compared with.

    Attributes
    ----------
    centre : ndarray of float32, shape (voxel,)
        Mean of the training patterns, weighted by repeats.
    weight : ndarray of float32, shape (voxel,)
    patterns : ndarray of float32, shape (image, voxel)
        Of length 1; of length 0 where nothing differs from the mean.
    width : float
        In units of correlation distance.
    """

    centre: Floats
    weight: Floats
    patterns: Floats
    width: float

    @classmethod
    def fit(cls, betas: NDArray, *, count: Counts, weight: Floats, width: float) -> PatternKernel:
        """Return the kernel of training patterns.

        Parameters
        ----------
        betas : ndarray, shape (image, voxel)
            Z-scores.
        count : ndarray, shape (image,)
            Repeats averaged in each row.
        weight : ndarray, shape (voxel,)
        width : float
        """
        share = np.asarray(count, np.float64) / np.sum(count)
        centre = (share @ betas).astype(np.float32)
        return cls(centre, weight, _unit(betas, centre=centre, weight=weight), width)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray], *, width: float) -> PatternKernel:
        """Return the kernel that `arrays` gave."""
        return cls(arrays["pattern.centre"], arrays["pattern.weight"], arrays["patterns"], width)

    def arrays(self) -> dict[str, NDArray]:
        """Return what a saved decoder keeps of it, by name."""
        return {
            "pattern.centre": self.centre,
            "pattern.weight": self.weight,
            "patterns": self.patterns,
        }

    def rows(self, betas: NDArray, *, device: Device = None) -> Array:
        """Return k of patterns (row, voxel) with every training pattern, shape (row, image).

        Given the name of a device, torch computes there and a tensor stays there.
        """
        patterns = place(self.patterns, device=device)
        xp = namespace(patterns)
        shape = (len(betas), len(patterns))
        kernel = xp.empty(shape, dtype=xp.float32, device=patterns.device)
        with full_precision(device):
            for start in range(0, len(betas), ROWS_AT_ONCE):
                part = slice(start, start + ROWS_AT_ONCE)
                unit = _unit(betas[part], centre=self.centre, weight=self.weight)
                xp.matmul(place(unit, device=device), patterns.T, out=kernel[part])
        kernel -= 1.0
        kernel /= self.width
        return xp.exp(kernel, out=kernel)


def _unit(betas: NDArray, *, centre: Floats, weight: Floats) -> Floats:
    patterns = ((betas - centre) * weight).astype(np.float32, copy=False)
    length = np.linalg.norm(patterns, axis=1, keepdims=True)
    return np.divide(patterns, length, out=np.zeros_like(patterns), where=length > 0)


def voxel_weights(examples: Examples, *, section: config.KernelRidge) -> Floats:
    """Return the weight of each selected voxel: its ceiling's power times those of its ROIs.

    Raises
    ------
    InputError
        If a ceiling is wanted and none of the voxels has any, or an ROI is not known.
    ValueError
        If the examples lack what the section asks for.
    """
    weight = np.ones(examples.betas.shape[1], np.float32)
    if section.ceiling_power > 0:
        if examples.ceiling is None:
            raise ValueError("prepare the examples with estimate_ceiling=True")
        weight = np.maximum(examples.ceiling, 0.0) ** np.float32(section.ceiling_power)
        if not weight.any():
            raise InputError(
                "no voxel answers repeats of a training image alike, so none can be weighted by "
                "its noise ceiling; check the betas, or set ceiling_power=0"
            )
    for name, factor in section.weights.items():
        if name not in examples.rois:
            raise InputError(f"decoder.weights names the ROI '{name}', but no ROIs are known here")
        weight = np.where(examples.rois[name], weight * np.float32(factor), weight)
    return weight.astype(np.float32)
