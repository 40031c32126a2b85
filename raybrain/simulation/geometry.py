"""Where the areas lie: contiguous patches of a cortical ribbon, left and right."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from raybrain.config import InputError, Simulation

NSD_AREA_VOXELS = {  # subj01, func1pt8mm; the simulated early voxels keep these proportions
    "V1v": 594, "V1d": 756, "V2v": 834, "V2d": 599, "V3v": 646, "V3d": 541, "hV4": 687,
}  # fmt: skip
EARLY_AREAS = tuple(NSD_AREA_VOXELS)
VENTRAL = "ventral"
HEMISPHERES = ("lh", "rh")
RIBBON_DEPTH = 0.6
"""Normalised radius at which the cortical ribbon of the ellipsoidal brain begins."""
CENTRES = {
    "V1v": (0.15, -0.95, -0.12),
    "V1d": (0.15, -0.95, 0.12),
    "V2v": (0.20, -0.85, -0.40),
    "V2d": (0.20, -0.85, 0.40),
    "V3v": (0.30, -0.70, -0.62),
    "V3d": (0.30, -0.70, 0.62),
    "hV4": (0.55, -0.65, -0.50),
    VENTRAL: (0.50, -0.05, -0.80),
}
"""Lateral, anterior and superior position, from -1 to 1 of the brain's half axes; lateral is
mirrored for the left hemisphere."""


@dataclass(frozen=True)
class Anatomy:
    """The volume and the modelled voxels in C order of (x, y, z)."""

    grid: tuple[int, int, int]
    brain: np.ndarray
    """(x, y, z) bool."""
    cortex: np.ndarray
    """(x, y, z) bool."""
    index: np.ndarray
    """(voxel,) int64: flat C-order index into the volume, ascending."""
    area: np.ndarray
    """(voxel,) str: V1v ... hV4 or ventral."""
    hemisphere: np.ndarray
    """(voxel,) str: lh or rh."""

    @property
    def early(self) -> np.ndarray:
        """(voxel,) bool."""
        return self.area != VENTRAL

    @property
    def xyz(self) -> np.ndarray:
        """(voxel, 3) int64 position in the volume."""
        return np.stack(np.unravel_index(self.index, self.grid), axis=1)


def lay_out(settings: Simulation, *, rng: np.random.Generator) -> Anatomy:
    """Return patches of exactly the voxel counts asked for, each grown around its centre.

    Raises
    ------
    InputError
        If the grid is too small for the voxels, or the voxels too few for the areas.
    """
    sizes = np.array(settings.grid)
    place = np.moveaxis(np.indices(settings.grid), 0, -1)
    unit = (2 * place + 1 - sizes) / sizes
    radius = np.linalg.norm(unit, axis=-1)
    brain = radius <= 1.0
    cortex = brain & (radius >= RIBBON_DEPTH)
    counts = _voxels_per_patch(settings)
    for side in HEMISPHERES:
        wanted = sum(count for (hemi, _), count in counts.items() if hemi == side)
        room = int((cortex & _half(unit, side=side)).sum())
        if wanted > room:
            raise InputError(
                f"simulation.grid={list(settings.grid)} has room for {room} voxels in a hemisphere "
                f"but {wanted} are asked for; enlarge simulation.grid or ask for fewer "
                f"early_voxels and ventral_voxels"
            )
    area = np.full(settings.grid, "", dtype="<U8")
    for side in HEMISPHERES:
        patches = {name: count for (hemi, name), count in counts.items() if hemi == side}
        mirror = np.array([-1.0 if side == "lh" else 1.0, 1.0, 1.0])
        centres = {
            name: np.array(CENTRES[name]) * mirror + rng.normal(scale=0.02, size=3)
            for name in patches
        }
        free = cortex & _half(unit, side=side)
        _grow(area, free=free, unit=unit, centres=centres, counts=patches)
    index = np.flatnonzero(area.ravel() != "")
    return Anatomy(
        grid=settings.grid,
        brain=brain,
        cortex=cortex,
        index=index,
        area=area.ravel()[index],
        hemisphere=np.where(unit[..., 0].ravel()[index] < 0, "lh", "rh"),
    )


def _half(unit: np.ndarray, *, side: str) -> np.ndarray:
    left = unit[..., 0] < 0
    return left if side == "lh" else ~left


def _voxels_per_patch(settings: Simulation) -> dict[tuple[str, str], int]:
    total = sum(NSD_AREA_VOXELS.values())
    share = {
        (side, name): settings.early_voxels * count / total / 2
        for name, count in NSD_AREA_VOXELS.items()
        for side in HEMISPHERES
    }
    counts = {patch: int(value) for patch, value in share.items()}
    by_remainder = sorted(share, key=lambda patch: counts[patch] - share[patch])
    for patch in by_remainder[: settings.early_voxels - sum(counts.values())]:
        counts[patch] += 1
    if min(counts.values()) == 0 or settings.ventral_voxels < 2:
        raise InputError(
            f"simulation.early_voxels={settings.early_voxels} and "
            f"ventral_voxels={settings.ventral_voxels} leave an area without a voxel; "
            f"ask for at least 20 and 2"
        )
    counts["lh", VENTRAL] = settings.ventral_voxels // 2
    counts["rh", VENTRAL] = settings.ventral_voxels - settings.ventral_voxels // 2
    return counts


def _grow(
    area: np.ndarray,
    *,
    free: np.ndarray,
    unit: np.ndarray,
    centres: dict[str, np.ndarray],
    counts: dict[str, int],
) -> None:
    """Write each patch's name into ``area``; the least complete patch takes the next voxel."""
    steps = np.indices((3, 3, 3)).reshape(3, -1).T - 1
    distance = {name: np.linalg.norm(unit - centre, axis=-1) for name, centre in centres.items()}
    fronts: dict[str, list[tuple[float, tuple[int, ...]]]] = {name: [] for name in counts}
    taken = dict.fromkeys(counts, 0)
    turn = [(0.0, name) for name in sorted(counts)]
    while turn:
        _, name = heapq.heappop(turn)
        front = fronts[name]
        while front and not free[front[0][1]]:
            heapq.heappop(front)
        if front:
            voxel = heapq.heappop(front)[1]
        else:  # at the start, or walled in by the neighbours
            nearest = np.argmin(np.where(free, distance[name], np.inf))
            voxel = tuple(int(i) for i in np.unravel_index(nearest, free.shape))
        free[voxel] = False
        area[voxel] = name
        taken[name] += 1
        for step in steps + voxel:
            around = tuple(int(i) for i in step)
            inside = all(0 <= i < n for i, n in zip(around, free.shape, strict=True))
            if inside and free[around]:
                heapq.heappush(front, (float(distance[name][around]), around))
        if taken[name] < counts[name]:
            heapq.heappush(turn, (taken[name] / counts[name], name))
