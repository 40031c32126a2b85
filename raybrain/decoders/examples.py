"""Trials made into what a decoder is fitted on: z-scored, selected voxels, repeats averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raybrain.config import InputError
from raybrain.decoders.normalisation import (
    Averaged,
    Floats,
    Integers,
    Rows,
    SessionScaler,
    average_repeats,
    fit_session_scaler,
    noise_ceiling,
)
from raybrain.decoders.voxel_graph import within

Repeats = Literal["average", "trial"]


@dataclass(frozen=True)
class Examples:
    """What a decoder is fitted on, with the statistics that turn other trials into the same.

    Attributes
    ----------
    betas : float32, shape (row, selected voxel)
        Z-scores, an array or on disk; one row per image in ascending order, or one per trial in
        the given order.
    image_id : ndarray of int64, shape (row,)
    count : ndarray of int64, shape (row,)
        Repeats averaged in a row.
    voxels : ndarray of bool, shape (voxel,)
        Which of the given voxels are selected.
    scaler : SessionScaler
        Of the selected voxels.
    repeats : {'average', 'trial'}
    rois : mapping of str to ndarray of bool, shape (selected voxel,)
        The target's ROIs, as far as they were given.
    xyz : ndarray of int, shape (selected voxel, 3), or None
        Coordinates, if they were given.
    edges : ndarray of int64, shape (edge, 2), or None
        Which selected voxels are neighbours on the surface, if that was given.
    ceiling : ndarray of float32, shape (selected voxel,), or None
        Noise ceiling of averaged responses, estimated from repeats among the given trials, if
        asked for.
    """

    betas: Rows
    image_id: NDArray[np.int64]
    count: NDArray[np.int64]
    voxels: NDArray[np.bool_]
    scaler: SessionScaler
    repeats: Repeats
    rois: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    xyz: NDArray[np.integer] | None = None
    edges: NDArray[np.int64] | None = None
    ceiling: Floats | None = None

    def select(self, keep: NDArray[np.bool_], *, rois: Sequence[str]) -> Examples:
        """Return the same rows of fewer voxels.

        Parameters
        ----------
        keep : ndarray of bool, shape (selected voxel,)
        rois : sequence of str
            ROIs to keep.
        """
        voxels = self.voxels.copy()
        voxels[np.flatnonzero(voxels)] = keep
        return replace(
            self,
            betas=np.ascontiguousarray(self.betas[:][:, keep]),
            voxels=voxels,
            scaler=self.scaler.select(keep),
            rois={name: self.rois[name][keep] for name in rois},
            xyz=None if self.xyz is None else self.xyz[keep],
            edges=within(self.edges, keep),
            ceiling=None if self.ceiling is None else self.ceiling[keep],
        )

    def like(self, betas: NDArray, *, session: Integers, image_id: Integers) -> Averaged:
        """Return other trials, such as those of a validation split, treated as these were.

        Parameters
        ----------
        betas : ndarray, shape (trial, voxel)
            The same voxels, in the same unit, as `prepare` was given.
        session : ndarray of int, shape (trial,)
            One that was not fitted is z-scored with the pooled statistics.
        image_id : ndarray of int, shape (trial,)
            Which image each trial showed.
        """
        standard = self.scaler.transform(betas[:, self.voxels], session=session)
        return _rows(standard, image_id=image_id, repeats=self.repeats)


def prepare(
    betas: NDArray,
    *,
    session: Integers,
    image_id: Integers,
    min_noise_ceiling: float = 0.0,
    ceiling: NDArray | None = None,
    repeats: Repeats = "average",
    rois: Mapping[str, NDArray[np.bool_]] | None = None,
    xyz: NDArray[np.integer] | None = None,
    edges: NDArray[np.integer] | None = None,
    estimate_ceiling: bool = False,
) -> Examples:
    """Return z-scored responses of the selected voxels to each image, with the statistics used.

    Give exactly the trials that the decoder is fitted on: training and validation trials for
    ``ridge``, whose penalty is chosen by leaving out one image at a time; training trials alone for
    a decoder that stops early on validation images (pass those to `Examples.like`).

    Parameters
    ----------
    betas : ndarray, shape (trial, voxel)
        Voxels of the experiment's ROIs.
    session, image_id : ndarray of int, shape (trial,)
    min_noise_ceiling : float
        Voxels below this noise ceiling (a fraction) are left out. Constant voxels always are.
    ceiling : ndarray, shape (voxel,), optional
        The dataset's noise ceiling. When not given it is estimated from the repeats among the
        given trials; a published ceiling may have used test trials.
    repeats : {'average', 'trial'}
    rois : mapping of str to ndarray of bool, shape (voxel,), optional
        The target's ROIs among the given voxels; ``gcn`` and ``roi_graph`` need them.
    xyz : ndarray of int, shape (voxel, 3), optional
        Coordinates; a Hilbert order of voxels needs them.
    edges : ndarray of int, shape (edge, 2), optional
        Numbers of voxels that are neighbours on the surface; ``mesh_gcn`` needs them.
    estimate_ceiling : bool
        Whether `Examples.ceiling` is wanted.

    Raises
    ------
    InputError
        If there are no trials, no voxel is left, or a ceiling is wanted and nothing was repeated.
    ValueError
        If sessions or image ids are not as many as the trials.
    """
    trials, voxels = betas.shape
    if trials == 0:
        raise InputError("there are no training trials for these ROIs; check subject and split")
    if voxels == 0:
        raise InputError("the chosen ROIs hold no voxels; choose other ROIs")
    if not len(session) == len(image_id) == trials:
        raise ValueError(
            f"{trials} trials of betas need as many sessions and image ids, "
            f"found {len(session)} and {len(image_id)}"
        )
    scaler = fit_session_scaler(betas, session=session)
    standard = scaler.transform(betas, session=session)
    keep: NDArray[np.bool_] = np.any(standard, axis=0)
    if not keep.any():
        raise InputError(f"none of the {voxels} voxels of these ROIs varies; check the betas")
    if min_noise_ceiling > 0:
        known = noise_ceiling(standard, image_id=image_id) if ceiling is None else ceiling
        keep = above_ceiling(known, minimum=min_noise_ceiling, among=keep)
    if not keep.all():
        standard = standard[:, keep]
    rows = _rows(standard, image_id=image_id, repeats=repeats)
    estimated = None
    if estimate_ceiling:
        estimated = noise_ceiling(standard, image_id=image_id, setting="decoder.ceiling_power")
    return Examples(
        betas=rows.betas,
        image_id=rows.image_id,
        count=rows.count,
        voxels=keep,
        scaler=scaler.select(keep),
        repeats=repeats,
        rois={name: mask[keep] for name, mask in (rois or {}).items()},
        xyz=None if xyz is None else xyz[keep],
        edges=within(edges, keep),
        ceiling=estimated,
    )


def above_ceiling(
    ceiling: NDArray, *, minimum: float, among: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return (voxel,) bool: which voxels of ``among`` reach a noise ceiling.

    Parameters
    ----------
    ceiling : ndarray, shape (voxel,)
        Noise ceiling of each voxel, a fraction.
    minimum : float
        The noise ceiling that a voxel has to reach, a fraction.
    among : ndarray of bool, shape (voxel,)
        The voxels that are asked about.

    Raises
    ------
    InputError
        If none does.
    """
    keep: NDArray[np.bool_] = among & (ceiling >= minimum)
    if not keep.any():
        raise InputError(
            f"no voxel reaches min_noise_ceiling={minimum:g}; the best of "
            f"{int(among.sum())} has {float(np.nanmax(ceiling[among])):.3f}, set it below that"
        )
    return keep


def _rows(standard: NDArray[np.float32], *, image_id: Integers, repeats: Repeats) -> Averaged:
    if repeats == "average":
        return average_repeats(standard, image_id=image_id)
    return Averaged(
        betas=standard,
        image_id=np.asarray(image_id, np.int64),
        count=np.ones(len(standard), np.int64),
    )
