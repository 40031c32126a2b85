"""THINGS-fMRI (Hebart et al. 2023, doi:10.7554/eLife.82580) as a recording.

Three publications of the same responses can be read (``layout.source``): ``betas_csv`` (one table
of voxels by trials per subject), ``ICA-betas`` (the same in OpenNeuro's derivatives) and
``betas_vol`` (a volume series per run, catch trials among them).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from raybrain.config import InputError, Section
from raybrain.datasets import Recording, Voxels
from raybrain.datasets import things_tables as tables
from raybrain.datasets.contents import picture_folder
from raybrain.datasets.files import RequiredFile, Root
from raybrain.datasets.pictures import find_pictures, names_and_sizes, read_pictures, read_sides
from raybrain.datasets.roi_labels import resolve, sizes, whole_labels
from raybrain.datasets.things_betas import check_table, read_table_session, read_volume_session
from raybrain.datasets.volumes import read_volume

if TYPE_CHECKING:
    from raybrain.catalog import CatalogEntry, Roi
    from raybrain.config import Ingest


class Layout(Section):
    """Choices within THINGS-fMRI's folders."""

    source: Literal["betas_csv", "ICA-betas", "betas_vol"] = "betas_csv"
    images: str = "object_images"
    """Folder of the pictures, with a folder per concept or flat."""
    concepts: str = "things_concepts.tsv"

    def tables_folder(self, subject: str) -> str:
        """Return the beginning of the name of every table of a subject."""
        if self.source == "ICA-betas":
            return f"derivatives/ICA-betas/{subject}/voxel-metadata/{subject}_task-things_"
        return f"betas_csv/{subject}_"

    def responses_file(self, subject: str) -> str:
        """Return the table of voxels by trials."""
        ending = "voxel-wise-responses.h5" if self.source == "ICA-betas" else "ResponseData.h5"
        return f"{self.tables_folder(subject)}{ending}"

    def stimuli_file(self, subject: str) -> str:
        """Return the table of trials."""
        known = "stimulus-metadata.tsv" if self.source == "ICA-betas" else "StimulusMetadata.csv"
        return f"{self.tables_folder(subject)}{known}"

    def voxels_file(self, subject: str) -> str:
        """Return the table of voxels with their ROIs and noise ceilings."""
        known = "voxel-metadata.tsv" if self.source == "ICA-betas" else "VoxelMetadata.csv"
        return f"{self.tables_folder(subject)}{known}"

    def mask_file(self, subject: str) -> str:
        """Return the brain mask whose voxels, in C order, are the rows of the table of voxels."""
        return f"brainmasks/{subject}_space-T1w_brainmask.nii.gz"


@dataclass(frozen=True)
class Source:
    """The trials of one publication, and how to read a session of them."""

    trials: pd.DataFrame
    """Columns session, run, stem, concept, is_test, and what ``reader`` needs."""
    reader: Callable[[pd.DataFrame, np.ndarray], Callable[[int], np.ndarray]]
    """Kept trials, voxel ids -> session reader."""
    files: tuple[str, ...]


def open_recording(entry: CatalogEntry, *, root: str, subject: str, settings: Ingest) -> Recording:
    """Return one THINGS subject: trials, voxels of the catalogued ROIs, pictures and captions.

    Raises
    ------
    InputError
        If a file is missing or contradicts another; the message names the file and the remedy.
    """
    layout = entry.layout_as(Layout)
    place = Root(root, get=entry.get, storage=entry.storage)
    voxels_file = layout.voxels_file(subject)
    table = tables.read_voxels(place, voxels_file)
    masks = _masks(entry, table=table, name=place.at(voxels_file))
    index = np.flatnonzero(np.logical_or.reduce(list(masks.values())))
    if not len(index):
        raise InputError(f"no row of {place.at(voxels_file)} lies in an ROI; choose other columns")
    if layout.source == "betas_vol":
        source = _volumes(place, layout=layout, subject=subject, table=table)
    else:
        source = _table(place, layout=layout, subject=subject, voxels=len(table))
    everything = source.trials
    events_note = _check_events(place, subject=subject, trials=everything)
    _check_counts(entry, trials=everything, name=place.at(layout.stimuli_file(subject)))
    if settings.sessions is not None:
        everything = everything[everything["session"] <= settings.sessions]
    kept, trials, split_notes = tables.split_trials(entry, trials=everything)
    stems = sorted(set(kept["stem"]))
    pictures = find_pictures(
        place, folder=layout.images, names=stems, remedy="get the THINGS images (osf.io/jum2f)"
    )
    definitions, definition_notes, definition_files = _definitions(place, layout=layout)
    ceiling = table["nc_singletrial"].to_numpy(dtype=np.float32)[index]
    return Recording(
        dataset=entry.name,
        subject=subject,
        trials=trials,
        voxels=Voxels(
            index=index.astype(np.int64),
            xyz=table.loc[index, ["voxel_x", "voxel_y", "voxel_z"]].to_numpy(dtype=np.int32),
            noise_ceiling=ceiling,
        ),
        rois={name: mask[index] for name, mask in masks.items()},
        images=pd.DataFrame(
            {
                "image_id": stems,
                "captions": [
                    tables.caption(tables.concept_of(stem), definitions=definitions)
                    for stem in stems
                ],
                "group": [tables.concept_of(stem) for stem in stems],
            }
        ),
        read_session=source.reader(kept, index.astype(np.int64)),
        read_images=partial(
            read_pictures, root=place, files=pictures, background=settings.background
        ),
        read_sides=partial(read_sides, root=place, files=pictures),
        sources={
            **{
                path: place.fingerprint(path)
                for path in (voxels_file, *source.files, *definition_files)
            },
            layout.images: names_and_sizes(place, pictures),
        },
        findings=(
            *split_notes,
            *events_note,
            *definition_notes,
            *sizes(entry, subject=subject, masks=masks),
        ),
    )


def required_files(
    entry: CatalogEntry, *, root: str, subject: str, settings: Ingest
) -> list[RequiredFile]:
    """Return every file that ingest of this subject reads, present or not; pictures as a folder."""
    layout = entry.layout_as(Layout)
    place = Root(root, get=entry.get, storage=entry.storage)
    files = [layout.voxels_file(subject)]
    if layout.source == "betas_vol":
        files.append(layout.mask_file(subject))
        sessions = settings.sessions or entry.expected("sessions", subject) or 12
        for session in range(1, sessions + 1):
            for run in range(1, (entry.expected("runs_per_session") or 10) + 1):
                stem = _run_stem(place, subject=subject, session=session, run=run)
                files += [f"{stem}_betas.nii.gz", f"{stem}_conditions.tsv"]
    else:
        files += [layout.stimuli_file(subject), layout.responses_file(subject)]
    shown = None
    with contextlib.suppress(InputError):  # ingest tells what is wrong with the table
        if layout.source != "betas_vol":
            listed = tables.read_stimuli(place, layout.stimuli_file(subject))
            shown = set(tables.split_trials(entry, trials=listed)[0]["stem"])
    folder = picture_folder(place, layout.images, shown=shown)
    return [*(place.required(path) for path in (*files, layout.concepts)), folder]


def _masks(entry: CatalogEntry, *, table: pd.DataFrame, name: str) -> dict[str, np.ndarray]:
    def leaf(roi_name: str, roi: Roi) -> np.ndarray:
        if not roi.columns:
            raise InputError(
                f"catalog entry {entry.name}: ROI '{roi_name}' needs columns of the table of "
                f"voxels; THINGS-fMRI has no label volumes"
            )
        return tables.pick_columns(table, columns=roi.columns, name=name)

    return resolve(entry.rois, leaf=leaf)


def _table(place: Root, *, layout: Layout, subject: str, voxels: int) -> Source:
    stimuli, responses = layout.stimuli_file(subject), layout.responses_file(subject)
    trials = tables.read_stimuli(place, stimuli)
    check_table(place, responses, voxels=voxels, trials=len(trials))

    def reader(kept: pd.DataFrame, index: np.ndarray) -> Callable[[int], np.ndarray]:
        columns = {
            session: kept["column"][kept["session"] == session].to_numpy()
            for session in kept["session"].unique().tolist()
        }
        return partial(
            read_table_session, root=place, path=responses, columns=columns, voxels=index
        )

    return Source(trials=trials, reader=reader, files=(stimuli, responses))


def _volumes(place: Root, *, layout: Layout, subject: str, table: pd.DataFrame) -> Source:
    mask_file = layout.mask_file(subject)
    brain = whole_labels(read_volume(place, mask_file), name=place.at(mask_file)) > 0
    places = np.flatnonzero(brain.reshape(-1))
    if len(places) != len(table):
        raise InputError(
            f"{place.at(mask_file)} has {len(places)} voxels, but "
            f"{place.at(layout.voxels_file(subject))} lists {len(table)}; take both from the same "
            f"subject"
        )
    grid = (int(brain.shape[0]), int(brain.shape[1]), int(brain.shape[2]))
    parts, files = [], [mask_file]
    session = 1
    while place.names(_session_folder(subject, session=session)):
        run = 1
        while place.exists(
            f"{(stem := _run_stem(place, subject=subject, session=session, run=run))}_betas.nii.gz"
        ):
            shown = tables.read_conditions(place, f"{stem}_conditions.tsv")
            parts.append(shown.assign(session=session, run=run, file=f"{stem}_betas.nii.gz"))
            files += [f"{stem}_conditions.tsv", f"{stem}_betas.nii.gz"]
            run += 1
        session += 1
    if not parts:
        first = _run_stem(place, subject=subject, session=1, run=1)
        raise place.missing(f"{first}_betas.nii.gz")
    trials = pd.concat(parts, ignore_index=True)
    trials["concept"] = trials["stem"].map(tables.concept_of)

    def reader(kept: pd.DataFrame, index: np.ndarray) -> Callable[[int], np.ndarray]:
        runs = {
            session: [rows for _, rows in kept[kept["session"] == session].groupby("run")]
            for session in kept["session"].unique().tolist()
        }
        return partial(
            read_volume_session,
            root=place,
            files={k: [rows["file"].iloc[0] for rows in v] for k, v in runs.items()},
            volumes={k: [rows["volume"].to_numpy() for rows in v] for k, v in runs.items()},
            counts={k: [int(rows["volumes"].iloc[0]) for rows in v] for k, v in runs.items()},
            flat=places[index],
            grid=grid,
        )

    return Source(trials=trials, reader=reader, files=tuple(files))


def _session_folder(subject: str, *, session: int) -> str:
    return f"betas_vol/{subject}/ses-things{session:02d}"


def _run_stem(place: Root, *, subject: str, session: int, run: int) -> str:
    """Return the beginning of a run's file names; some versions do not pad the run with a zero."""
    folder = _session_folder(subject, session=session)
    padded = f"{folder}/{subject}_ses-things{session:02d}_run-{run:02d}"
    plain = f"{folder}/{subject}_ses-things{session:02d}_run-{run}"
    return plain if place.exists(f"{plain}_betas.nii.gz") else padded


def _check_events(place: Root, *, subject: str, trials: pd.DataFrame) -> list[str]:
    """Compare the trials with the raw events where those lie under the same root."""
    agreed = 0
    for (session, run), rows in trials.groupby(["session", "run"]):
        folder = f"{subject}/ses-things{session:02d}/func"
        path = f"{folder}/{subject}_ses-things{session:02d}_task-things_run-{run:02d}_events.tsv"
        if not place.exists(path):
            continue
        events = tables.read_events(place, path)
        same = len(events) == len(rows) and (
            (events["stem"].to_numpy() == rows["stem"].to_numpy()).all()
            and (events["is_test"].to_numpy() == rows["is_test"].to_numpy()).all()
        )
        if not same:
            raise InputError(
                f"{place.at(path)} lists other pictures than the table of trials for session "
                f"{session}, run {run}; take both from the same subject"
            )
        agreed += 1
    return [f"raw events of {agreed} runs agree with the table of trials"] if agreed else []


def _check_counts(entry: CatalogEntry, *, trials: pd.DataFrame, name: str) -> None:
    expected = entry.expected("trials_per_session")
    if expected is None:
        return
    for session, count in trials["session"].value_counts().sort_index().items():
        if count != expected:
            raise InputError(
                f"{name} has {count} trials in session {session}, but {entry.name} has {expected}; "
                f"download it again"
            )


def _definitions(
    place: Root, *, layout: Layout
) -> tuple[dict[str, str], list[str], tuple[str, ...]]:
    if place.exists(layout.concepts):
        return tables.read_definitions(place, layout.concepts), [], (layout.concepts,)
    note = f"{place.at(layout.concepts)} is absent: captions are the names of the concepts"
    return {}, [note], ()
