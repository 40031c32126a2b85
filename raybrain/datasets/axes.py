"""Which axis of an array of betas counts the trials, and in which order space comes.

GLMsingle keeps (x, y, z, trial), or (voxel, trial). MATLAB writes a v7.3 file column by column, so
that HDF5 readers see all axes reversed: (trial, z, y, x). An array carries no names of axes; what
fits the table of trials and the positions of the voxels is taken if nothing else fits as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np

from raybrain.config import InputError

Axes = Literal["trial voxel", "voxel trial", "x y z trial", "trial x y z", "trial z y x"]
MATLAB = "MATLAB_class"
"""Attribute of every dataset that MATLAB wrote."""


def find_axes(
    shape: tuple[int, ...],
    *,
    trials: int,
    positions: np.ndarray | None,
    attributes: Mapping[str, object],
    wanted: Axes | None,
    name: str,
) -> Axes:
    """Return the names of an array's axes.

    Parameters
    ----------
    shape
        Of the array.
    trials
        Rows of the table of trials.
    positions : (voxel, 3) or None
        Of the voxels of interest in the volume, where they are known.
    attributes
        Of the dataset.
    wanted
        ``layout.axes`` of the catalog entry.
    name
        For messages.

    Raises
    ------
    InputError
        If none fits, or several do.
    """
    fitting = [
        axes for axes in get_args(Axes) if _fits(axes, shape, trials=trials, positions=positions)
    ]
    if wanted is not None:
        if wanted not in fitting:
            raise InputError(
                f"{name} has shape {shape}, which is not ({wanted.replace(' ', ', ')}) of {trials} "
                f"trials, as 'layout: {{axes: {wanted}}}' of the catalog entry says; mend one of "
                f"them"
            )
        return wanted
    if MATLAB in attributes and shape[0] == trials:
        written: Axes = "trial voxel" if len(shape) == 2 else "trial z y x"
        fitting = [axes for axes in fitting if axes == written] or fitting
    if not fitting:
        inside = "" if positions is None or len(shape) != 4 else " and hold every voxel's position"
        raise InputError(
            f"{name} has shape {shape}, but trials.csv lists {trials} trials; one axis must be the "
            f"trials{inside}: (trial, voxel), (voxel, trial), (x, y, z, trial) or (trial, z, y, x)"
        )
    if len(fitting) > 1:
        both = " and as ".join(f"({axes.replace(' ', ', ')})" for axes in fitting)
        raise InputError(
            f"{name} has shape {shape}, which can be read as {both}; say which in the catalog "
            f"entry, such as 'layout: {{axes: {fitting[0]}}}'"
        )
    return fitting[0]


def grid_of(shape: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
    """Return the shape of the voxels, (voxel,) or (x, y, z)."""
    names = axes.split()
    space = ["voxel"] if "voxel" in names else ["x", "y", "z"]
    return tuple(shape[names.index(axis)] for axis in space)


def read_trials_of(array: Any, axes: Axes, *, first: int, last: int) -> np.ndarray:
    """Return (trial, voxel) of consecutive trials, voxels in C order of (x, y, z)."""
    names = axes.split()
    if names[0] == "trial":
        block = np.asarray(array[first:last])
    else:
        block = np.asarray(array[..., first:last])
    order = ["trial", "voxel"] if len(names) == 2 else ["trial", "x", "y", "z"]
    return block.transpose([names.index(axis) for axis in order]).reshape(last - first, -1)


def _fits(axes: Axes, shape: tuple[int, ...], *, trials: int, positions: np.ndarray | None) -> bool:
    names = axes.split()
    if len(names) != len(shape) or shape[names.index("trial")] != trials:
        return False
    if positions is None or len(names) == 2:
        return True
    return bool((positions < np.array(grid_of(shape, axes))).all())
