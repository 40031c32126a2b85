"""The Kamitani lab's Generic Object Decoding and Deep Image Reconstruction as recordings.

Horikawa & Kamitani 2017 (doi:10.1038/ncomms15037) and Shen et al. 2019
(doi:10.1371/journal.pcbi.1006633). Both publish BData (`raybrain.datasets.bdata`): the former one
file per person with a column ``DataType``, the latter a file per kind of session. Their test
categories do not occur in training. A test set is one kind of session: photographs, artificial
shapes, letters, or imagery.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from raybrain.config import InputError, Positive, Section
from raybrain.datasets import Recording, Voxels
from raybrain.datasets.bdata import Heading, read_column, read_heading, read_rows
from raybrain.datasets.contents import picture_folder
from raybrain.datasets.files import RequiredFile, Root
from raybrain.datasets.kamitani_labels import (
    FIRST_STIMULUS_ID,
    concept_of,
    is_synset,
    read_stimuli,
    stimulus_name,
)
from raybrain.datasets.pictures import find_pictures, names_and_sizes, read_pictures, read_sides
from raybrain.datasets.roi_labels import resolve, sizes
from raybrain.datasets.splits import assign, overlap, trials_of
from raybrain.datasets.synsets import caption_of, read_words
from raybrain.datasets.things_betas import check_finite
from raybrain.spelling import hint

if TYPE_CHECKING:
    from raybrain.catalog import CatalogEntry, Roi
    from raybrain.config import Ingest

Part = Literal["training", "perception", "artificial", "letters", "imagery"]
DATA_TYPES: Mapping[str, int] = {"training": 1, "perception": 2, "imagery": 3}
"""The numbers of ``DataType`` in a file that holds several kinds of session."""
TEST_SETS = ("perception", "artificial", "letters", "imagery")
LABELS = ("stimulus_id", "image_index", "Label", "stimulus_name")
"""Columns that tell which picture was shown; the first that a file has is read."""


class Layout(Section):
    """Where the sessions of a person lie, and how their labels are to be read."""

    files: dict[Part, str]
    """Kind of session -> file; ``{subject}`` is filled in. Kinds that share a file are told apart
    by its column DataType."""
    label: dict[Part, str] = Field(default_factory=dict)
    """Kind -> the column that tells the picture, where it is not the first of `LABELS`."""
    stimuli: dict[Part, str] = Field(default_factory=dict)
    """Kind -> a table without header: name of the picture, then its stimulus_id, then its
    category's number, then its own number; or only name and number. Needed where labels are
    numbers from 1."""
    drop: dict[Part, tuple[int, ...]] = Field(default_factory=dict)
    """Kind -> labels that are no picture, such as the block of fixation among those of imagery."""
    runs_per_session: Positive | None = None
    """Runs that one scan session holds; all runs of a kind count as one session when not given,
    so that responses are scaled by all of training, as both publications do."""
    images: str = "images"
    words: str = "words.txt"
    """ImageNet's list of synsets and what they are called, for captions."""

    def file(self, part: Part, *, subject: str) -> str:
        """Return the file of a kind of session."""
        return self.files[part].replace("{subject}", subject)

    def table(self, part: Part, *, subject: str) -> str | None:
        """Return the table of a kind's pictures, None where there is none."""
        return self.stimuli[part].replace("{subject}", subject) if part in self.stimuli else None


@dataclass(frozen=True)
class Samples:
    """The samples of one kind of session."""

    heading: Heading
    rows: np.ndarray
    """(trial,) int64: rows of the file."""
    names: list[str]
    """(trial,) the picture of each."""
    runs: np.ndarray
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Chosen:
    """The voxels of the ROIs."""

    voxels: Voxels
    rois: dict[str, np.ndarray]
    order: np.ndarray
    """(voxel,) place of each among a file's columns VoxelData."""


def open_recording(entry: CatalogEntry, *, root: str, subject: str, settings: Ingest) -> Recording:
    """Return one person's training samples and those of the test set that the entry names.

    Raises
    ------
    InputError
        If a file is missing or contradicts another; the message names the file and the remedy.
    """
    layout = entry.layout_as(Layout)
    place = Root(root, get=entry.get, storage=entry.storage)
    parts = _parts(entry, layout=layout)
    samples: dict[str, Samples] = {
        part: _samples(place, layout=layout, subject=subject, part=part) for part in parts
    }
    chosen = _voxels(entry, place=place, heading=samples["training"].heading)
    for part in parts[1:]:
        _check_same_voxels(
            place, first=samples["training"].heading, second=samples[part].heading, part=part
        )
    table = _table(samples, runs_per_session=layout.runs_per_session)
    if settings.sessions is not None:
        table = table[table["session"] <= settings.sessions].reset_index(drop=True)
    trials, split_notes = _trials(entry, table=table)
    names = sorted(set(table["image_id"]))
    pictures = find_pictures(
        place,
        folder=layout.images,
        names=names,
        remedy="the lab sends them on request (https://forms.gle/ujvA34948Xg49jdn9)",
    )
    words = read_words(place, layout.words)
    tables = [path for part in parts if (path := layout.table(part, subject=subject))]
    read = {}
    for number in table["session"].unique().tolist():
        rows = table[table["session"] == number]
        heading = samples[rows["part"].iloc[0]].heading
        columns = _voxel_columns(heading)[chosen.order]
        read[number] = (heading.path, rows["row"].to_numpy(), columns)
    files = [*dict.fromkeys(one.heading.path for one in samples.values()), *tables]
    return Recording(
        dataset=entry.name,
        subject=subject,
        trials=trials,
        voxels=chosen.voxels,
        rois=chosen.rois,
        images=pd.DataFrame(
            {
                "image_id": names,
                "captions": [caption_of(concept_of(name), words=words) for name in names],
                "group": [concept_of(name) for name in names],
            }
        ),
        read_session=partial(_read_session, root=place, sessions=read),
        read_images=partial(
            read_pictures, root=place, files=pictures, background=settings.background
        ),
        read_sides=partial(read_sides, root=place, files=pictures),
        sources={
            **{path: place.fingerprint(path) for path in files},
            **({layout.words: place.fingerprint(layout.words)} if words else {}),
            layout.images: names_and_sizes(place, pictures),
        },
        findings=(
            *split_notes,
            *(note for one in samples.values() for note in one.notes),
            *(() if words else (f"{place.at(layout.words)} is absent: captions are bare names",)),
            *sizes(entry, subject=subject, masks=chosen.rois),
        ),
    )


def required_files(
    entry: CatalogEntry, *, root: str, subject: str, settings: Ingest
) -> list[RequiredFile]:
    """Return every file that ingest of this subject reads, present or not; pictures as a folder."""
    layout = entry.layout_as(Layout)
    place = Root(root, get=entry.get, storage=entry.storage)
    parts = _parts(entry, layout=layout)
    responses = {
        layout.file(part, subject=subject): entry.expected("bytes", part) for part in parts
    }
    tables = [path for part in parts if (path := layout.table(part, subject=subject))]
    shown = None
    with contextlib.suppress(InputError):  # ingest tells what is wrong with the labels
        samples = [_samples(place, layout=layout, subject=subject, part=part) for part in parts]
        shown = {name for one in samples for name in one.names}
    return [
        *(place.required(path, at_most=size) for path, size in responses.items()),
        *(place.required(path) for path in (*tables, layout.words)),
        picture_folder(place, layout.images, shown=shown),
    ]


def _parts(entry: CatalogEntry, *, layout: Layout) -> tuple[Part, ...]:
    known = [part for part in TEST_SETS if part in layout.files]
    if entry.split.test not in known or "training" not in layout.files:
        raise InputError(
            f"catalog entry {entry.name}: 'split.test' cannot be '{entry.split.test}'; choose from "
            f"{', '.join(known)}, and name the files of training and of it in layout.files"
        )
    if entry.split.group not in ("image", "concept", "run"):
        raise InputError(
            f"catalog entry {entry.name}: 'split.group' cannot be '{entry.split.group}'; "
            f"choose image, concept or run"
        )
    return ("training", next(part for part in known if part == entry.split.test))


def _samples(place: Root, *, layout: Layout, subject: str, part: Part) -> Samples:
    """Return the samples of a kind of session, those without a picture left out."""
    path = layout.file(part, subject=subject)
    name = place.at(path)
    heading = read_heading(place, path)
    rows = np.arange(heading.samples)
    shared = [one for one in layout.files if layout.file(one, subject=subject) == path]
    if len(shared) > 1:
        if part not in DATA_TYPES:
            raise InputError(
                f"layout.files names {path} for {part} and others, but DataType tells only "
                f"{', '.join(DATA_TYPES)} apart; give it a file of its own"
            )
        kinds = read_column(place, heading, "DataType")
        rows = np.flatnonzero(kinds == DATA_TYPES[part])
        if not len(rows):
            raise InputError(f"{name} has no sample of DataType {DATA_TYPES[part]} ({part})")
    column = _label_column(heading, name=name, wanted=layout.label.get(part))
    values = read_column(place, heading, column)[rows]
    absent = np.isnan(values)
    dropped = np.isin(values, layout.drop.get(part, ()))
    notes = []
    if absent.any():
        notes.append(f"{part}: {int(absent.sum())} samples without a label (rest) are left out")
    if dropped.any():
        notes.append(
            f"{part}: {int(dropped.sum())} samples with the labels "
            f"{', '.join(map(str, layout.drop[part]))}, which are no picture, are left out"
        )
    kept = ~absent & ~dropped
    if not kept.any():
        raise InputError(f"{name} has no sample of {part} with a picture; get it again")
    names = _names(
        place,
        heading,
        part=part,
        column=column,
        values=values[kept],
        table=layout.table(part, subject=subject),
    )
    if part == "imagery" and any(is_synset(one) for one in names):
        names = _pictured(place, layout=layout, subject=subject, concepts=names)
        notes.append("imagery: a category was imagined; its picture of the perception test stands")
    runs = np.ones(heading.samples)
    if len(heading.columns("Run")):
        runs = read_column(place, heading, "Run")
    runs = runs[rows[kept]]
    if not (np.isfinite(runs) & (runs == np.rint(runs)) & (np.abs(runs) < 1e6)).all():
        raise InputError(f"{name} has runs that are no whole numbers; {place.again}")
    return Samples(
        heading=heading,
        rows=rows[kept],
        names=names,
        runs=runs.astype(np.int64),
        notes=tuple(notes),
    )


def _label_column(heading: Heading, *, name: str, wanted: str | None) -> str:
    if wanted is not None:
        if not len(heading.columns(wanted)):
            told = hint(wanted, heading.keys, otherwise=f"it has {', '.join(heading.keys)}")
            raise InputError(f"{name} has no column '{wanted}' (layout.label); {told}")
        return wanted
    # Numbers that the file itself gives names to need no table.
    first = [one for one in LABELS if one in heading.labels]
    found = [one for one in (*first, *LABELS) if len(heading.columns(one))]
    if not found:
        raise InputError(
            f"{name} has none of the columns {', '.join(LABELS)}; name the one that tells the "
            f"picture as 'layout.label' in the catalog entry"
        )
    return found[0]


def _names(
    place: Root,
    heading: Heading,
    *,
    part: Part,
    column: str,
    values: np.ndarray,
    table: str | None,
) -> list[str]:
    """Return the picture of every sample: from the file, from a table, or from ImageNet's rule."""
    name = place.at(heading.path)
    known = heading.labels.get(column)
    if known is not None:
        missing = sorted(set(values.tolist()) - set(known))
        if missing:
            raise InputError(f"{name} has no name for {column} {missing[0]:g}; {place.again}")
        return [known[value] for value in values.tolist()]
    if table is not None:
        pictures = read_stimuli(place, table)
        unknown = [value for value in values.tolist() if pictures.get(value) is None]
        if unknown:
            raise InputError(
                f"{place.at(table)} has no picture number {unknown[0]:.6f}, which {name} gives as "
                f"{column} of {part}; take the table of the same session (layout.stimuli)"
            )
        return [str(pictures.get(value)) for value in values.tolist()]
    if (values >= FIRST_STIMULUS_ID).all():
        return [stimulus_name(value) for value in values.tolist()]
    raise InputError(
        f"{name} numbers the pictures of {part} from {values.min():g} ({column}) and does not name "
        f"them; give the table of names and numbers as 'layout.stimuli' in the catalog entry"
    )


def _pictured(place: Root, *, layout: Layout, subject: str, concepts: Sequence[str]) -> list[str]:
    """Return the one picture that the perception test showed of each category."""
    if "perception" not in layout.files:
        raise InputError("imagery of categories needs layout.files.perception for its pictures")
    shown: dict[str, set[str]] = {}
    for one in _samples(place, layout=layout, subject=subject, part="perception").names:
        shown.setdefault(concept_of(one), set()).add(one)
    for concept in concepts:
        if is_synset(concept) and len(shown.get(concept, ())) != 1:
            raise InputError(
                f"the category {concept} was imagined, but the perception test shows "
                f"{len(shown.get(concept, ()))} pictures of it where one is needed"
            )
    return [next(iter(shown[one])) if is_synset(one) else one for one in concepts]


def _voxel_columns(heading: Heading) -> np.ndarray:
    columns = heading.columns("VoxelData")
    if not len(columns):
        raise InputError(f"{heading.path} has no columns 'VoxelData'; get a file of responses")
    return columns


def _positions(heading: Heading) -> np.ndarray | None:
    """Return (voxel, 3) positions as the file has them: places in the volume, or millimetres."""
    columns = _voxel_columns(heading)
    for axes in ("ijk", "xyz"):
        keys = [f"voxel_{axis}" for axis in axes]
        if all(key in heading.keys for key in keys):
            found = np.stack([heading.keys[key][columns] for key in keys], axis=1)
            if np.isfinite(found).all():
                return found
    return None


def _grid(positions: np.ndarray) -> np.ndarray | None:
    """Return places (voxel, 3) int64 on the coarsest grid that holds all positions, None if none.

    Voxels of 3 mm lie at -4.5, -1.5, 1.5: a place is the number of steps from the lowest.
    """
    places = np.zeros(positions.shape, dtype=np.int64)
    for axis, values in enumerate(positions.T):
        steps = np.diff(np.unique(np.round(values, 3)))
        if not len(steps):
            continue
        place = (values - values.min()) / steps.min()
        if np.abs(place - np.rint(place)).max() > 0.01 or place.max() > 10_000:
            return None
        places[:, axis] = np.rint(place)
    return places


def _voxels(entry: CatalogEntry, *, place: Root, heading: Heading) -> Chosen:
    columns = _voxel_columns(heading)
    name = place.at(heading.path)

    def leaf(roi_name: str, roi: Roi) -> np.ndarray:
        if not roi.columns:
            raise InputError(
                f"catalog entry {entry.name}: ROI '{roi_name}' needs columns such as ROI_V1; BData "
                f"has no label volumes"
            )
        mask = np.zeros(len(columns), dtype=bool)
        for key in roi.columns:
            if key not in heading.keys:
                known = ", ".join(one for one in heading.keys if one.startswith("ROI_"))
                told = hint(key, heading.keys, otherwise=f"it has {known or 'none'}")
                raise InputError(f"{name} has no column '{key}'; {told}")
            values = heading.keys[key][columns]
            if not np.isin(values[~np.isnan(values)], (0, 1)).all():
                raise InputError(
                    f"{name} has values other than 1 and nothing in {key}; an ROI's flag is 1"
                )
            mask |= values == 1
        return mask

    masks = resolve(entry.rois, leaf=leaf)
    inside = np.logical_or.reduce(list(masks.values()))
    if not inside.any():
        raise InputError(f"no voxel of {name} lies in an ROI; choose other columns")
    positions = _positions(heading)
    places = None if positions is None else _grid(positions)
    if places is None:
        index = np.arange(len(columns))
        places = np.stack([index, np.zeros_like(index), np.zeros_like(index)], axis=1)
    else:
        index = np.ravel_multi_index(tuple(places.T), tuple(places.max(axis=0) + 1))
        if len(np.unique(index)) != len(index):
            raise InputError(f"{name} lists a voxel's position twice; {place.again}")
    order = np.argsort(index, kind="stable")
    order = order[inside[order]]
    return Chosen(
        voxels=Voxels(
            index=index[order].astype(np.int64),
            xyz=places[order].astype(np.int32),
            noise_ceiling=np.full(len(order), np.nan, dtype=np.float32),
        ),
        rois={roi: mask[order] for roi, mask in masks.items()},
        order=order,
    )


def _check_same_voxels(place: Root, *, first: Heading, second: Heading, part: str) -> None:
    """Raise `InputError` if two files of a person do not hold the same voxels in the same order."""
    if first.path == second.path:
        return
    one, other = _positions(first), _positions(second)
    same = len(_voxel_columns(first)) == len(_voxel_columns(second)) and (
        (one is None) == (other is None)
    )
    if not same or (one is not None and other is not None and not np.array_equal(one, other)):
        raise InputError(
            f"{place.at(second.path)} ({part}) holds other voxels than {place.at(first.path)}; "
            f"take both from the same release"
        )


def _table(samples: Mapping[str, Samples], *, runs_per_session: int | None) -> pd.DataFrame:
    """Return part, row, image_id, session and run of every sample, sessions ascending."""
    frames, before = [], 0
    for part, one in samples.items():
        ordinal = np.searchsorted(np.unique(one.runs), one.runs)
        session = before + 1 + (0 if runs_per_session is None else ordinal // runs_per_session)
        frame = pd.DataFrame({"part": part, "row": one.rows, "image_id": one.names})
        frame["session"], frame["run"] = session, one.runs
        frames.append(frame.sort_values("session", kind="stable"))
        before = int(np.max(session))
    return pd.concat(frames, ignore_index=True)


def _trials(entry: CatalogEntry, *, table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    is_test = (table["part"] != "training").to_numpy()
    concept = table["image_id"].map(concept_of)
    group = {
        "image": table["image_id"],
        "concept": concept,
        "run": "run " + table["run"].astype(str),
    }[entry.split.group]
    split = assign(is_test=is_test, group=group, validation=entry.split.validation)
    trials = trials_of(table, split=split)
    return trials, [
        f"{int((~is_test).sum())} training samples of {table['image_id'][~is_test].nunique()} "
        f"pictures; test set {entry.split.test}: {table['image_id'][is_test].nunique()} pictures "
        f"in {int(is_test.sum())} samples",
        overlap(entry, image_id=table["image_id"], concept=concept, is_test=is_test),
    ]


def _read_session(
    session: int,
    *,
    root: Root,
    sessions: Mapping[int, tuple[str, np.ndarray, np.ndarray]],
) -> np.ndarray:
    """Return (trial, voxel) float32 of one session."""
    path, rows, columns = sessions[session]
    betas = read_rows(root, path, rows=rows, columns=columns)
    check_finite(betas, name=f"session {session} of {root.at(path)}", again=root.again)
    return betas
