"""Haxby et al. 2001 (doi:10.1126/science.1063736): one person sees blocks of eight categories.

Reads the tree of nilearn's ``fetch_haxby`` (``subj1/bold.nii.gz``, ``labels.txt``, masks,
``stimuli/``) and a folder with only ``bold.nii.gz`` and ``attributes_literal.txt``. A trial is a
block: the mean of its volumes after linear detrending and z-scoring of each voxel within each run.
Which exemplars a block showed is not recorded, so pictures and captions stand for the category.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from raybrain.config import InputError, Section
from raybrain.datasets import Recording, Voxels
from raybrain.datasets.files import RequiredFile, Root
from raybrain.datasets.haxby_blocks import (
    check_responses,
    clean,
    find_blocks,
    find_delay,
    read_blocks,
    read_labels,
)
from raybrain.datasets.pictures import category_pictures, picture_files
from raybrain.datasets.roi_labels import resolve, whole_labels
from raybrain.datasets.splits import assign
from raybrain.datasets.volumes import read_header, read_series, read_volume

if TYPE_CHECKING:
    from raybrain.catalog import CatalogEntry, Roi
    from raybrain.config import Ingest

TR = 2.5
"""Seconds per volume, Haxby et al. 2001."""
BRAIN = "brain"
"""Name of the atlas made from the mean volume: voxels above a tenth of its 98th percentile."""
CAPTIONS = {"scrambledpix": "a scrambled picture", "scissors": "a pair of scissors"}


class Layout(Section):
    """Choices for Haxby's data."""

    delay: float | None = None
    """Seconds from a label to the response; found from stimulation against rest when not given."""


@dataclass(frozen=True)
class Places:
    """Where the files of one subject lie."""

    bold: str
    labels: str
    masks: Mapping[str, str]
    """Atlas -> file, as far as the entry names them."""
    absent: tuple[str, ...] = ()
    """Atlases without a file in a folder that holds nothing but one subject's series."""


def open_recording(entry: CatalogEntry, *, root: str, subject: str, settings: Ingest) -> Recording:
    """Return one subject's blocks; targets are categories.

    Raises
    ------
    InputError
        If a file is missing or damaged, or if labels and volumes do not fit each other.
    """
    layout = entry.layout_as(Layout)
    place = Root(root, get=entry.get, storage=entry.storage)
    places = _places(entry, place=place, subject=subject)
    labels = read_labels(place, places.labels)
    header = read_header(place, places.bold)
    if len(header.shape) != 4 or header.shape[3] != len(labels):
        raise InputError(
            f"{place.at(places.bold)} has {(*header.shape, 1)[3]} volumes, but "
            f"{place.at(places.labels)} has {len(labels)} labels; take both from the same subject"
        )
    x, y, z = header.shape[:3]
    masks, series = _masks(entry, place=place, places=places, grid=(x, y, z), labels=labels)
    inside = np.logical_or.reduce(list(masks.values()))
    index = np.flatnonzero(inside)
    blocks = find_blocks(labels, name=place.at(places.labels))
    is_test = _is_test(entry, runs=blocks["run"])
    group = "run " + blocks["run"].astype(str)
    split = assign(is_test=is_test, group=group, validation=entry.split.validation)
    trained = labels["run"].isin(blocks["run"][~is_test]).to_numpy()
    cleaned = clean(series[:, index], run=labels["run"].to_numpy())
    found = find_delay(cleaned[trained], labels=labels[trained])
    shift = found if layout.delay is None else round(layout.delay / TR)
    check_responses(blocks, labels=labels, shift=shift, name=place.at(places.labels))
    image_id = [
        f"run{run:02d}-{category}"
        for run, category in zip(blocks["run"], blocks["category"], strict=True)
    ]
    trials = pd.DataFrame(
        {
            "image_id": image_id,
            "session": 1,
            "run": blocks["run"],
            "repeat": blocks.groupby(["run", "category"]).cumcount(),
            "split": split,
        }
    )
    images = pd.DataFrame({"image_id": image_id, "group": blocks["category"]})
    images = images.drop_duplicates("image_id").sort_values("image_id", ignore_index=True)
    images["captions"] = [
        (CAPTIONS.get(category, f"a {category}"),) for category in images["group"]
    ]
    pictures = picture_files(place)
    how = "found from stimulation against rest in the training runs"
    if layout.delay is not None:
        how = f"as set; stimulation against rest says {found * TR:g} s"
    return Recording(
        dataset=entry.name,
        subject=subject,
        trials=trials,
        voxels=Voxels.on_grid(index, grid=(x, y, z)),
        rois={name: mask[index] for name, mask in masks.items()},
        images=images[["image_id", "captions", "group"]],
        read_session=partial(
            read_blocks,
            root=place,
            bold=places.bold,
            voxels=index.astype(np.int64),
            grid=(x, y, z),
            runs=labels["run"].to_numpy(),
            blocks=tuple(zip(blocks["start"].tolist(), blocks["stop"].tolist(), strict=True)),
            shift=shift,
        ),
        read_images=partial(_read_images, root=place, files=pictures, size=settings.image_size),
        sources={
            path: place.fingerprint(path)
            for path in (places.bold, places.labels, *places.masks.values(), *_flat(pictures))
        },
        findings=(
            "targets are categories: a block's exemplars are not recorded, so every score measures "
            "category decoding",
            f"pictures stand for their category: {_origin(pictures)}",
            f"{len(trials)} blocks in {blocks['run'].nunique()} runs; test set "
            f"{entry.split.test}: runs {', '.join(map(str, sorted(set(blocks['run'][is_test]))))}",
            f"responses {shift * TR:g} s after the labels ({how})",
            *(f"there is no {atlas}.nii.gz here: its ROI is empty" for atlas in places.absent),
            *(f"ROI {name}: {int(mask.sum()):,} voxels" for name, mask in masks.items()),
        ),
        target="category",
        units="1",
    )


def required_files(
    entry: CatalogEntry, *, root: str, subject: str, settings: Ingest
) -> list[RequiredFile]:
    """Return every file that ingest of this subject reads, present or not."""
    place = Root(root, get=entry.get, storage=entry.storage)
    places = _places(entry, place=place, subject=subject)
    files = (places.bold, places.labels, *places.masks.values(), *_flat(picture_files(place)))
    return [place.required(path) for path in files]


def _places(entry: CatalogEntry, *, place: Root, subject: str) -> Places:
    alone = place.exists("bold.nii.gz")
    folder = "" if alone else f"{subject}/"
    masks = {}
    for roi in entry.rois.values():
        if roi.atlas and roi.atlas != BRAIN:
            # nilearn keeps the whole-brain mask beside the subjects.
            masks[roi.atlas] = f"{'' if roi.atlas == 'mask' else folder}{roi.atlas}.nii.gz"
    # A lone series, such as PyMVPA's slice, comes without masks; nilearn's tree has them all.
    absent = {atlas for atlas, path in masks.items() if alone and not place.exists(path)}
    labels = "attributes_literal.txt" if alone else "labels.txt"
    if not place.exists(f"{folder}{labels}") and place.exists(f"{folder}labels.txt"):
        labels = "labels.txt"
    return Places(
        bold=f"{folder}bold.nii.gz",
        labels=f"{folder}{labels}",
        masks={atlas: path for atlas, path in masks.items() if atlas not in absent},
        absent=tuple(sorted(absent)),
    )


def _is_test(entry: CatalogEntry, *, runs: pd.Series) -> np.ndarray:
    """Return the blocks of the held-out runs."""
    rule = entry.split.test
    if entry.split.group != "run":
        raise InputError(
            f"catalog entry {entry.name}: 'split.group' cannot be '{entry.split.group}'; blocks of "
            f"one run share its noise, so write run"
        )
    if rule == "every-third-run":
        return (runs % 3 == 0).to_numpy()
    by_name = {f"run-{number}": number for number in set(runs)}
    if rule in by_name:
        return (runs == by_name[rule]).to_numpy()
    raise InputError(
        f"catalog entry {entry.name}: 'split.test' cannot be '{rule}'; write every-third-run, or "
        f"run-1 to run-{runs.max()} to leave one run out"
    )


def _masks(
    entry: CatalogEntry,
    *,
    place: Root,
    places: Places,
    grid: tuple[int, int, int],
    labels: pd.DataFrame,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return flat masks of voxels that vary in every run, and (volume, all voxels) as stored."""
    everything = np.arange(int(np.prod(grid)))
    series = read_series(place, places.bold, voxels=everything, grid=grid)
    if series.dtype.kind == "f" and not np.isfinite(series).all():
        raise InputError(
            f"{place.at(places.bold)} has values that are not finite; download it again"
        )
    varying = np.ones(len(everything), dtype=bool)
    for run in labels["run"].unique():
        volumes = series[(labels["run"] == run).to_numpy()]
        varying &= volumes.min(axis=0) < volumes.max(axis=0)
    mean = series.mean(axis=0, dtype=np.float64)

    def leaf(name: str, roi: Roi) -> np.ndarray:
        if roi.atlas is None or roi.labels:
            raise InputError(
                f"catalog entry {entry.name}: ROI '{name}' needs an atlas without labels: "
                f"'{BRAIN}' or the name of a mask"
            )
        if roi.atlas == BRAIN:
            return varying & (mean > 0.1 * np.percentile(mean, 98))
        if roi.atlas in places.absent:
            return np.zeros(len(everything), dtype=bool)
        volume = read_volume(place, places.masks[roi.atlas])
        if volume.shape[:3] != grid:
            raise InputError(
                f"{place.at(places.masks[roi.atlas])} has shape {volume.shape}, but "
                f"{place.at(places.bold)} {grid}; take both from the same subject"
            )
        mask = whole_labels(volume, name=place.at(places.masks[roi.atlas]))
        return varying & (mask.reshape(-1) > 0)

    masks = resolve(entry.rois, leaf=leaf)
    if not np.logical_or.reduce(list(masks.values())).any():
        raise InputError(f"no voxel of {place.at(places.bold)} lies in an ROI; choose other masks")
    return masks, series


def _read_images(
    image_ids: Sequence[str], *, root: Root, files: Mapping[str, Sequence[str]], size: int
) -> list[np.ndarray]:
    wanted = {image_id: image_id.split("-", 1)[1] for image_id in image_ids}
    found = category_pictures(root, categories=sorted(set(wanted.values())), files=files, size=size)
    return [found[wanted[image_id]] for image_id in image_ids]


def _flat(files: Mapping[str, Sequence[str]]) -> list[str]:
    return [path for group in files.values() for path in group]


def _origin(files: Mapping[str, Sequence[str]]) -> str:
    if not files:
        return "OpenMoji drawings as stand-ins, since the stimuli are not in this folder"
    return "of the photographs shown, the one nearest to the category's mean"
