"""V1 to hV4: Gabor energy and colour opponency, seen through population receptive fields.

Receptive fields are Gaussians on the visual field [1]_ whose centres crowd the fovea by cortical
magnification [2]_ and whose sizes grow with eccentricity and up the hierarchy; pooled responses are
compressed [1]_.

References
----------
.. [1] Kay, Winawer, Mezer & Wandell (2013), Compressive spatial summation in human visual cortex.
.. [2] Horton & Hoyt (1991), The representation of the visual field in human striate cortex.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from raybrain.simulation.geometry import Anatomy

FIELD = 8.4
"""Degrees of visual angle along one side of a picture, shown on mid gray (NSD)."""
WORKING_SIZE, MARGIN = 64, 8
"""Pixels of the picture the model sees, and of the gray around it on each side."""
HALVED = 2
"""Channel maps are averaged over so many pixels along x and y before pooling."""
FREQUENCIES = (0.5, 1.0, 2.0)
"""Cycles per degree; the working picture resolves 3.8."""
ORIENTATIONS = 6
OPPONENTS = ("light", "dark", "red", "green", "blue", "yellow")
FOVEA = 2.0
"""Degrees added to eccentricity in the magnification. Horton & Hoyt measured 0.75, with which 1,200
voxels would give two receptive fields per square degree at the edge of the picture; 2.0 gives nine.
"""
PRF_SIZE = {"V1": (0.22, 0.06), "V2": (0.28, 0.10), "V3": (0.35, 0.16), "hV4": (0.55, 0.28)}
"""Standard deviation in degrees at the centre of gaze, and its growth per degree."""
EXPONENT = {"V1": 0.80, "V2": 0.70, "V3": 0.60, "hV4": 0.50}
"""Compression of the pooled response, stronger up the hierarchy."""
OPPONENT_SHARE = {"V1": 0.55, "V2": 0.55, "V3": 0.45, "hV4": 0.65}
"""Mean share of a voxel's variance that comes from the opponent channels."""


@dataclass(frozen=True)
class ReceptiveFields:
    """What each early voxel looks at and what it prefers; degrees, x right, y up."""

    x: np.ndarray
    y: np.ndarray
    size: np.ndarray
    """(voxel,) standard deviation of the Gaussian."""
    exponent: np.ndarray
    energy: np.ndarray
    """(voxel, frequency * orientation) weights of the Gabor energies; rows add up to 1."""
    opponent: np.ndarray
    """(voxel, 6) weights of the opponent channels; rows add up to 1."""
    opponent_share: np.ndarray
    """(voxel,) share of the variance that the opponent channels give."""

    @property
    def eccentricity(self) -> np.ndarray:
        """(voxel,) degrees from the centre of gaze."""
        return np.hypot(self.x, self.y)


@dataclass(frozen=True)
class EarlyResponse:
    """Compressed pooled responses, (image, voxel) float32 each."""

    energy: np.ndarray
    opponent: np.ndarray


def tune_voxels(anatomy: Anatomy, *, rng: np.random.Generator) -> ReceptiveFields:
    """Return receptive fields that tile the picture in every area, each hemisphere its own side.

    Returns
    -------
    ReceptiveFields
        Of the early voxels, in the order of ``anatomy``.
    """
    area, side = anatomy.area[anatomy.early], anatomy.hemisphere[anatomy.early]
    xyz = anatomy.xyz[anatomy.early]
    count = len(area)
    centre = np.empty((count, 2))
    for name in np.unique(area):
        for hemisphere in np.unique(side):
            patch = np.flatnonzero((area == name) & (side == hemisphere))
            points = _centres(len(patch), area=name, hemisphere=hemisphere, rng=rng)
            centre[patch] = _topography(points, xyz=xyz[patch])
    stage = np.array([name if name in PRF_SIZE else name[:2] for name in area])
    eccentricity = np.hypot(*centre.T)
    base, slope = np.array([PRF_SIZE[name] for name in stage]).T
    size = (base + slope * eccentricity) * rng.lognormal(sigma=0.1, size=count)

    # Preferred frequency falls with the size of the receptive field.
    preferred = np.log2(0.6 / size) + rng.normal(scale=0.7, size=count)
    octaves = np.log2(FREQUENCIES) - preferred[:, None]
    frequency = np.exp(-0.5 * octaves**2) + 1e-3
    angle = np.arange(ORIENTATIONS) * np.pi / ORIENTATIONS - rng.uniform(0, np.pi, size=(count, 1))
    sharpness = rng.gamma(2.0, 0.75, size=(count, 1))  # 0 is a voxel blind to orientation
    orientation = np.exp(sharpness * (np.cos(2 * angle) - 1))
    energy = (frequency[:, :, None] * orientation[:, None, :]).reshape(count, -1)
    axis = rng.normal(size=(count, 3))  # light-dark, red-green, blue-yellow
    opponent = np.maximum(np.stack([axis, -axis], axis=2), 0).reshape(count, 6)
    mean = np.array([OPPONENT_SHARE[name] for name in stage])
    return ReceptiveFields(
        x=centre[:, 0],
        y=centre[:, 1],
        size=size,
        exponent=np.array([EXPONENT[name] for name in stage]),
        energy=energy / energy.sum(axis=1, keepdims=True),
        opponent=opponent / opponent.sum(axis=1, keepdims=True),
        opponent_share=rng.beta(3 * mean, 3 * (1 - mean)),
    )


def _centres(count: int, *, area: str, hemisphere: str, rng: np.random.Generator) -> np.ndarray:
    """Return evenly strewn points, (count, 2), as dense as the magnification squared."""
    golden = np.array([0.7548776662466927, 0.5698402909980532])  # plane's low-discrepancy sequence
    draws = (rng.uniform(size=2) + np.arange(1, 6 * count + 50)[:, None] * golden) % 1.0
    reach = FIELD / 2
    grid = np.linspace(0, reach * np.sqrt(2), 500)
    density = grid / (grid + FOVEA) ** 2
    total = np.cumsum(density) - density[0]
    eccentricity = np.interp(draws[:, 0] * total[-1], total, grid)
    # The ventral half of V1 to V3 sees above the horizon, the dorsal half below.
    low, high = {"v": (0.0, 0.5), "d": (-0.5, 0.0)}.get(area[-1], (-0.5, 0.5))
    angle = np.pi * (low + (high - low) * draws[:, 1])
    x, y = eccentricity * np.cos(angle), eccentricity * np.sin(angle)
    points = np.stack([x if hemisphere == "lh" else -x, y], axis=1)
    return points[np.abs(points).max(axis=1) <= reach][:count]


def _topography(points: np.ndarray, *, xyz: np.ndarray) -> np.ndarray:
    """Return ``points`` in the order of the voxels: posterior is foveal, superior is low."""
    count = len(points)
    strips = max(1, round(np.sqrt(count)))
    by_eccentricity = np.argsort(np.hypot(*points.T), kind="stable")
    by_depth = np.argsort(xyz[:, 1], kind="stable")
    placed = np.empty_like(points)
    for rows in np.array_split(np.arange(count), strips):
        seen, voxels = by_eccentricity[rows], by_depth[rows]
        seen = seen[np.argsort(points[seen, 1], kind="stable")]
        voxels = voxels[np.argsort(-xyz[voxels, 2], kind="stable")]
        placed[voxels] = points[seen]
    return placed


def respond(pixels: np.ndarray, *, fields: ReceptiveFields) -> EarlyResponse:
    """Return what the voxels' receptive fields pool from pictures.

    Each response is ``(sum_c w_c sum_p g(p) m_c(p)) ** n``: channel maps m, Gaussian g, channel
    weights w and exponent n of the voxel.

    Parameters
    ----------
    pixels : ndarray
        (image, y, x, rgb) uint8.
    fields : ReceptiveFields
        Of the voxels.
    """
    maps = _channel_maps(torch.from_numpy(pixels))  # (image, channel, point)
    pooled = maps @ torch.from_numpy(_gaussians(fields)).T  # (image, channel, voxel)
    exponent = torch.from_numpy(fields.exponent.astype(np.float32))
    kinds = len(FREQUENCIES) * ORIENTATIONS
    parts = []
    for channels, weights in (
        (pooled[:, :kinds], fields.energy),
        (pooled[:, kinds:], fields.opponent),
    ):
        weighted = torch.einsum("icv,vc->iv", channels, torch.from_numpy(weights).float())
        parts.append((weighted.clamp_min(0) ** exponent).numpy())
    return EarlyResponse(energy=parts[0], opponent=parts[1])


def _channel_maps(pixels: torch.Tensor) -> torch.Tensor:
    picture = pixels.permute(0, 3, 1, 2).float() / 255 - 0.5  # 0 is the gray of the screen
    picture = torch.nn.functional.interpolate(
        picture, size=(WORKING_SIZE, WORKING_SIZE), mode="bilinear", antialias=True
    )
    screen = torch.nn.functional.pad(picture, [MARGIN] * 4)
    red, green, blue = screen.unbind(1)
    light = 0.299 * red + 0.587 * green + 0.114 * blue
    opponents = torch.stack([light, red - green, blue - (red + green) / 2], dim=1)
    rectified = torch.stack([opponents, -opponents], dim=2).flatten(1, 2).clamp_min(0)
    # A filter with one-sided spectrum holds a Gabor and its quadrature twin; its modulus is energy.
    spectrum = torch.fft.fft2(light)[:, None]
    energy = torch.fft.ifft2(spectrum * _gabor_spectra(screen.shape[-1])).abs()
    maps = torch.cat([energy, rectified], dim=1)
    return torch.nn.functional.avg_pool2d(maps, HALVED).flatten(2)


def _gabor_spectra(size: int) -> torch.Tensor:
    frequency = torch.fft.fftfreq(size, d=FIELD / WORKING_SIZE)
    fy, fx = torch.meshgrid(frequency, frequency, indexing="ij")
    spectra = []
    for centre in FREQUENCIES:
        width = centre * 0.36  # one octave at half height
        for k in range(ORIENTATIONS):
            angle = torch.tensor(k * torch.pi / ORIENTATIONS)
            gap = (fx - centre * angle.cos()) ** 2 + (fy - centre * angle.sin()) ** 2
            gabor = torch.exp(-gap / (2 * width**2))
            gabor[0, 0] = 0  # blind to uniform light
            spectra.append(gabor)
    return torch.stack(spectra)


def _gaussians(fields: ReceptiveFields) -> np.ndarray:
    """Return (voxel, point) float32 whose rows add up to 1."""
    points = (WORKING_SIZE + 2 * MARGIN) // HALVED
    side = FIELD * (1 + 2 * MARGIN / WORKING_SIZE)
    at = (np.arange(points) + 0.5) / points * side - side / 2
    spread = 2 * fields.size[:, None] ** 2
    along_x = np.exp(-((at - fields.x[:, None]) ** 2) / spread)
    along_y = np.exp(-((-at - fields.y[:, None]) ** 2) / spread)  # rows of pixels run downwards
    field = (along_y[:, :, None] * along_x[:, None, :]).reshape(len(fields.x), -1)
    return (field / field.sum(axis=1, keepdims=True)).astype(np.float32)
