"""Where NSD keeps what it measured, and the voxels of the catalogued ROIs.

In the volumes ``func1pt8mm`` and ``func1mm`` a position is (x, y, z). On the surface ``fsaverage``
it is (hemisphere, vertex, 0), the left hemisphere first, so that one canonical order, C order of
the position, serves both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from raybrain.config import InputError, Positive, Section
from raybrain.datasets import Voxels
from raybrain.datasets.files import Root
from raybrain.datasets.roi_labels import LABELS, parse_ctab, pick_labels, resolve
from raybrain.datasets.tables import decode_text
from raybrain.datasets.volumes import read_volume

if TYPE_CHECKING:
    from raybrain.catalog import CatalogEntry, Roi

HEMISPHERES = ("lh", "rh")
ELSEWHERE = -1.0
"""Label of what is not cortex; 0 is cortex without a label."""


class Layout(Section):
    """Choices within NSD's folders."""

    betas: str = "betas_fithrf_GLMdenoise_RR"
    space: Literal["func1pt8mm", "func1mm", "fsaverage"] = "func1pt8mm"
    format: Literal["nii.gz", "hdf5"] | None = None
    """Volumes only; either kind when not given."""
    groups: Literal["instances"] | None = None
    """Image groups from COCO's object annotations; none when not given."""
    clusters: Positive = 40
    """How many clusters of images with like captions the split by cluster makes."""

    @property
    def on_surface(self) -> bool:
        """Whether betas belong to the vertices of both hemispheres."""
        return self.space == "fsaverage"

    def betas_folder(self, subject: str) -> str:
        """Return where the betas and their noise ceiling lie."""
        return f"nsddata_betas/ppdata/{subject}/{self.space}/{self.betas}"

    def ncsnr_files(self, subject: str) -> list[str]:
        """Return where the noise-ceiling signal-to-noise ratio lies."""
        folder = self.betas_folder(subject)
        if self.on_surface:
            return [f"{folder}/{side}.ncsnr.mgh" for side in HEMISPHERES]
        return [f"{folder}/ncsnr.nii.gz"]

    def atlas_files(self, subject: str, *, atlas: str) -> list[str]:
        """Return where an atlas lies; ``lh.`` or ``rh.`` before its name chooses a hemisphere."""
        if not self.on_surface:
            return [f"nsddata/ppdata/{subject}/{self.space}/roi/{atlas}.nii.gz"]
        folder = f"nsddata/freesurfer/{self.space}/label"
        sides = [side for side in HEMISPHERES if atlas.startswith(f"{side}.")] or HEMISPHERES
        return [f"{folder}/{side}.{_both_sides(atlas)}.mgz" for side in sides]

    def session_file(self, subject: str, *, session: int) -> str:
        """Return where the betas of a session lie, in the format that is read by default."""
        if self.on_surface:
            return f"{self.betas_folder(subject)}/lh.betas_session{session:02d}.mgh"
        ending = self.format or "nii.gz"
        return f"{self.betas_folder(subject)}/betas_session{session:02d}.{ending}"

    def session_pattern(self) -> str:
        """Return the regular expression of a session's file; groups: session, ending."""
        if self.on_surface:
            return r"lh\.betas_session(\d+)\.(mgh)"
        return r"betas_session(\d+)\.(nii\.gz|hdf5)"


@dataclass(frozen=True)
class Regions:
    """The voxels of the catalogued ROIs."""

    grid: tuple[int, int, int]
    voxels: Voxels
    rois: Mapping[str, np.ndarray]
    """Name -> (voxel,) bool."""
    files: tuple[str, ...]
    """Every file read, relative to the root."""
    notes: tuple[str, ...]
    """ROI sizes beside the published ones, and voxels without a noise ceiling."""


def layout_of(entry: CatalogEntry) -> Layout:
    """Return the choices of a catalog entry, checked."""
    return entry.layout_as(Layout)


def read_regions(entry: CatalogEntry, *, layout: Layout, place: Root, subject: str) -> Regions:
    """Return the voxels that lie in any catalogued ROI, in C order of their position.

    Raises
    ------
    InputError
        If a file is missing, a label is unknown, or shapes differ.
    """
    maps: dict[str, np.ndarray] = {}
    tables: dict[str, dict[str, int]] = {}
    used: list[str] = []

    def check_shapes(**others: np.ndarray) -> None:
        first = next(iter(maps.values())).shape
        for what, values in (maps | others).items():
            if values.shape != first or len(first) != 3:
                raise InputError(
                    f"{what} of {subject} in {place.url} has shape {values.shape}, another atlas "
                    f"{first}; take all from the same subject and space ({layout.space})"
                )

    def leaf(name: str, roi: Roi) -> np.ndarray:
        if roi.atlas is None:
            raise InputError(
                f"catalog entry {entry.name}: ROI '{name}' needs an atlas with labels; "
                f"NSD has no table of voxels"
            )
        if roi.atlas not in maps:
            files = layout.atlas_files(subject, atlas=roi.atlas)
            maps[roi.atlas] = _read_map(place, files, layout=layout)
            check_shapes()  # before a union joins them
            tables[roi.atlas], source = _label_table(place, subject=subject, atlas=roi.atlas)
            used.extend([*files, *source])
        return pick_labels(
            maps[roi.atlas], labels=roi.labels, table=tables[roi.atlas], atlas=roi.atlas
        )

    masks = resolve(entry.rois, leaf=leaf)
    ratio_files = layout.ncsnr_files(subject)
    ratio = _read_map(place, ratio_files, layout=layout)
    check_shapes(**{"noise ceiling": ratio})
    grid = ratio.shape
    _check_grid(entry, layout=layout, place=place, subject=subject, grid=grid)
    inside = np.logical_or.reduce(list(masks.values())).reshape(-1)
    ratio = ratio.reshape(-1)
    notes = []
    if layout.on_surface:
        # Vertices whose data left the scanned volume are NaN in betas and ncsnr alike.
        lost = int((inside & np.isnan(ratio)).sum())
        inside &= ~np.isnan(ratio)
        if lost:
            notes.append(f"{lost} vertices of the ROIs have no data and are left out")
    index = np.flatnonzero(inside)
    if not len(index):
        raise InputError(
            f"no voxel of {subject} in {place.url} lies in an ROI of the catalog entry "
            f"{entry.name}; choose other labels"
        )
    voxels = Voxels.on_grid(index, grid=grid, noise_ceiling=single_trial_ceiling(ratio[index]))
    rois = {name: mask.reshape(-1)[index] for name, mask in masks.items()}
    notes.extend(_sizes(entry, layout=layout, subject=subject, rois=rois))
    unknown = int(np.isnan(voxels.noise_ceiling).sum())
    if unknown:
        notes.append(f"{unknown} of {len(index)} voxels have no noise ceiling (NaN)")
    return Regions(
        grid=(grid[0], grid[1], grid[2]),
        voxels=voxels,
        rois=rois,
        files=(*used, *ratio_files),
        notes=tuple(notes),
    )


def single_trial_ceiling(ncsnr: np.ndarray) -> np.ndarray:
    """Return the explainable variance of one trial, ncsnr^2 / (ncsnr^2 + 1), as a fraction.

    NSD's noise ceiling in percent over k averaged repeats is 100 ncsnr^2 / (ncsnr^2 + 1/k)
    (NSD data manual). NaN, outside the brain, stays NaN.
    """
    if (ncsnr < 0).any():
        raise InputError(
            f"the noise-ceiling signal-to-noise ratio (ncsnr) is negative in "
            f"{int((ncsnr < 0).sum()):,} voxels; download it again"
        )
    power = np.square(ncsnr.astype(np.float64))
    return (power / (power + 1.0)).astype(np.float32)


def _read_map(place: Root, files: list[str], *, layout: Layout) -> np.ndarray:
    if not layout.on_surface:
        return read_volume(place, files[0])
    sides = {path.rsplit("/", 1)[-1][:2]: read_volume(place, path).reshape(-1) for path in files}
    vertices = {len(values) for values in sides.values()}
    if len(vertices) > 1:
        raise InputError(
            f"{' and '.join(place.at(path) for path in files)} have different numbers of vertices; "
            f"download them again"
        )
    absent = np.full(vertices.pop(), ELSEWHERE, dtype=np.float32)
    return np.stack([sides.get(side, absent) for side in HEMISPHERES])[:, :, None]


def _both_sides(atlas: str) -> str:
    return atlas.removeprefix("lh.").removeprefix("rh.")


def _label_table(place: Root, *, subject: str, atlas: str) -> tuple[dict[str, int], list[str]]:
    """Return the labels of an atlas: the subject's own table, fsaverage's, or the built-in one."""
    for path in label_files(place, subject=subject, atlas=atlas):
        text = decode_text(place.read(path), name=place.at(path))
        return parse_ctab(text, name=place.at(path)), [path]
    return dict(LABELS.get(_both_sides(atlas), {})), []


def label_files(place: Root, *, subject: str, atlas: str) -> list[str]:
    """Return the table of an atlas's labels that is read, or none where the built-in one is."""
    plain = _both_sides(atlas)
    candidates = [
        f"nsddata/freesurfer/{subject}/label/{plain}.mgz.ctab",
        f"nsddata/freesurfer/fsaverage/label/{plain}.mgz.ctab",
        f"nsddata/templates/{plain}.ctab",
    ]
    return [path for path in candidates if place.exists(path)][:1]


def _check_grid(
    entry: CatalogEntry, *, layout: Layout, place: Root, subject: str, grid: tuple[int, ...]
) -> None:
    expected = entry.expected_list("grid", layout.space, subject, length=3)
    if expected is not None and expected != grid:
        raise InputError(
            f"the ROIs of {subject} in {place.url} have a grid of {grid} voxels, but "
            f"{expected} is published for {layout.space}; download them again"
        )


def _sizes(
    entry: CatalogEntry, *, layout: Layout, subject: str, rois: Mapping[str, np.ndarray]
) -> list[str]:
    notes = []
    for name, mask in rois.items():
        published = entry.rois[name].published.get(subject)
        known = layout.space == "func1pt8mm" and published is not None
        beside = f" (published: {published:,})" if known else ""
        notes.append(f"ROI {name}: {int(mask.sum()):,} voxels{beside}")
    return notes
