"""LAION-fMRI (2026, https://laion-fmri.hebartlab.com) as a recording.

Layout as the dataset's own package reads it (https://github.com/ViCCo-Group/LAION-fMRI): a volume
series of GLMsingle's betas and a table of trials per session, a mask per region, noise ceilings in
percent, one HDF5 file of encoded pictures, and the package's own splits as JSON. Its documentation
was a draft when this was written; what may still change is a setting of `Layout`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from raybrain.config import InputError, Positive, Section
from raybrain.datasets import Recording, Voxels
from raybrain.datasets.files import RequiredFile, Root
from raybrain.datasets.hdf5 import opened_list, read_values
from raybrain.datasets.masks import read_masks
from raybrain.datasets.pictures import decode, side_of
from raybrain.datasets.roi_labels import sizes
from raybrain.datasets.splits import assign, check_rule, overlap, trials_of
from raybrain.datasets.tables import read_table, whole_numbers
from raybrain.datasets.things_betas import read_volume_session
from raybrain.datasets.volumes import read_header, read_volume

if TYPE_CHECKING:
    from raybrain.catalog import CatalogEntry
    from raybrain.config import Ingest

ATLAS = "rois"
"""The folder of derivatives that the masks lie in."""
TEST_SETS = ("random_[0-4]", "cluster_k5_[0-4]", "tau", "ood")
"""The dataset's own splits: random folds, one CLIP cluster held out, a split whose test images are
no nearer to training than they must be, and images of other kinds."""
UNKNOWN = "a photograph"


class Layout(Section):
    """Where the files lie; ``{subject}`` and ``{session}`` (two digits) are filled in."""

    folder: str = "derivatives/glmsingle-tedana/{subject}"
    betas: str = (
        "ses-{session}/func/{subject}_ses-{session}_task-images_space-T1w_stat-effect_"
        "desc-SingletrialBetas_statmap.nii.gz"
    )
    trials: str = (
        "ses-{session}/func/{subject}_ses-{session}_task-images_desc-SingletrialBetas_trials.tsv"
    )
    ceiling: str | None = "{subject}_task-images_space-T1w_desc-Noiseceiling12rep_statmap.nii.gz"
    ceiling_repeats: Positive = 12
    """How many repeats the noise ceiling is for, in percent."""
    rois: str = "derivatives/rois/{subject}"
    """Masks lie in a folder per kind of region below this one."""
    mask: str = "{subject}_space-T1w_res-1pt8_label-{label}_mask.nii.gz"
    stimuli: str = "stimuli/task-images_stimuli.h5"
    metadata: str = "stimuli/task-images_metadata.csv"
    captions: str = "stimuli/task-images_desc-captions.csv"
    splits: str = "splits/{pool}/{split}.json"
    """``laion_fmri/splits/data`` of the dataset's package, copied to the root."""
    pool: str = "{subject}"
    """``shared`` for the images that everyone saw, or the subject."""

    def at(self, template: str, *, subject: str, session: int = 0) -> str:
        """Return a file's path below ``folder``."""
        return self.fill(f"{self.folder}/{template}", subject=subject, session=session)

    def fill(self, template: str, *, subject: str, session: int = 0) -> str:
        """Return a template with the subject and session filled in."""
        return template.replace("{subject}", subject).replace("{session}", f"{session:02d}")

    def split_file(self, entry: CatalogEntry, *, subject: str) -> str:
        """Return where the entry's split lies."""
        pool = self.fill(self.pool, subject=subject)
        return self.splits.replace("{pool}", pool).replace("{split}", entry.split.test)


def open_recording(entry: CatalogEntry, *, root: str, subject: str, settings: Ingest) -> Recording:
    """Return one subject's trials within the split, voxels of the ROIs and pictures.

    Raises
    ------
    InputError
        If a file is missing or contradicts another; the message names the file and the remedy.
    """
    layout = _layout(entry)
    place = Root(root, get=entry.get, storage=entry.storage)
    sessions = _sessions(place, layout=layout, subject=subject)
    if settings.sessions is not None:
        sessions = [session for session in sessions if session <= settings.sessions]
    if not sessions:
        raise place.missing(layout.at(layout.betas, subject=subject, session=1))
    shown = pd.concat(
        [
            read_trials(place, layout.at(layout.trials, subject=subject, session=session)).assign(
                session=session
            )
            for session in sessions
        ],
        ignore_index=True,
    )
    files = {k: layout.at(layout.betas, subject=subject, session=k) for k in sessions}
    for session, path in files.items():
        _check_volumes(place, path=path, trials=int((shown["session"] == session).sum()))
    split_file = layout.split_file(entry, subject=subject)
    trained, tested = read_split(place, split_file)
    table, trials, split_notes = _trials(entry, shown=shown, trained=trained, tested=tested)
    masks = read_masks(
        entry,
        place=place,
        atlas=ATLAS,
        find=lambda label: _mask_file(place, layout=layout, subject=subject, label=label),
    )
    inside = np.logical_or.reduce(list(masks.rois.values()))
    ceiling, ceiling_files = _ceiling(place, layout=layout, subject=subject, grid=masks.grid)
    lost = int((inside & np.isnan(ceiling)).sum()) if ceiling_files else 0
    index = np.flatnonzero(inside & ~np.isnan(ceiling) if ceiling_files else inside)
    if not len(index):
        raise InputError(f"no voxel of {subject} in {place.url} lies in an ROI; choose other masks")
    names = sorted(set(table["image_id"]))
    numbers = _numbers(place, layout=layout, names=names)
    captions, caption_notes = _captions(place, layout=layout, names=names)
    rois = {name: mask[index] for name, mask in masks.rois.items()}
    runs: dict[int, np.ndarray] = {
        number: table["beta_index"][table["session"] == number].to_numpy()
        for number in table["session"].unique().tolist()
    }
    sources = [
        *(layout.at(layout.trials, subject=subject, session=session) for session in runs),
        *(split_file, layout.metadata, layout.stimuli),
        *([] if caption_notes else [layout.captions]),
        *ceiling_files,
        *masks.files,
        *(files[session] for session in runs),
    ]
    return Recording(
        dataset=entry.name,
        subject=subject,
        trials=trials,
        voxels=Voxels.on_grid(index, grid=masks.grid, noise_ceiling=ceiling[index]),
        rois=rois,
        images=pd.DataFrame(
            {"image_id": names, "captions": captions, "group": list(map(group_of, names))}
        ),
        read_session=partial(
            read_volume_session,
            root=place,
            files={session: [files[session]] for session in runs},
            volumes={session: [kept] for session, kept in runs.items()},
            counts={k: [int((shown["session"] == k).sum())] for k in runs},
            flat=index.astype(np.int64),
            grid=masks.grid,
        ),
        read_images=partial(
            _read_images,
            root=place,
            path=layout.stimuli,
            numbers=numbers,
            background=settings.background,
        ),
        read_sides=partial(_read_sides, root=place, path=layout.stimuli, numbers=numbers),
        sources={path: place.fingerprint(path) for path in sources},
        findings=(
            *split_notes,
            *caption_notes,
            *([f"{lost} voxels of the ROIs have no noise ceiling and are left out"] * (lost > 0)),
            *sizes(entry, subject=subject, masks=rois),
        ),
    )


def required_files(
    entry: CatalogEntry, *, root: str, subject: str, settings: Ingest
) -> list[RequiredFile]:
    """Return every file that ingest of this subject reads, present or not."""
    layout = _layout(entry)
    place = Root(root, get=entry.get, storage=entry.storage)
    planned = entry.expected("sessions", subject) or max(
        _sessions(place, layout=layout, subject=subject), default=1
    )
    sessions = range(1, min(planned, settings.sessions or planned) + 1)
    labels = dict.fromkeys(label for roi in entry.rois.values() for label in roi.labels)
    files = [
        *(layout.at(layout.trials, subject=subject, session=session) for session in sessions),
        layout.split_file(entry, subject=subject),
        *(layout.metadata, layout.captions),
        *(_mask_file(place, layout=layout, subject=subject, label=label) for label in labels),
        *([layout.at(layout.ceiling, subject=subject)] if layout.ceiling else []),
    ]
    betas = [layout.at(layout.betas, subject=subject, session=session) for session in sessions]
    most = entry.expected("session_bytes")
    return [
        *(place.required(path) for path in files),
        place.required(layout.stimuli, at_most=entry.expected("stimuli_bytes")),
        *(place.required(path, at_most=most) for path in betas),
    ]


def read_trials(root: Root, path: str) -> pd.DataFrame:
    """Return image_id, run and beta_index of a session, one row per volume, in their order.

    Raises
    ------
    InputError
        If the volumes are not counted 0, 1, 2, ...
    """
    name = root.at(path)
    columns = ("run", "beta_index", "label")
    table = read_table(root, path, columns=columns, text=("run", "label"))
    index = whole_numbers(table, "beta_index", name=name)
    order = np.argsort(index, kind="stable")
    if not len(index) or not np.array_equal(index[order], np.arange(len(index))):
        raise InputError(f"{name} does not count its volumes 0, 1, 2, ... once; {root.again}")
    runs = table["run"].str.extract(r"(\d{1,4})$")[0]
    if runs.isna().any() or not table["label"].str.strip().all():
        raise InputError(f"{name} has a trial without a run or a label; {root.again}")
    return (
        pd.DataFrame(
            {
                "image_id": table["label"].str.strip(),
                "run": runs.astype(np.int64),
                "beta_index": index,
            }
        )
        .iloc[order]
        .reset_index(drop=True)
    )


def read_split(root: Root, path: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the labels that train and those that test, of the first variant of a split.

    Raises
    ------
    InputError
        If it is no split of the dataset's package, or an image is on both sides.
    """
    name = root.at(path)
    content = root.read(path)
    try:
        variant = json.loads(content)["variants"][0]
        sides = [frozenset(map(str, variant[key])) for key in ("train_ids", "test_ids")]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        raise InputError(
            f"{name} is no split with variants of train_ids and test_ids; copy it again from "
            f"laion_fmri/splits/data"
        ) from None
    if sides[0] & sides[1]:
        raise InputError(f"{name} has {min(sides[0] & sides[1])} on both sides; copy it again")
    return sides[0], sides[1]


def group_of(label: str) -> str:
    """Return the cluster of a LAION image, the kind of an out-of-distribution one, or ''."""
    kind = re.search(r"_OOD_([A-Za-z0-9-]+)_", label)
    cluster = re.search(r"_(cluster_\d+)", label)
    return f"OOD {kind.group(1)}" if kind else cluster.group(1) if cluster else ""


def single_trial(percent: np.ndarray, *, repeats: int) -> np.ndarray:
    """Return the explainable variance of one trial, a fraction, from that of a mean in percent.

    100 r / (r + 1 / repeats) is published, where r is the ratio of the variances of signal and
    noise (NSD's ncsnr squared); r / (r + 1) is of a single trial.
    """
    share = percent.astype(np.float64) / 100.0
    with np.errstate(divide="ignore"):
        ratio = share / (1.0 - share) / repeats
    return np.where(np.isinf(ratio), 1.0, ratio / (1.0 + np.where(np.isinf(ratio), 0.0, ratio)))


def _layout(entry: CatalogEntry) -> Layout:
    check_rule(entry, "test", known=TEST_SETS)
    check_rule(entry, "group", known=("image", "concept", "cluster"))
    return entry.layout_as(Layout)


def _sessions(place: Root, *, layout: Layout, subject: str) -> list[int]:
    names = place.names(layout.fill(layout.folder, subject=subject))
    matches = [re.fullmatch(r"ses-([0-9]{1,4})", name) for name in names]
    found = [int(match.group(1)) for match in matches if match]
    return [
        session
        for session in sorted(found)
        if place.exists(layout.at(layout.betas, subject=subject, session=session))
    ]


def _mask_file(place: Root, *, layout: Layout, subject: str, label: str) -> str:
    """Return the mask of a region, which lies in a folder for its kind."""
    folder = layout.fill(layout.rois, subject=subject)
    name = layout.fill(layout.mask, subject=subject).replace("{label}", label)
    for kind in place.names(folder):
        if place.exists(f"{folder}/{kind}/{name}"):
            return f"{folder}/{kind}/{name}"
    return f"{folder}/{name}"


def _check_volumes(place: Root, *, path: str, trials: int) -> None:
    shape = read_header(place, path).shape
    count = shape[3] if len(shape) > 3 else 1
    if count != trials:
        raise InputError(
            f"{place.at(path)} has {count} volumes, but its table lists {trials} trials; "
            f"{place.again}"
        )


def _trials(
    entry: CatalogEntry, *, shown: pd.DataFrame, trained: frozenset[str], tested: frozenset[str]
) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Return the rows of the split, the recording's trials, and what to tell."""
    known = shown["image_id"].isin(trained | tested)
    table = shown[known].reset_index(drop=True)
    if not len(table):
        raise InputError(
            f"no trial shows an image of the split {entry.split.test}; take the split of this "
            f"subject (layout.pool)"
        )
    is_test = table["image_id"].isin(tested).to_numpy()
    group = table["image_id"]
    concept = group.map(group_of)
    if entry.split.group != "image":
        group = concept.where(concept != "", group)
    split = assign(is_test=is_test, group=group, validation=entry.split.validation)
    trials = trials_of(table, split=split)
    return (
        table,
        trials,
        [
            f"{table['session'].nunique()} sessions, {len(table)} trials; test set "
            f"{entry.split.test}: {table['image_id'][is_test].nunique()} images in "
            f"{int(is_test.sum())} trials; {int((~known).sum())} trials of other images left out",
            overlap(entry, image_id=table["image_id"], concept=concept, is_test=is_test),
        ],
    )


def _ceiling(
    place: Root, *, layout: Layout, subject: str, grid: tuple[int, ...]
) -> tuple[np.ndarray, list[str]]:
    if not layout.ceiling:
        return np.full(int(np.prod(grid)), np.nan), []
    path = layout.at(layout.ceiling, subject=subject)
    percent = read_volume(place, path)
    if percent.shape != grid:
        raise InputError(
            f"{place.at(path)} has shape {percent.shape}, but the ROIs {grid}; take both from the "
            f"same subject and space"
        )
    flat = percent.reshape(-1)
    if (flat < 0).any() or (flat > 100).any():
        raise InputError(f"{place.at(path)} has noise ceilings outside 0..100 %; {place.again}")
    return single_trial(flat, repeats=layout.ceiling_repeats), [path]


def _numbers(place: Root, *, layout: Layout, names: Sequence[str]) -> dict[str, int]:
    """Return image -> its place in the file of pictures, which has the order of the table."""
    path = layout.metadata
    listed = read_table(place, path, columns=("image_name",), text=("image_name",))["image_name"]
    if listed.duplicated().any():
        raise InputError(f"{place.at(path)} lists {listed[listed.duplicated()].iloc[0]} twice")
    number = dict(zip(listed, range(len(listed)), strict=True))
    missing = [name for name in names if name not in number]
    if missing:
        raise InputError(
            f"{place.at(path)} does not list {missing[0]}, which was shown ({len(missing)} images "
            f"are missing); {place.again}"
        )
    with opened_list(place, layout.stimuli, name="images") as images:
        if images.shape != (len(listed),):
            raise InputError(
                f"{place.at(layout.stimuli)} has {images.shape} pictures, but {place.at(path)} "
                f"lists {len(listed)}; take both from the same release"
            )
    return {name: number[name] for name in names}


def _captions(
    place: Root, *, layout: Layout, names: Sequence[str]
) -> tuple[list[tuple[str, ...]], list[str]]:
    """Return people's captions, the best first, or the machine's where there is none."""
    path = layout.captions
    if not place.exists(path):
        note = f"{place.at(path)} is absent: every caption is '{UNKNOWN}'"
        return [(UNKNOWN,) for _ in names], [note]
    columns = ("image_name", "caption_idx", "source", "caption")
    table = read_table(place, path, columns=columns, text=("image_name", "source", "caption"))
    table["caption_idx"] = whole_numbers(table, "caption_idx", name=place.at(path))
    by_people: dict[str, list[str]] = {}
    by_machine: dict[str, list[str]] = {}
    for row in table.sort_values("caption_idx", kind="stable").itertuples():
        text = str(row.caption).strip()
        if text:
            side = by_people if row.source == "human" else by_machine
            side.setdefault(str(row.image_name), []).append(text)
    return [tuple(by_people.get(name) or by_machine.get(name) or [UNKNOWN]) for name in names], []


def _read_images(
    image_ids: Sequence[str],
    *,
    root: Root,
    path: str,
    numbers: Mapping[str, int],
    background: str,
) -> list[np.ndarray]:
    return [
        decode(content, name=f"{root.at(path)}: {name}", background=background)
        for name, content in _contents(image_ids, root=root, path=path, numbers=numbers)
    ]


def _read_sides(
    image_ids: Sequence[str], *, root: Root, path: str, numbers: Mapping[str, int]
) -> list[int]:
    return [
        side_of(content, name=f"{root.at(path)}: {name}")
        for name, content in _contents(image_ids, root=root, path=path, numbers=numbers)
    ]


def _contents(
    image_ids: Sequence[str], *, root: Root, path: str, numbers: Mapping[str, int]
) -> Iterator[tuple[str, bytes]]:
    """Yield the encoded pictures, in the order asked for."""
    rows = [numbers[name] for name in image_ids]
    return zip(image_ids, read_values(root, path, name="images", rows=rows), strict=True)
