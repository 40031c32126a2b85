"""The Natural Object Dataset (Gong et al. 2023, doi:10.1038/s41597-023-02471-x) as a recording.

OpenNeuro's ds004496: the dataset's own betas lie on the surface, a CIFTI file per run with a map
per trial, named by its picture. Vertices of both hemispheres are the voxels; a position is
(hemisphere, vertex, 0). Which are neighbours say the midthickness surfaces in 32k fs_LR that
ciftify wrote and the dataset's own smoothing reads. Regions are those of HCP-MMP1, from the two
files that the dataset's code ships, or labels of a ``.dlabel.nii`` such as those of its category
localizer.
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
from raybrain.datasets import Recording, Surface, Voxels
from raybrain.datasets.cifti import Maps, read_heading, read_maps
from raybrain.datasets.contents import picture_folder
from raybrain.datasets.files import RequiredFile, Root
from raybrain.datasets.gifti import edges_among, read_triangles
from raybrain.datasets.matlab import read_matlab
from raybrain.datasets.pictures import (
    find_pictures,
    names_and_sizes,
    read_pictures,
    read_sides,
    stem_of,
)
from raybrain.datasets.roi_labels import resolve, sizes, whole_labels
from raybrain.datasets.splits import assign, check_rule, held_out, overlap, trials_of
from raybrain.datasets.synsets import caption_of, read_words, synset_of
from raybrain.datasets.tables import decode_text
from raybrain.datasets.things_betas import check_finite
from raybrain.spelling import hint

if TYPE_CHECKING:
    from raybrain.catalog import CatalogEntry, Roi
    from raybrain.config import Ingest

MMP = "HCP_MMP1"
AREAS = 180
"""Per hemisphere; 181 to 360 are the right one's, in the same order."""
TEST_SETS = ("categories", "images", "coco")
"""categories: a tenth of ImageNet's 1000 categories, none of which trains. images: a tenth of the
pictures, whose categories train. coco: the 120 pictures shown ten times."""
HELD_OUT = 0.1
UNKNOWN = "a photograph"


class Layout(Section):
    """Where the files lie; ``{subject}``, ``{run}``, ``{atlas}`` and such are filled in."""

    results: str = "derivatives/ciftify/{subject}/results"
    betas: str = "{run}/{run}_beta.dscalar.nii"
    """``{run}`` is a folder such as ses-imagenet01_task-imagenet_run-1."""
    labels: str = "{run}/{run}_label.txt"
    """Compared with the names in the CIFTI file where it is there."""
    areas: str = "supportfiles/MMP_mpmLR32k.mat"
    """The variable glasser_MMP: an area's number per vertex of the file."""
    areas_names: str = "supportfiles/roilbl_mmp.csv"
    atlas: str = "derivatives/ciftify/{subject}/results/ses-floc_task-floc/{atlas}.dlabel.nii"
    surface: str | None = (
        "derivatives/ciftify/{subject}/standard_fsLR_surface/"
        "{subject}.{hemisphere}.midthickness.32k_fs_LR.surf.gii"
    )
    """The mesh; ``{hemisphere}`` is L or R. Without these files vertices have no neighbours."""
    images: str = "stimuli"
    words: str = "words.txt"
    """ImageNet's list of synsets and what they are called, for captions."""

    def fill(self, template: str, *, subject: str, run: str = "", atlas: str = "") -> str:
        """Return a file's path."""
        filled = template.replace("{subject}", subject).replace("{run}", run)
        return filled.replace("{atlas}", atlas)

    def meshes(self, *, subject: str) -> list[str]:
        """Return the surfaces of the left and the right hemisphere, none where none is wanted."""
        if self.surface is None:
            return []
        filled = self.fill(self.surface, subject=subject)
        return [filled.replace("{hemisphere}", side) for side in "LR"]

    def in_results(self, template: str, *, subject: str, run: str) -> str:
        """Return a file's path below ``results``."""
        return self.fill(f"{self.results}/{template}", subject=subject, run=run)


def open_recording(entry: CatalogEntry, *, root: str, subject: str, settings: Ingest) -> Recording:
    """Return one subject's trials, vertices of the catalogued ROIs and pictures.

    Raises
    ------
    InputError
        If a file is missing or contradicts another; the message names the file and the remedy.
    """
    layout = _layout(entry)
    place = Root(root, get=entry.get, storage=entry.storage)
    runs = _runs(place, entry=entry, layout=layout, subject=subject)
    if settings.sessions is not None:
        runs = runs[runs["session"] <= settings.sessions]
    if not len(runs):
        first = "ses-imagenet01_task-imagenet_run-1"
        raise place.missing(layout.in_results(layout.betas, subject=subject, run=first))
    frames, files = [], []
    surface: Maps | None = None
    for run in runs.itertuples():
        path = layout.in_results(layout.betas, subject=subject, run=str(run.folder))
        maps = read_heading(place, path)
        if surface is not None and not np.array_equal(maps.xyz, surface.xyz):
            raise InputError(
                f"{place.at(path)} holds other vertices than the runs before it; take all runs "
                f"from the same release"
            )
        surface = maps
        labels = layout.in_results(layout.labels, subject=subject, run=str(run.folder))
        _check_labels(place, labels, names=maps.names, betas=path)
        files += [path, *([labels] if place.exists(labels) else [])]
        frames.append(
            pd.DataFrame(
                {
                    "image_id": [_picture(name) for name in maps.names],
                    "session": run.session,
                    "run": run.run,
                    "coco": run.coco,
                    "file": path,
                }
            )
        )
    if surface is None:
        raise InputError(f"no run of {subject} is in {place.url}; {place.again}")
    table = pd.concat(frames, ignore_index=True)
    if not len(table) or not table["image_id"].str.strip().all():
        raise InputError(
            f"the maps of {place.at(files[0])} or another run are not named by their pictures; "
            f"{place.again}"
        )
    trials, split_notes = _trials(entry, table=table)
    masks, mask_files = _masks(entry, place=place, layout=layout, subject=subject, surface=surface)
    inside = np.flatnonzero(np.logical_or.reduce(list(masks.values())))
    if not len(inside):
        raise InputError(
            f"no vertex of {subject} in {place.url} lies in an ROI; choose other areas"
        )
    names = sorted(set(table["image_id"]))
    pictures = find_pictures(
        place,
        folder=layout.images,
        names=names,
        remedy="get the folder stimuli of ds004496 (datalad get stimuli)",
    )
    words = read_words(place, layout.words)
    meshes = layout.meshes(subject=subject) if _has_mesh(place, layout, subject=subject) else []
    edges = _edges(place, meshes, xyz=surface.xyz[inside], vertices=surface.vertices)
    rois = {name: mask[inside] for name, mask in masks.items()}
    xyz = surface.xyz[inside]
    by_session = {
        number: table[table["session"] == number] for number in table["session"].unique().tolist()
    }
    return Recording(
        dataset=entry.name,
        subject=subject,
        trials=trials,
        voxels=Voxels(
            index=xyz[:, 0].astype(np.int64) * max(surface.vertices) + xyz[:, 1],
            xyz=xyz,
            noise_ceiling=np.full(len(inside), np.nan, dtype=np.float32),
        ),
        rois=rois,
        surface=Surface(hemisphere=xyz[:, 0].astype(np.int8), edges=edges),
        images=pd.DataFrame(
            {
                "image_id": names,
                "captions": [_caption(name, words=words) for name in names],
                "group": [synset_of(name) for name in names],
            }
        ),
        read_session=partial(
            _read_session,
            root=place,
            sessions={k: list(dict.fromkeys(rows["file"])) for k, rows in by_session.items()},
            trials={k: len(rows) for k, rows in by_session.items()},
            chosen=inside.astype(np.int64),
            vertices=len(surface.xyz),
        ),
        read_images=partial(
            read_pictures, root=place, files=pictures, background=settings.background
        ),
        read_sides=partial(read_sides, root=place, files=pictures),
        sources={
            **{path: place.fingerprint(path) for path in (*files, *mask_files, *meshes)},
            **({layout.words: place.fingerprint(layout.words)} if words else {}),
            layout.images: names_and_sizes(place, pictures),
        },
        findings=(
            *_absent(place, layout=layout, subject=subject),
            *split_notes,
            f"{int((xyz[:, 0] == 0).sum()):,} vertices of the left hemisphere and "
            f"{int((xyz[:, 0] == 1).sum()):,} of the right lie in an ROI",
            _neighbours(place, layout, subject=subject, edges=edges, voxels=len(inside)),
            *(() if words else (f"{place.at(layout.words)} is absent: captions are bare names",)),
            *sizes(entry, subject=subject, masks=rois),
        ),
    )


def required_files(
    entry: CatalogEntry, *, root: str, subject: str, settings: Ingest
) -> list[RequiredFile]:
    """Return every file that ingest of this subject reads, present or not; pictures as a folder."""
    layout = _layout(entry)
    place = Root(root, get=entry.get, storage=entry.storage)
    found = _runs(place, entry=entry, layout=layout, subject=subject)
    folders = found["folder"][found["session"] <= (settings.sessions or len(found))].tolist()
    planned = entry.expected("sessions", subject) or 0
    for session in range(1, min(planned, settings.sessions or planned) + 1):
        for run in range(1, (entry.expected("runs_per_session") or 10) + 1):
            folders.append(f"ses-imagenet{session:02d}_task-imagenet_run-{run}")
    if not folders:
        folders = ["ses-imagenet01_task-imagenet_run-1"]
    most = entry.expected("run_bytes")
    betas = [
        layout.in_results(layout.betas, subject=subject, run=run) for run in dict.fromkeys(folders)
    ]
    labels = [
        layout.in_results(layout.labels, subject=subject, run=run) for run in dict.fromkeys(folders)
    ]
    atlases = dict.fromkeys(roi.atlas for roi in entry.rois.values() if roi.atlas)
    files = [
        *(path for path in labels if place.exists(path)),
        *layout.meshes(subject=subject),
        layout.words,
    ]
    for atlas in atlases:
        files += (
            [layout.areas, layout.areas_names]
            if atlas == MMP
            else [layout.fill(layout.atlas, subject=subject, atlas=str(atlas))]
        )
    shown = None
    with contextlib.suppress(InputError):  # ingest tells what is wrong with the names
        heads = [read_heading(place, path) for path in betas if place.exists(path)]
        shown = {_picture(name) for one in heads for name in one.names} or None
    return [
        *(place.required(path, at_most=most) for path in betas),
        *(place.required(path) for path in files),
        picture_folder(place, layout.images, shown=shown),
    ]


def _picture(name: str) -> str:
    return stem_of(name.rsplit("/", 1)[-1])


def _layout(entry: CatalogEntry) -> Layout:
    check_rule(entry, "test", known=TEST_SETS)
    check_rule(entry, "group", known=("image", "concept"))
    return entry.layout_as(Layout)


def _runs(place: Root, *, entry: CatalogEntry, layout: Layout, subject: str) -> pd.DataFrame:
    """Return folder, session, run and coco of the runs present, in order of session and run.

    Runs are not padded with a zero, so that run-10 sorts before run-2 by name. The session of the
    120 repeated pictures comes after all others.
    """
    folder = layout.fill(layout.results, subject=subject)
    rows = []
    for name in place.names(folder):
        match = re.fullmatch(r"ses-imagenet([0-9]{1,4})_task-imagenet_run-([0-9]{1,4})", name)
        coco = re.fullmatch(r"ses-coco_task-coco_run-([0-9]{1,4})", name)
        if not place.exists(layout.in_results(layout.betas, subject=subject, run=name)):
            continue
        if match:
            rows.append((name, int(match.group(1)), int(match.group(2)), False))
        elif coco and entry.split.test == "coco":
            rows.append((name, 0, int(coco.group(1)), True))
    runs = pd.DataFrame(rows, columns=["folder", "session", "run", "coco"])
    runs["coco"] = runs["coco"].astype(bool)
    runs.loc[runs["coco"], "session"] = int(runs["session"].max()) + 1 if len(runs) else 1
    return runs.sort_values(["session", "run"], kind="stable", ignore_index=True)


def _absent(place: Root, *, layout: Layout, subject: str) -> list[str]:
    """Return a sentence where runs have a folder and no betas, as in a clone without content."""
    folders = [
        name
        for name in place.names(layout.fill(layout.results, subject=subject))
        if re.fullmatch(r"ses-imagenet[0-9]{1,4}_task-imagenet_run-[0-9]{1,4}", name)
        and not place.exists(layout.in_results(layout.betas, subject=subject, run=name))
    ]
    if not folders:
        return []
    return [f"{len(folders)} runs have no betas here and are left out, such as {folders[0]}"]


def _check_labels(place: Root, path: str, *, names: Sequence[str], betas: str) -> None:
    """Compare the names of the maps with the text beside them, if it is there.

    The dataset's code writes the names of a run one after the other, without line breaks.
    """
    if not place.exists(path):
        return
    text = "".join(decode_text(place.read(path), name=place.at(path)).split())
    if text != "".join("".join(name.split()) for name in names):
        raise InputError(
            f"{place.at(path)} names other pictures than {place.at(betas)}; take both from the "
            f"same release"
        )


def _trials(entry: CatalogEntry, *, table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    concept = table["image_id"].map(synset_of)
    of = concept.where(concept != "", table["image_id"])
    rule = entry.split.test
    if rule == "coco":
        is_test = table["coco"].to_numpy(dtype=bool)
    else:
        what = of if rule == "categories" else table["image_id"]
        tested = held_out(what, fraction=HELD_OUT, salt="test")
        is_test = what.isin(tested).to_numpy()
    group = of if entry.split.group == "concept" else table["image_id"]
    split = assign(is_test=is_test, group=group, validation=entry.split.validation)
    trials = trials_of(table, split=split)
    return trials, [
        f"{table['session'].nunique()} sessions, {len(table)} trials; test set {rule}: "
        f"{table['image_id'][is_test].nunique()} pictures in {int(is_test.sum())} trials",
        overlap(entry, image_id=table["image_id"], concept=concept, is_test=is_test),
    ]


def _caption(name: str, *, words: Mapping[str, str]) -> tuple[str, ...]:
    concept = synset_of(name)
    return caption_of(concept, words=words) if concept else (UNKNOWN,)


def _masks(
    entry: CatalogEntry, *, place: Root, layout: Layout, subject: str, surface: Maps
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the ROIs over the vertices of the betas, and the files they came from."""
    areas: dict[str, np.ndarray] = {}
    atlases: dict[str, Maps] = {}
    files: list[str] = []

    def leaf(name: str, roi: Roi) -> np.ndarray:
        if roi.atlas is None:
            raise InputError(
                f"catalog entry {entry.name}: ROI '{name}' needs an atlas, {MMP} or the name of a "
                f".dlabel.nii"
            )
        if roi.atlas == MMP:
            if not areas:
                areas.update(_areas(place, layout=layout, vertices=len(surface.xyz)))
                files.extend([layout.areas, layout.areas_names])
            return _pick(areas, labels=roi.labels or tuple(areas), atlas=MMP)
        path = layout.fill(layout.atlas, subject=subject, atlas=roi.atlas)
        if roi.atlas not in atlases:
            atlases[roi.atlas] = read_maps(place, path)
            files.append(path)
        return _labelled(place, path, maps=atlases[roi.atlas], roi=roi, surface=surface)

    return resolve(entry.rois, leaf=leaf), files


def _areas(place: Root, *, layout: Layout, vertices: int) -> dict[str, np.ndarray]:
    """Return mask per area, under its plain name for both hemispheres and as L_ and R_."""
    name = place.at(layout.areas)
    content = place.read(layout.areas)
    try:
        numbers = read_matlab(content, "glasser_MMP")["glasser_MMP"].ravel()
    except (KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{name} cannot be read ({reason}); {place.again}") from None
    if len(numbers) != vertices:
        raise InputError(
            f"{name} has {len(numbers)} vertices, but the betas have {vertices}; take both from "
            f"the same release"
        )
    numbers = whole_labels(numbers, name=name)
    # The first line is a heading in an encoding of its own; the others are plain.
    lines = place.read(layout.areas_names).split(b"\n")[1:]
    text = b"\n".join(lines)
    names = [
        match.group(1) for match in re.finditer(r"^L_(\S+)_ROI,", text.decode("latin-1"), re.M)
    ]
    if len(names) != AREAS or len(set(names)) != AREAS:
        raise InputError(
            f"{place.at(layout.areas_names)} names {len(set(names))} areas of the left hemisphere "
            f"instead of {AREAS}; {place.again}"
        )
    found = {}
    for number, area in enumerate(names, start=1):
        found[f"L_{area}"], found[f"R_{area}"] = numbers == number, numbers == number + AREAS
        found[area] = found[f"L_{area}"] | found[f"R_{area}"]
    return found


def _has_mesh(place: Root, layout: Layout, *, subject: str) -> bool:
    """Return whether both hemispheres' surfaces are here; one alone is an `InputError`."""
    here = {path: place.exists(path) for path in layout.meshes(subject=subject)}
    if any(here.values()) and not all(here.values()):
        raise place.missing(next(path for path, there in here.items() if not there))
    return any(here.values())


def _edges(
    place: Root, meshes: Sequence[str], *, xyz: np.ndarray, vertices: tuple[int, int]
) -> np.ndarray | None:
    """Return the edges between kept vertices, a hemisphere at a time; none joins the two."""
    if not meshes:
        return None
    found, before = [], 0
    for side, path in enumerate(meshes):
        chosen = xyz[xyz[:, 0] == side, 1]
        triangles = read_triangles(place, path, vertices=vertices[side], side=side)
        found.append(before + edges_among(triangles, chosen=chosen, vertices=vertices[side]))
        before += len(chosen)
    return np.concatenate(found).astype(np.int32)


def _neighbours(
    place: Root, layout: Layout, *, subject: str, edges: np.ndarray | None, voxels: int
) -> str:
    if edges is None:
        files = " and ".join(place.at(path) for path in layout.meshes(subject=subject))
        return f"neighbours of vertices are not known: {files or 'layout.surface'} absent"
    alone = voxels - len(np.unique(edges))
    return f"{len(edges):,} edges join neighbouring vertices; {alone:,} vertices have no neighbour"


def _pick(masks: Mapping[str, np.ndarray], *, labels: Sequence[str], atlas: str) -> np.ndarray:
    for label in labels:
        if label not in masks:
            told = hint(label, masks, otherwise=f"it has {', '.join(masks)}")
            raise InputError(f"atlas {atlas} has no label '{label}'; {told}")
    return np.logical_or.reduce([masks[label] for label in labels])


def _labelled(place: Root, path: str, *, maps: Maps, roi: Roi, surface: Maps) -> np.ndarray:
    """Return the vertices of the betas that have a label in any map of an atlas's file."""
    name = place.at(path)
    if not maps.labels:
        raise InputError(f"{name} holds no labels; take a .dlabel.nii")
    masks: dict[str, np.ndarray] = {}
    for row, names in zip(maps.values, maps.labels, strict=True):
        values = whole_labels(row, name=name)
        for number, label in names.items():
            if number > 0:
                here = values == number
                masks[label] = here | masks.get(label, np.zeros_like(here))
    if not masks:
        raise InputError(f"{name} names no label above 0; {place.again}")
    chosen = _pick(masks, labels=roi.labels or tuple(masks), atlas=str(roi.atlas))
    marked = {tuple(position) for position in maps.xyz[chosen].tolist()}
    if maps.vertices != surface.vertices:
        raise InputError(
            f"{name} is on a surface of {maps.vertices} vertices, the betas on one of "
            f"{surface.vertices}; take both from the same space"
        )
    return np.array([tuple(position) in marked for position in surface.xyz.tolist()], dtype=bool)


def _read_session(
    session: int,
    *,
    root: Root,
    sessions: Mapping[int, Sequence[str]],
    trials: Mapping[int, int],
    chosen: np.ndarray,
    vertices: int,
) -> np.ndarray:
    """Return (trial, vertex) float32 of one session, a run's file at a time."""
    runs = []
    for path in sessions[session]:
        maps = read_maps(root, path, chosen=chosen)
        if len(maps.xyz) != vertices:
            raise InputError(f"{root.at(path)} has changed while it was read; start again")
        check_finite(maps.values, name=root.at(path), again=root.again)
        runs.append(maps.values)
    found = np.concatenate(runs)
    if len(found) != trials[session]:
        raise InputError(
            f"session {session} in {root.url} has changed while it was read; start again"
        )
    return found
