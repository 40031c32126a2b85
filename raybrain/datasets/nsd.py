"""The Natural Scenes Dataset (Allen et al. 2022, doi:10.1038/s41593-021-00962-x) as a recording.

`raybrain.datasets.nsd_space.Layout` lists what an entry may choose: the version of the betas, the
space, the file format, and where the groups of images come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pandas as pd

from raybrain.config import InputError
from raybrain.datasets import Recording
from raybrain.datasets import nsd_tables as tables
from raybrain.datasets.files import RequiredFile, Root
from raybrain.datasets.nsd_betas import parts, read_session, read_types, scale_of, session_files
from raybrain.datasets.nsd_space import Layout, label_files, layout_of, read_regions
from raybrain.datasets.splits import assign, caption_clusters, check_rule, held_out, trials_of

if TYPE_CHECKING:
    from raybrain.catalog import CatalogEntry
    from raybrain.config import Ingest

WITHHELD_SESSIONS = 3
"""The last sessions of a subject that were withheld until the Algonauts 2023 challenge ended."""
TEST_SETS = ("shared1000", "982", "1000", "clusters")
"""Test sets by name: the shared images shown in the sessions used; those of the 37 sessions public
before 2023; those of all sessions; and clusters of images with like captions."""
CLUSTERED_TEST = 0.1
"""Share of the clusters that the test set 'clusters' holds out."""


def open_recording(entry: CatalogEntry, *, root: str, subject: str, settings: Ingest) -> Recording:
    """Return one NSD subject: trials, voxels of the catalogued ROIs, images and captions.

    Raises
    ------
    InputError
        If a file is missing or contradicts another; the message names the file and the remedy.
    """
    layout = layout_of(entry)
    place = Root(root, get=entry.get, storage=entry.storage)
    design = tables.read_design(place, subject=subject)
    everything = tables.read_trials(place, subject=subject, design=design)
    files = session_files(place, layout=layout, subject=subject)
    sessions, session_notes = _choose_sessions(
        entry, layout=layout, place=place, subject=subject, files=files, settings=settings
    )
    _check_sessions(entry, place=place, subject=subject, trials=everything, sessions=sessions)
    shown = everything[everything["session"].isin(sessions)].reset_index(drop=True)
    planned = tables.read_images(place, subject=subject, design=design, trials=shown)
    was_shown = planned["nsd_id"].isin(shown["nsd_id"]).to_numpy()
    clusters = _clusters(entry, layout=layout, place=place, planned=planned)
    images = planned[was_shown].reset_index(drop=True)
    _check_stimuli(place, last=int(images["nsd_id"].max()))
    captions = tables.read_captions(place, images=images)
    groups = [""] * len(images)
    if layout.groups:
        groups = tables.read_groups(place, images=images)
    elif clusters is not None:
        groups = [clusters[number] for number in images["nsd_id"]]
    regions = read_regions(entry, layout=layout, place=place, subject=subject)
    trials, split_notes = _trials(entry, shown=shown, shared=design.shared, clusters=clusters)
    counts = shown["session"].value_counts()
    chosen_files = {session: files[session] for session in sessions}
    dtype = read_types(place, files=chosen_files)
    sources = [
        *(tables.EXPDESIGN, tables.STIM_INFO, tables.responses_file(subject), tables.STIMULI),
        *_annotations(layout, coco_splits=sorted(images["cocoSplit"].unique())),
        *regions.files,
        *(part for path in chosen_files.values() for part in parts(path)),
    ]
    return Recording(
        dataset=entry.name,
        subject=subject,
        trials=trials,
        voxels=regions.voxels,
        rois=regions.rois,
        images=pd.DataFrame(
            {
                "image_id": [image_name(number) for number in images["nsd_id"]],
                "captions": captions,
                "group": groups,
            }
        ),
        read_session=partial(
            read_session,
            root=place,
            files=chosen_files,
            trials={session: int(counts[session]) for session in sessions},
            voxels=regions.voxels.index,
            grid=regions.grid,
            dtype=dtype.name,
        ),
        read_images=partial(_read_pictures, place),
        scale=scale_of(dtype),
        dtype=dtype.name,
        sources={path: place.fingerprint(path) for path in sources},
        findings=(*session_notes, *split_notes, *regions.notes),
    )


def required_files(
    entry: CatalogEntry, *, root: str, subject: str, settings: Ingest
) -> list[RequiredFile]:
    """Return every file that ingest of this subject reads, present or not."""
    layout = layout_of(entry)
    place = Root(root, get=entry.get, storage=entry.storage)
    found = session_files(place, layout=layout, subject=subject)
    planned = entry.expected("sessions", subject) or max(found, default=1)
    if entry.split.test == "982":
        planned -= WITHHELD_SESSIONS
    sessions = range(1, min(planned, settings.sessions or planned) + 1)
    atlases = sorted({roi.atlas for roi in entry.rois.values() if roi.atlas})
    files = [
        *(tables.EXPDESIGN, tables.STIM_INFO, tables.responses_file(subject)),
        *_annotations(layout, coco_splits=["train2017", "val2017"]),
        *(path for atlas in atlases for path in layout.atlas_files(subject, atlas=atlas)),
        *(path for atlas in atlases for path in label_files(place, subject=subject, atlas=atlas)),
        *layout.ncsnr_files(subject),
    ]
    most = _session_bytes(entry, layout=layout, subject=subject)
    betas = [found.get(k, layout.session_file(subject, session=k)) for k in sessions]
    return [
        *(place.required(path) for path in files),
        place.required(tables.STIMULI, at_most=entry.expected("stimuli_bytes")),
        *(place.required(part, at_most=most) for path in betas for part in parts(path)),
    ]


def _annotations(layout: Layout, *, coco_splits: list[str]) -> list[str]:
    captions = [tables.captions_file(split) for split in coco_splits]
    return captions + [tables.instances_file(split) for split in coco_splits if layout.groups]


def _session_bytes(entry: CatalogEntry, *, layout: Layout, subject: str) -> int | None:
    """Return the size of a session's betas before compression, where the entry tells it."""
    grid = entry.expected_list("grid", layout.space, subject, length=3)
    trials = entry.expected("trials_per_session")
    return None if grid is None or trials is None else 2 * trials * int(np.prod(grid))


def image_name(nsd_id: int) -> str:
    """Return the image_id of a 0-based nsdId; names sort as the numbers do."""
    return f"{nsd_id:05d}"


def _choose_sessions(
    entry: CatalogEntry,
    *,
    layout: Layout,
    place: Root,
    subject: str,
    files: Mapping[int, str],
    settings: Ingest,
) -> tuple[list[int], list[str]]:
    """Return the sessions to read, ascending, and what to tell of those left out."""
    folder = layout.betas_folder(subject)
    if not files:
        raise place.missing(f"{folder}/betas_session01.{layout.format or 'nii.gz'}")
    planned = entry.expected("sessions", subject)
    rule = entry.split.test
    check_rule(entry, "test", known=TEST_SETS)
    sessions = list(files)
    notes = []
    gaps = [str(number) for number in range(1, max(files) + 1) if number not in files]
    if gaps:
        notes.append(f"sessions {', '.join(gaps)} have no betas in {place.at(folder)}: left out")
    if rule == "982":
        if planned is None:
            raise InputError(
                f"catalog entry {entry.name}: test set '982' needs 'expect.sessions' of {subject}; "
                f"add it, or choose shared1000"
            )
        sessions = [number for number in sessions if number <= planned - WITHHELD_SESSIONS]
        notes.append(f"test set 982: sessions after {planned - WITHHELD_SESSIONS} are left out")
    if settings.sessions is not None:
        sessions = [number for number in sessions if number <= settings.sessions]
    if rule == "1000" and (planned is None or len(sessions) < planned):
        raise InputError(
            f"test set '1000' needs all {planned or ''} sessions of {subject}, but "
            f"{len(sessions)} are used; get the others, or choose shared1000 (split.test)"
        )
    if not sessions:
        raise InputError(
            f"no session of {subject} is left in {place.at(folder)} (present: "
            f"{', '.join(map(str, files))}); raise ingest.sessions or get the first sessions"
        )
    return sessions, notes


def _check_sessions(
    entry: CatalogEntry, *, place: Root, subject: str, trials: pd.DataFrame, sessions: list[int]
) -> None:
    counts = trials["session"].value_counts()
    expected = entry.expected("trials_per_session")
    name = place.at(tables.responses_file(subject))
    for session in sessions:
        count = int(counts.get(session, 0))
        if count == 0:
            raise InputError(
                f"{name} has no trials of session {session}, whose betas are present; "
                f"download it again, or set ingest.sessions={session - 1}"
            )
        if expected is not None and count != expected:
            raise InputError(
                f"{name} has {count} trials in session {session}, but {entry.name} has {expected}; "
                f"download it again"
            )


def _check_stimuli(place: Root, *, last: int) -> None:
    name = place.at(tables.STIMULI)
    with place.open(tables.STIMULI) as file:
        try:
            with h5py.File(file, "r") as content:
                shape = content["imgBrick"].shape
        except (OSError, KeyError) as error:
            raise InputError(f"{name} cannot be read ({error}); download it again") from None
    if len(shape) != 4 or shape[-1] != 3:
        raise InputError(f"{name} holds imgBrick {shape}, not (image, y, x, 3); download it again")
    if last >= shape[0]:
        raise InputError(
            f"{name} has {shape[0]} images, but image {last} (nsdId) was shown; download it again"
        )


def _read_pictures(place: Root, image_ids: Sequence[str]) -> list[np.ndarray]:
    """Return the stimuli, read in the order in which they lie in the file."""
    wanted = sorted({int(name) for name in image_ids})
    found: dict[int, np.ndarray] = {}
    with place.open(tables.STIMULI) as file, h5py.File(file, "r") as content:
        brick = content["imgBrick"]
        for number in wanted:
            found[number] = np.asarray(brick[number], dtype=np.uint8)
    return [found[int(name)] for name in image_ids]


def _clusters(
    entry: CatalogEntry, *, layout: Layout, place: Root, planned: pd.DataFrame
) -> dict[int, str] | None:
    """Return nsd_id -> cluster where the split needs it.

    All images planned for the subject are clustered, so that adding sessions changes no cluster.
    """
    if entry.split.test != "clusters" and entry.split.group != "cluster":
        return None
    captions = tables.read_captions(place, images=planned)
    names = caption_clusters(captions, count=layout.clusters)
    return dict(zip(planned["nsd_id"], names, strict=True))


def _trials(
    entry: CatalogEntry,
    *,
    shown: pd.DataFrame,
    shared: frozenset[int],
    clusters: Mapping[int, str] | None,
) -> tuple[pd.DataFrame, list[str]]:
    names = shown["nsd_id"].map(image_name)
    group = names
    if entry.split.group not in ("image", "cluster"):
        raise InputError(
            f"catalog entry {entry.name}: 'split.group' cannot be '{entry.split.group}'; "
            f"choose image or cluster"
        )
    is_test = shown["nsd_id"].isin(shared).to_numpy()
    if clusters is not None:
        cluster = shown["nsd_id"].map(clusters)
        group = cluster if entry.split.group == "cluster" else names
        if entry.split.test == "clusters":
            # Chosen among all clusters, not among those shown so far.
            tested = held_out(clusters.values(), fraction=CLUSTERED_TEST, salt="test")
            is_test = cluster.isin(tested).to_numpy()
    split = assign(is_test=is_test, group=group, validation=entry.split.validation)
    trials = trials_of(shown.assign(image_id=names), split=split)
    tests, trained = trials[is_test], trials[~is_test]
    return trials, [
        f"{trials['session'].nunique()} sessions, {len(trials)} trials; "
        f"test set {entry.split.test}: {tests['image_id'].nunique()} images in {len(tests)} "
        f"trials; {trained['image_id'].nunique()} other images in {len(trained)} trials"
    ]
