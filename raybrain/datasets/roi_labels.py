"""Regions of interest by label name: colour tables, and the tables to fall back on."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np

from raybrain.catalog import CatalogEntry, Roi
from raybrain.config import InputError
from raybrain.spelling import hint

_KASTNER = (
    "V1v V1d V2v V2d V3v V3d hV4 VO1 VO2 PHC1 PHC2 TO2 TO1 LO2 LO1 V3B V3A "
    "IPS0 IPS1 IPS2 IPS3 IPS4 IPS5 SPL1 FEF"
)

LABELS: Mapping[str, Mapping[str, int]] = {
    atlas: {name: number for number, name in enumerate(names.split(), start=1)}
    for atlas, names in {
        "prf-visualrois": "V1v V1d V2v V2d V3v V3d hV4",
        "prf-eccrois": "ecc0pt5 ecc1 ecc2 ecc4 ecc4+",
        "streams": "early midventral midlateral midparietal ventral lateral parietal",
        "floc-faces": "OFA FFA-1 FFA-2 mTL-faces aTL-faces",
        "floc-bodies": "EBA FBA-1 FBA-2 mTL-bodies",
        "floc-places": "OPA PPA RSC",
        "floc-words": "OWFA VWFA-1 VWFA-2 mfs-words mTL-words",
        "Kastner2015": _KASTNER,
        "nsdgeneral": "nsdgeneral",
    }.items()
}
"""Atlas -> label name -> number, as NSD's own tables have them; used where a .ctab is missing."""


def parse_ctab(text: str, *, name: str) -> dict[str, int]:
    """Return label name -> number of a colour table with lines ``INT NAME``.

    FreeSurfer's own tables have four more columns (colour); they are ignored.

    Raises
    ------
    InputError
        If a line does not begin with a number and a name.
    """
    labels: dict[str, int] = {}
    for line in text.splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 2 or not re.fullmatch("-?[0-9]{1,18}", words[0]):
            raise InputError(
                f"{name} has the line '{line.strip()}'; a label table has lines 'number name'"
            )
        labels[words[1]] = int(words[0])
    return labels


def resolve(
    rois: Mapping[str, Roi], *, leaf: Callable[[str, Roi], np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the boolean mask of every ROI, unions made of the others.

    Parameters
    ----------
    leaf : callable
        Name and definition of an ROI that is no union -> mask.

    Raises
    ------
    InputError
        If a union names an ROI that does not exist or contains itself.
    """
    masks: dict[str, np.ndarray] = {}

    def mask(name: str, path: tuple[str, ...]) -> np.ndarray:
        if name in path:
            raise InputError(
                f"ROI '{name}' is a union that contains itself; take it out of the union"
            )
        if name not in rois:
            raise InputError(
                f"ROI '{path[-1]}' is a union with '{name}', which the catalog entry does not "
                f"define; choose from {', '.join(rois)}"
            )
        if name not in masks:
            roi = rois[name]
            if roi.union:
                parts = [mask(part, (*path, name)) for part in roi.union]
                masks[name] = np.logical_or.reduce(parts)
            else:
                masks[name] = leaf(name, roi)
        return masks[name]

    return {name: mask(name, ()) for name in rois}


def sizes(entry: CatalogEntry, *, subject: str, masks: Mapping[str, np.ndarray]) -> list[str]:
    """Return a sentence per ROI: its voxels beside the published number."""
    notes = []
    for name, mask in masks.items():
        published = entry.rois[name].published.get(subject)
        beside = "" if published is None else f" (published: {published:,})"
        notes.append(f"ROI {name}: {int(mask.sum()):,} voxels{beside}")
    return notes


def whole_labels(volume: np.ndarray, *, name: str) -> np.ndarray:
    """Return labels as integers, -1 (no cortex) where they are not a number.

    Raises
    ------
    InputError
        If they are not whole numbers: interpolation makes 1.5, no region, of the regions 1 and 2.
    """
    known = np.where(np.isnan(volume), -1, volume)
    nearest = np.rint(known)
    bad = ~(np.abs(known - nearest) < 1e-3)
    if bad.any():
        raise InputError(
            f"{name} has the label {known[bad].flat[0]:g} in {int(bad.sum()):,} voxels, which is "
            f"no whole number; resample it with the nearest neighbour, not by interpolation"
        )
    return nearest.astype(np.int64)


def pick_labels(
    volume: np.ndarray, *, labels: tuple[str, ...], table: Mapping[str, int], atlas: str
) -> np.ndarray:
    """Return where a label volume has one of ``labels``, or any label above 0 when none is named.

    0 is cortex without a label and -1 is no cortex, so neither ever counts.

    Raises
    ------
    InputError
        If a label is not in the table, or the volume holds fractions.
    """
    volume = whole_labels(volume, name=f"atlas {atlas}")
    if not labels:
        return volume > 0
    for label in labels:
        if label not in table:
            known = [name for name, number in table.items() if number > 0]
            told = hint(label, known, otherwise=f"it has {', '.join(known)}")
            raise InputError(f"atlas {atlas} has no label '{label}'; {told}")
    return np.isin(volume, [table[label] for label in labels if table[label] > 0])
