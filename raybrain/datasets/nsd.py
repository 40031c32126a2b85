"""The Natural Scenes Dataset (Allen et al. 2022, doi:10.1038/s41593-021-00962-x) as a recording.

The layout of an entry names ``betas`` (betas_assumehrf, betas_fithrf or
betas_fithrf_GLMdenoise_RR), ``space`` (func1pt8mm or func1mm), ``format`` (nii.gz or hdf5; either
when not given) and ``groups`` (``instances`` takes image groups from COCO's object annotations).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import h5py
import numpy as np
import pandas as pd

from raybrain.config import InputError, Section, validate
from raybrain.datasets import Recording, Voxels
from raybrain.datasets import nsd_tables as tables
from raybrain.datasets.files import RequiredFile, Root
from raybrain.datasets.nifti import read_volume
from raybrain.datasets.nsd_betas import SCALE, read_session, read_type, session_files
from raybrain.datasets.roi_labels import (
    LABELS,
    parse_ctab,
    pick_labels,
    resolve,
    without_hemisphere,
)
from raybrain.datasets.splits import assign

if TYPE_CHECKING:
    from raybrain.catalog import CatalogEntry, Roi
    from raybrain.config import Ingest

WITHHELD_SESSIONS = 3
"""The last sessions of a subject that were withheld until the Algonauts 2023 challenge ended."""
TEST_SETS = ("shared1000", "982", "1000")


class Layout(Section):
    """Choices within NSD's folders."""

    betas: str = "betas_fithrf_GLMdenoise_RR"
    space: Literal["func1pt8mm", "func1mm"] = "func1pt8mm"
    format: Literal["nii.gz", "hdf5"] | None = None
    groups: Literal["instances"] | None = None

    def betas_folder(self, subject: str) -> str:
        """Return where the betas and their noise ceiling lie."""
        return f"nsddata_betas/ppdata/{subject}/{self.space}/{self.betas}"

    def ncsnr_file(self, subject: str) -> str:
        """Return where the noise-ceiling signal-to-noise ratio lies."""
        return f"{self.betas_folder(subject)}/ncsnr.nii.gz"

    def roi_file(self, subject: str, *, atlas: str) -> str:
        """Return where an atlas lies; ``lh.`` and ``rh.`` before its name choose a hemisphere."""
        return f"nsddata/ppdata/{subject}/{self.space}/roi/{atlas}.nii.gz"


def open_recording(entry: CatalogEntry, *, root: str, subject: str, settings: Ingest) -> Recording:
    """Return one NSD subject: trials, voxels of the catalogued ROIs, images and captions.

    Raises
    ------
    InputError
        If a file is missing or contradicts another; the message names the file and the remedy.
    """
    layout = _layout(entry)
    place = Root(root, get=entry.get, storage=entry.storage)
    design = tables.read_design(place, subject=subject)
    everything = tables.read_trials(place, subject=subject, design=design)
    files = session_files(place, folder=layout.betas_folder(subject), ending=layout.format)
    sessions, session_notes = _choose_sessions(
        entry, layout=layout, place=place, subject=subject, files=files, settings=settings
    )
    _check_sessions(entry, place=place, subject=subject, trials=everything, sessions=sessions)
    shown = everything[everything["session"].isin(sessions)].reset_index(drop=True)
    images = tables.read_images(place, subject=subject, design=design, trials=shown)
    _check_stimuli(place, last=int(images["nsd_id"].max()))
    captions = tables.read_captions(place, images=images)
    groups = tables.read_groups(place, images=images) if layout.groups else [""] * len(images)
    grid, masks, roi_sources = _read_rois(entry, layout=layout, place=place, subject=subject)
    voxels = _voxels(place, layout.ncsnr_file(subject), grid=grid, masks=masks)
    kept = {name: mask[voxels.index] for name, mask in masks.items()}
    trials, split_notes = _trials(
        entry, subject=subject, shown=shown, shared=design.shared, sessions=sessions
    )
    counts = shown["session"].value_counts()
    dtype = read_type(place, path=files[sessions[0]]).newbyteorder("=")
    chosen_files = {session: files[session] for session in sessions}
    sources = [
        *(tables.EXPDESIGN, tables.STIM_INFO, tables.responses_file(subject), tables.STIMULI),
        *(tables.captions_file(split) for split in sorted(images["cocoSplit"].unique())),
        layout.ncsnr_file(subject),
        *roi_sources,
        *chosen_files.values(),
    ]
    return Recording(
        dataset=entry.name,
        subject=subject,
        trials=trials,
        voxels=voxels,
        rois=kept,
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
            voxels=voxels.index,
            grid=grid,
            dtype=dtype.name,
        ),
        read_images=partial(_read_pictures, place),
        scale=SCALE if dtype.kind == "i" else 1.0,
        dtype=dtype.name,
        sources={path: place.fingerprint(path) for path in sources},
        findings=(*session_notes, *split_notes, *_roi_notes(entry, layout, subject, kept, voxels)),
    )


def required_files(
    entry: CatalogEntry, *, root: str, subject: str, settings: Ingest
) -> list[RequiredFile]:
    """Return every file that ingest of this subject reads, present or not."""
    layout = _layout(entry)
    place = Root(root, get=entry.get, storage=entry.storage)
    folder = layout.betas_folder(subject)
    found = session_files(place, folder=folder, ending=layout.format)
    planned = _planned_sessions(entry, subject) or (max(found, default=0))
    wanted = range(1, min(planned, settings.sessions or planned) + 1)
    # A session whose volume is not known here is at most as large as its neighbours.
    sizes = [place.size(path) or 0 for path in found.values()]
    ending = layout.format or "nii.gz"
    atlases = sorted({roi.atlas for roi in entry.rois.values() if roi.atlas})
    files = [
        *(tables.EXPDESIGN, tables.STIM_INFO, tables.responses_file(subject)),
        *(tables.captions_file(split) for split in ("train2017", "val2017")),
        *(tables.instances_file(split) for split in ("train2017", "val2017") if layout.groups),
        *(layout.roi_file(subject, atlas=atlas) for atlas in atlases),
        layout.ncsnr_file(subject),
    ]
    return [
        *(place.required(path) for path in files),
        place.required(tables.STIMULI, at_most=entry.expect.get("stimuli_bytes")),
        *(
            place.required(
                found.get(session, f"{folder}/betas_session{session:02d}.{ending}"),
                at_most=max(sizes, default=0) or None,
            )
            for session in wanted
        ),
    ]


def image_name(nsd_id: int) -> str:
    """Return the image_id of a 0-based nsdId; names sort as the numbers do."""
    return f"{nsd_id:05d}"


def _layout(entry: CatalogEntry) -> Layout:
    return validate(entry.layout, schema=Layout, source=f"layout of catalog entry {entry.name}")


def _planned_sessions(entry: CatalogEntry, subject: str) -> int | None:
    planned = entry.expect.get("sessions", {})
    return planned.get(subject) if isinstance(planned, dict) else None


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
    planned = _planned_sessions(entry, subject)
    rule = entry.split.test
    if rule not in TEST_SETS:
        raise InputError(
            f"catalog entry {entry.name}: 'split.test' cannot be '{rule}'; "
            f"choose from {', '.join(TEST_SETS)}"
        )
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
    expected = entry.expect.get("trials_per_session")
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


def _read_rois(
    entry: CatalogEntry, *, layout: Layout, place: Root, subject: str
) -> tuple[tuple[int, int, int], dict[str, np.ndarray], list[str]]:
    """Return the grid, flat masks in C order of (x, y, z), and the files they come from."""
    volumes: dict[str, np.ndarray] = {}
    label_tables: dict[str, dict[str, int]] = {}
    used: list[str] = []

    def leaf(name: str, roi: Roi) -> np.ndarray:
        if roi.atlas is None:
            raise InputError(
                f"catalog entry {entry.name}: ROI '{name}' needs an atlas with labels; "
                f"NSD has no table of voxels"
            )
        if roi.atlas not in volumes:
            path = layout.roi_file(subject, atlas=roi.atlas)
            volumes[roi.atlas] = read_volume(place, path)
            used.append(path)
            table, source = _label_table(place, subject=subject, atlas=roi.atlas)
            label_tables[roi.atlas] = table
            used.extend(source)
        return pick_labels(
            volumes[roi.atlas], labels=roi.labels, table=label_tables[roi.atlas], atlas=roi.atlas
        )

    masks = resolve(entry.rois, leaf=leaf)
    shapes = {atlas: volume.shape for atlas, volume in volumes.items()}
    grid = next(iter(shapes.values()))
    for atlas, shape in shapes.items():
        if shape != grid or len(shape) != 3:
            raise InputError(
                f"{place.at(layout.roi_file(subject, atlas=atlas))} has shape {shape}, but the "
                f"other atlases {grid}; take all from the same subject and space"
            )
    expected = entry.expect.get("grid", {}).get(layout.space, {}).get(subject)
    if expected is not None and tuple(expected) != grid:
        raise InputError(
            f"the ROIs of {subject} in {place.url} have a grid of {grid} voxels, but "
            f"{tuple(expected)} is published for {layout.space}; download them again"
        )
    flat = {name: mask.reshape(-1) for name, mask in masks.items()}
    return (grid[0], grid[1], grid[2]), flat, used


def _label_table(place: Root, *, subject: str, atlas: str) -> tuple[dict[str, int], list[str]]:
    """Return the labels of an atlas: the subject's own table, fsaverage's, or the built-in one."""
    plain = without_hemisphere(atlas)
    candidates = [
        f"nsddata/freesurfer/{subject}/label/{plain}.mgz.ctab",
        f"nsddata/freesurfer/fsaverage/label/{plain}.mgz.ctab",
        f"nsddata/templates/{plain}.ctab",
    ]
    for path in candidates:
        if place.exists(path):
            return parse_ctab(place.read(path).decode(), name=place.at(path)), [path]
    return dict(LABELS.get(plain, {})), []


def _voxels(
    place: Root, path: str, *, grid: tuple[int, int, int], masks: Mapping[str, np.ndarray]
) -> Voxels:
    index = np.flatnonzero(np.logical_or.reduce(list(masks.values())))
    if not len(index):
        raise InputError(
            f"no voxel of {place.url} lies in any ROI of the catalog entry; check them"
        )
    ratio = read_volume(place, path)
    if ratio.shape != grid:
        raise InputError(
            f"{place.at(path)} has shape {ratio.shape}, but the ROIs {grid}; "
            f"take both from the same subject and space"
        )
    chosen = ratio.reshape(-1)[index]
    return Voxels(
        index=index.astype(np.int64),
        xyz=np.stack(np.unravel_index(index, grid), axis=1).astype(np.int32),
        noise_ceiling=single_trial_ceiling(chosen),
    )


def single_trial_ceiling(ncsnr: np.ndarray) -> np.ndarray:
    """Return the explainable variance of one trial, ncsnr^2 / (ncsnr^2 + 1), as a fraction.

    NSD's noise ceiling in percent over k averaged repeats is 100 ncsnr^2 / (ncsnr^2 + 1/k)
    (NSD data manual). NaN, outside the brain, stays NaN.
    """
    power = np.square(ncsnr.astype(np.float64))
    return (power / (power + 1.0)).astype(np.float32)


def _trials(
    entry: CatalogEntry,
    *,
    subject: str,
    shown: pd.DataFrame,
    shared: frozenset[int],
    sessions: list[int],
) -> tuple[pd.DataFrame, list[str]]:
    names = shown["nsd_id"].map(image_name)
    is_test = shown["nsd_id"].isin(shared).to_numpy()
    if entry.split.group != "image":
        raise InputError(
            f"catalog entry {entry.name}: 'split.group' cannot be '{entry.split.group}'; "
            f"NSD groups by image"
        )
    trials = pd.DataFrame(
        {
            "image_id": names,
            "session": shown["session"],
            "run": shown["run"],
            "repeat": shown.groupby("nsd_id").cumcount(),
            "split": assign(is_test=is_test, group=names, validation=entry.split.validation),
        }
    )
    tests, trained = trials[is_test], trials[~is_test]
    return trials, [
        f"{len(sessions)} sessions, {len(trials)} trials; test set {entry.split.test}: "
        f"{tests['image_id'].nunique()} images in {len(tests)} trials; "
        f"{trained['image_id'].nunique()} other images in {len(trained)} trials"
    ]


def _roi_notes(
    entry: CatalogEntry,
    layout: Layout,
    subject: str,
    rois: Mapping[str, np.ndarray],
    voxels: Voxels,
) -> list[str]:
    notes = []
    for name, mask in rois.items():
        known = entry.rois[name].published.get(subject) if layout.space == "func1pt8mm" else None
        beside = f" (published: {known})" if known is not None else ""
        notes.append(f"ROI {name}: {int(mask.sum())} voxels{beside}")
    unknown = int(np.isnan(voxels.noise_ceiling).sum())
    if unknown:
        notes.append(f"{unknown} of {len(voxels.index)} voxels have no noise ceiling (NaN)")
    return notes
