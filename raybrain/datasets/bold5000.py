"""BOLD5000, release 2.0 (Chang et al. 2019, doi:10.1038/s41597-019-0052-3) as a recording.

Responses are GLMsingle's betas, a volume series per scan session
(https://figshare.com/articles/dataset/BOLD5000_Release_2_0/14456124). One list names the picture of
every trial over all sessions. The test set is the 113 pictures shown several times; a list names
them, since the prefix ``rep_`` is missing where one of them is shown first.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from raybrain.config import InputError, Section
from raybrain.datasets import Recording, Voxels
from raybrain.datasets.contents import picture_folder
from raybrain.datasets.files import RequiredFile, Root
from raybrain.datasets.masks import read_masks
from raybrain.datasets.nsd_tables import annotated
from raybrain.datasets.pictures import (
    find_pictures,
    names_and_sizes,
    names_of_all,
    read_pictures,
    read_sides,
    stem_of,
)
from raybrain.datasets.roi_labels import sizes
from raybrain.datasets.splits import assign, check_rule, overlap, trials_of
from raybrain.datasets.synsets import caption_of, read_words, synset_of
from raybrain.datasets.tables import decode_text
from raybrain.datasets.things_betas import read_volume_session
from raybrain.datasets.volumes import read_header, read_volume

if TYPE_CHECKING:
    from raybrain.catalog import CatalogEntry
    from raybrain.config import Ingest

ATLAS = "spm"
"""The folder of OpenNeuro's ds001499 that the masks of the localizer lie in."""
MISNAMED = {"LHLOC": "LHLO", "RHLOC": "RHLO", "RHRSC": "RHRRSC"}
"""Masks of CSI2 and CSI3 as they are published under another name."""
TEST_SETS = ("repeated",)
REPEAT = "rep_"
COCO = "COCO_train2014_"
"""Before the number of a COCO picture in some lists and missing in others."""
UNKNOWN = "a photograph"


class Layout(Section):
    """Where the files lie; ``{subject}``, ``{session}`` and ``{label}`` are filled in."""

    betas: str = "{subject}_GLMbetas-TYPED-FITHRF-GLMDENOISE-RR_ses-{session}.nii.gz"
    brain: str = "{subject}_brainmask.nii.gz"
    names: str = "{subject}_imgnames.txt"
    """The picture of every trial, all sessions one after the other."""
    masks: str = "derivatives/spm/sub-{subject}/sub-{subject}_mask-{label}.nii.gz"
    repeated: str = "BOLD5000_Stimuli/Scene_Stimuli/repeated_stimuli_113_list.txt"
    images: str = "BOLD5000_Stimuli/Scene_Stimuli/Presented_Stimuli"
    words: str = "BOLD5000_Stimuli/Image_Labels/imagenet_final_labels.txt"
    captions: str | None = None
    """COCO's captions_train2014.json; its pictures have no caption otherwise."""

    def at(self, template: str, *, subject: str, session: int = 0, label: str = "") -> str:
        """Return a file's path."""
        filled = template.replace("{subject}", subject).replace("{label}", label)
        return filled.replace("{session}", f"{session:02d}")


def open_recording(entry: CatalogEntry, *, root: str, subject: str, settings: Ingest) -> Recording:
    """Return one subject's trials, voxels of the catalogued ROIs and pictures.

    Raises
    ------
    InputError
        If a file is missing or contradicts another; the message names the file and the remedy.
    """
    layout = entry.layout_as(Layout)
    place = Root(root, get=entry.get, storage=entry.storage)
    _check_split(entry)
    files = _session_files(place, layout=layout, subject=subject)
    shown = read_names(place, layout.at(layout.names, subject=subject))
    spans, session_notes = _spans(
        entry, place=place, layout=layout, subject=subject, files=files, trials=len(shown)
    )
    if settings.sessions is not None:
        spans = {key: span for key, span in spans.items() if key <= settings.sessions}
    if not spans:
        raise InputError(
            f"no session of {subject} is left in {place.url}; raise ingest.sessions or get the "
            f"first sessions"
        )
    masks = read_masks(
        entry,
        place=place,
        atlas=ATLAS,
        find=lambda label: _mask_file(place, layout=layout, subject=subject, label=label),
    )
    brain_file = layout.at(layout.brain, subject=subject)
    brain = read_volume(place, brain_file)
    if brain.shape != masks.grid:
        raise InputError(
            f"{place.at(brain_file)} has shape {brain.shape}, but the ROIs {masks.grid}; take both "
            f"from the same subject and space"
        )
    inside = np.logical_or.reduce(list(masks.rois.values()))
    outside = int((inside & ~(brain.reshape(-1) > 0)).sum())
    index = np.flatnonzero(inside & (brain.reshape(-1) > 0))
    if not len(index):
        raise InputError(f"no voxel of {place.at(brain_file)} lies in an ROI; choose other masks")
    table = pd.concat(
        [
            pd.DataFrame(
                {
                    "image_id": shown[start:stop],
                    "session": session,
                    "run": 1 + np.arange(stop - start) // _per_run(entry),
                }
            )
            for session, (start, stop) in spans.items()
        ],
        ignore_index=True,
    )
    repeated = set(read_names(place, layout.repeated))
    trials, split_notes = _trials(entry, table=table, repeated=repeated)
    names = sorted(set(table["image_id"]))
    pictures = _pictures(place, folder=layout.images, names=names)
    words = read_words(place, layout.words)
    captions = _captions(place, layout=layout, names=names, words=words)
    rois = {name: mask[index] for name, mask in masks.rois.items()}
    kept = {session: files[session] for session in spans}
    counts = {session: stop - start for session, (start, stop) in spans.items()}
    sources = [
        *(layout.at(layout.names, subject=subject), layout.repeated, brain_file),
        *([layout.words] if words else []),
        *([layout.captions] if layout.captions else []),
        *(*masks.files, *kept.values()),
    ]
    return Recording(
        dataset=entry.name,
        subject=subject,
        trials=trials,
        voxels=Voxels.on_grid(index, grid=masks.grid),
        rois=rois,
        images=pd.DataFrame(
            {"image_id": names, "captions": captions, "group": list(map(concept_of, names))}
        ),
        read_session=partial(
            read_volume_session,
            root=place,
            files={session: [path] for session, path in kept.items()},
            volumes={session: [np.arange(count)] for session, count in counts.items()},
            counts={session: [count] for session, count in counts.items()},
            flat=index.astype(np.int64),
            grid=masks.grid,
        ),
        read_images=partial(
            read_pictures, root=place, files=pictures, background=settings.background
        ),
        read_sides=partial(read_sides, root=place, files=pictures),
        sources={
            **{path: place.fingerprint(path) for path in sources},
            layout.images: names_and_sizes(place, pictures),
        },
        findings=(
            *session_notes,
            *split_notes,
            *(
                [f"{outside} voxels of the ROIs lie outside the brain mask: left out"]
                * (outside > 0)
            ),
            *_caption_notes(captions),
            *sizes(entry, subject=subject, masks=rois),
        ),
    )


def required_files(
    entry: CatalogEntry, *, root: str, subject: str, settings: Ingest
) -> list[RequiredFile]:
    """Return every file that ingest of this subject reads, present or not; pictures as a folder."""
    layout = entry.layout_as(Layout)
    place = Root(root, get=entry.get, storage=entry.storage)
    planned = len(_runs(entry, subject=subject) or ()) or max(
        _found_sessions(place, layout=layout, subject=subject), default=1
    )
    sessions = range(1, min(planned, settings.sessions or planned) + 1)
    labels = dict.fromkeys(label for roi in entry.rois.values() for label in roi.labels)
    files = [
        *(layout.at(layout.betas, subject=subject, session=session) for session in sessions),
        layout.at(layout.names, subject=subject),
        layout.at(layout.brain, subject=subject),
        *(_mask_file(place, layout=layout, subject=subject, label=label) for label in labels),
        *(layout.repeated, layout.words),
        *([layout.captions] if layout.captions else []),
    ]
    shown = None
    with contextlib.suppress(InputError):  # ingest tells what is wrong with the list
        names = read_names(place, layout.at(layout.names, subject=subject))
        shown = {*names, *(f"{COCO}{name}" for name in names)}
    folder = picture_folder(place, layout.images, shown=shown)
    return [*(place.required(path) for path in files), folder]


def read_names(root: Root, path: str) -> list[str]:
    """Return the pictures of a list, one a line, as every list would call them.

    ``rep_COCO_train2014_000000000012.jpg`` is 000000000012.
    """
    lines = decode_text(root.read(path), name=root.at(path)).splitlines()
    names = [plain_name(line.strip().strip('"')) for line in lines if line.strip()]
    if not all(names):
        raise InputError(f"{root.at(path)} has a line without the name of a picture; {root.again}")
    return names


def plain_name(name: str) -> str:
    """Return a picture's name without ending, repeat's prefix and COCO's prefix."""
    return stem_of(name).removeprefix(REPEAT).removeprefix(COCO)


def concept_of(name: str) -> str:
    """Return ImageNet's synset or SUN's scene of a picture; '' for COCO's, which have many."""
    return synset_of(name) or re.sub(r"\d+$", "", name)


def _check_split(entry: CatalogEntry) -> None:
    check_rule(entry, "test", known=TEST_SETS)
    check_rule(entry, "group", known=("image", "concept"))


def _per_run(entry: CatalogEntry) -> int:
    return entry.expected("trials_per_run") or 37


def _runs(entry: CatalogEntry, *, subject: str) -> tuple[int, ...] | None:
    """Return the published number of runs of every session, None where the entry has none."""
    return entry.expected_list("runs", subject)


def _found_sessions(place: Root, *, layout: Layout, subject: str) -> list[int]:
    folder, _, _name = layout.at(layout.betas, subject=subject).rpartition("/")
    first = layout.betas.rpartition("/")[2].replace("{subject}", subject)
    pattern = re.escape(first).replace(re.escape("{session}"), r"([0-9]{2,4})")
    found = (re.fullmatch(pattern, one) for one in place.names(folder))
    return sorted(int(one.group(1)) for one in found if one)


def _session_files(place: Root, *, layout: Layout, subject: str) -> dict[int, str]:
    sessions = _found_sessions(place, layout=layout, subject=subject)
    if not sessions:
        raise place.missing(layout.at(layout.betas, subject=subject, session=1))
    return {
        session: layout.at(layout.betas, subject=subject, session=session) for session in sessions
    }


def _spans(
    entry: CatalogEntry,
    *,
    place: Root,
    layout: Layout,
    subject: str,
    files: Mapping[int, str],
    trials: int,
) -> tuple[dict[int, tuple[int, int]], list[str]]:
    """Return session -> which lines of the list of pictures are its trials.

    The list runs over all sessions, so that with one missing only the published numbers of runs
    tell where the next begins.
    """
    name = place.at(layout.at(layout.names, subject=subject))
    counts = {}
    for session, path in files.items():
        shape = read_header(place, path).shape
        counts[session] = shape[3] if len(shape) > 3 else 1
    runs = _runs(entry, subject=subject)
    notes = []
    gaps = [session for session in range(1, max(files) + 1) if session not in files]
    if runs is None:
        if gaps:
            raise InputError(
                f"session {gaps[0]} of {subject} is missing in {place.url}; get it, or write the "
                f"runs of every session into 'expect.runs' of the catalog entry"
            )
        planned = counts
    else:
        planned = {session: n * _per_run(entry) for session, n in enumerate(runs, start=1)}
        if gaps:
            notes.append(f"sessions {', '.join(map(str, gaps))} have no betas: left out")
        if trials != sum(planned.values()):
            raise InputError(
                f"{name} lists {trials} trials, but {subject} had {sum(planned.values())}; "
                f"{place.again}"
            )
        for session, count in counts.items():
            if count != planned.get(session):
                raise InputError(
                    f"{place.at(files[session])} has {count} volumes, but session {session} of "
                    f"{subject} had {planned.get(session, 0)} trials; {place.again}"
                )
    ends = np.cumsum([planned[session] for session in sorted(planned)]).tolist()
    begins = dict(zip(sorted(planned), [0, *ends[:-1]], strict=True))
    if ends[-1] > trials:
        raise InputError(
            f"{name} lists {trials} trials, but the sessions have {ends[-1]} volumes; take both "
            f"from the same subject"
        )
    if ends[-1] < trials:
        notes.append(f"{name} lists {trials - ends[-1]} trials more than there are betas")
    return {k: (begins[k], begins[k] + planned[k]) for k in files}, notes


def _mask_file(place: Root, *, layout: Layout, subject: str, label: str) -> str:
    path = layout.at(layout.masks, subject=subject, label=label)
    other = layout.at(layout.masks, subject=subject, label=MISNAMED.get(label, label))
    return other if not place.exists(path) and place.exists(other) else path


def _trials(
    entry: CatalogEntry, *, table: pd.DataFrame, repeated: set[str]
) -> tuple[pd.DataFrame, list[str]]:
    is_test = table["image_id"].isin(repeated).to_numpy()
    concept = table["image_id"].map(concept_of)
    group = table["image_id"]
    if entry.split.group == "concept":
        group = concept.where(concept != "", table["image_id"])
    split = assign(is_test=is_test, group=group, validation=entry.split.validation)
    trials = trials_of(table, split=split)
    return trials, [
        f"{table['session'].nunique()} sessions, {len(table)} trials; test set repeated: "
        f"{table['image_id'][is_test].nunique()} of {len(repeated)} pictures in "
        f"{int(is_test.sum())} trials",
        overlap(entry, image_id=table["image_id"], concept=concept, is_test=is_test),
    ]


def _pictures(place: Root, *, folder: str, names: Sequence[str]) -> dict[str, str]:
    """Return name -> file; COCO's files have the prefix or not."""
    known = names_of_all(place, folder=folder)
    written = {name: f"{COCO}{name}" if f"{COCO}{name}" in known else name for name in names}
    found = find_pictures(
        place,
        folder=folder,
        names=list(written.values()),
        remedy="get BOLD5000_Stimuli.zip (https://bold5000-dataset.github.io/website)",
    )
    return {name: found[word] for name, word in written.items()}


def _caption_notes(captions: Sequence[tuple[str, ...]]) -> list[str]:
    bare = sum(one == (UNKNOWN,) for one in captions)
    note = f"{bare} pictures have no caption; COCO's are read where layout.captions names them"
    return [note] if bare else []


def _captions(
    place: Root, *, layout: Layout, names: Sequence[str], words: Mapping[str, str]
) -> list[tuple[str, ...]]:
    notes: Mapping[int, Sequence[object]] = {}
    if layout.captions:
        notes = annotated(place, layout.captions, value="caption")
    found = []
    for name in names:
        concept = concept_of(name)
        texts = notes.get(int(name), ()) if not concept and name.isdecimal() else ()
        plain = tuple(text for one in texts if (text := str(one).strip()))
        found.append(plain or (caption_of(concept, words=words) if concept else (UNKNOWN,)))
    return found
