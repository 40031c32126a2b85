"""NSD's tables of trials, images and captions, checked against each other.

NSD counts from 1 in nsd_expdesign.mat (masterordering, subjectim, sharedix), in responses.tsv
(73KID, 10KID, SESSION) and in the repK columns, and from 0 in nsd_stim_info_merged.csv (nsdId)
and imgBrick. Numbers become 0-based ``nsd_id`` here and nowhere else.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from raybrain.config import InputError
from raybrain.datasets.files import Root
from raybrain.datasets.matlab import read_matlab
from raybrain.datasets.tables import flags, read_table, whole_numbers

EXPDESIGN = "nsddata/experiments/nsd/nsd_expdesign.mat"
STIM_INFO = "nsddata/experiments/nsd/nsd_stim_info_merged.csv"
STIMULI = "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
ANNOTATIONS = "nsddata_stimuli/stimuli/nsd/annotations"
_LEGACY_REPEATS = 3


@dataclass(frozen=True)
class Design:
    """The order of presentation that was planned for one subject."""

    nsd_id: np.ndarray
    """(trial,) int64: 0-based id of every planned trial."""
    rank: np.ndarray
    """(trial,) int64: 1-based place of the image in the subject's list; shared ones come first."""
    shared: frozenset[int]
    """0-based ids of the images that every subject sees."""


def responses_file(subject: str) -> str:
    """Return where responses.tsv of a subject lies."""
    return f"nsddata/ppdata/{subject}/behav/responses.tsv"


def read_design(root: Root, *, subject: str) -> Design:
    """Return the planned order of presentation from nsd_expdesign.mat."""
    name = root.at(EXPDESIGN)
    content = root.read(EXPDESIGN)
    try:
        mat = read_matlab(content, "masterordering", "subjectim", "sharedix")
        with np.errstate(invalid="raise"):  # NaN is no whole number
            ordering = mat["masterordering"].astype(np.int64).ravel()
            images = mat["subjectim"].astype(np.int64)
            shared = mat["sharedix"].astype(np.int64).ravel()
    except KeyError as error:
        raise InputError(f"{name} has no {error}; download it again") from None
    except (ValueError, FloatingPointError) as error:
        raise InputError(f"{name} cannot be read ({error}); download it again") from None
    number = subject_number(subject)
    if number > len(images) or ordering.max() > images.shape[1]:
        raise InputError(
            f"{name} does not plan {subject}; choose one of its {len(images)} subjects"
        )
    if set(images[number - 1, : len(shared)]) != set(shared):
        raise InputError(
            f"{name} contradicts itself: the first {len(shared)} images of {subject} are not "
            f"those of sharedix; download it again"
        )
    return Design(
        nsd_id=images[number - 1, ordering - 1] - 1,
        rank=ordering,
        shared=frozenset((shared - 1).tolist()),
    )


def subject_number(subject: str) -> int:
    """Return 3 for ``subj03``."""
    found = re.fullmatch(r"subj(\d+)", subject)
    if not found:
        raise InputError(f"'{subject}' is no NSD subject; they are called subj01, subj02, ...")
    return int(found.group(1))


def read_trials(root: Root, *, subject: str, design: Design) -> pd.DataFrame:
    """Return one row per trial of responses.tsv: session, run, nsd_id, planned (0-based trial).

    Raises
    ------
    InputError
        If the trials are out of order, doubled, or not those that the design planned.
    """
    path = responses_file(subject)
    name = root.at(path)
    columns = ("SESSION", "RUN", "TRIAL", "73KID", "10KID")
    read = read_table(root, path, columns=columns)
    table = pd.DataFrame({column: whole_numbers(read, column, name=name) for column in columns})
    place = list(table[["SESSION", "RUN", "TRIAL"]].itertuples(index=False, name=None))
    for before, after in pairwise(place):
        if before >= after:
            fault = "twice" if before == after else f"after {_trial(before)}"
            raise InputError(
                f"{name} has {_trial(after)} {fault}; its rows must be in order of presentation, "
                f"so download it again"
            )
    if len(table) > len(design.nsd_id):
        raise InputError(
            f"{name} has {len(table)} trials, but {EXPDESIGN} plans {len(design.nsd_id)}; "
            f"take both from the same release"
        )
    nsd_id = table["73KID"].to_numpy() - 1
    rank = table["10KID"].to_numpy()
    wrong = np.flatnonzero(
        (nsd_id != design.nsd_id[: len(table)]) | (rank != design.rank[: len(table)])
    )
    if len(wrong):
        first = int(wrong[0])
        raise InputError(
            f"{name} shows image {nsd_id[first] + 1} in {_trial(place[first])}, but {EXPDESIGN} "
            f"plans {design.nsd_id[first] + 1}; take both from the same release"
        )
    return pd.DataFrame(
        {
            "session": table["SESSION"],
            "run": table["RUN"],
            "nsd_id": nsd_id,
            "planned": np.arange(len(table)),
        }
    )


def _trial(place: tuple[int, int, int]) -> str:
    return "session {}, run {}, trial {}".format(*place)


def read_images(root: Root, *, subject: str, design: Design, trials: pd.DataFrame) -> pd.DataFrame:
    """Return nsd_id, cocoId and cocoSplit of every image planned for the subject, ascending.

    Raises
    ------
    InputError
        If nsd_stim_info_merged.csv disagrees with the trials or with the shared images.
    """
    name = root.at(STIM_INFO)
    number = subject_number(subject)
    repeats = [f"subject{number}_rep{k}" for k in range(_LEGACY_REPEATS)]
    whole = ("cocoId", "nsdId", *repeats)
    read = read_table(
        root, STIM_INFO, columns=("cocoSplit", "shared1000", *whole), text=("cocoSplit",)
    )
    table = pd.DataFrame({column: whole_numbers(read, column, name=name) for column in whole})
    table["cocoSplit"] = read["cocoSplit"]
    table["shared1000"] = flags(read, "shared1000", name=name)
    if not (table["nsdId"].to_numpy() == np.arange(len(table))).all():
        raise InputError(f"{name} does not list nsdId 0, 1, 2, ... in order; download it again")
    if set(table.index[table["shared1000"]]) != design.shared:
        raise InputError(
            f"{name} marks other shared images than sharedix in {EXPDESIGN}; "
            f"take both from the same release"
        )
    # 0 means never shown; a trial beyond the sessions that took place was planned only.
    planned = np.full(len(design.nsd_id), -1)
    for column in repeats:
        shown = table[column].to_numpy()
        beyond = shown > len(planned)
        keep = (shown > 0) & ~beyond
        planned[shown[keep] - 1] = np.flatnonzero(keep)
    wrong = trials[planned[trials["planned"].to_numpy()] != trials["nsd_id"].to_numpy()]
    if len(wrong):
        first = wrong.iloc[0]
        raise InputError(
            f"{name} does not list trial {first['planned'] + 1} of {subject} for image "
            f"{first['nsd_id']} (nsdId), which {responses_file(subject)} says was shown; "
            f"take both from the same release"
        )
    chosen = table.loc[np.unique(design.nsd_id)]
    return (
        chosen[["nsdId", "cocoId", "cocoSplit"]]
        .rename(columns={"nsdId": "nsd_id"})
        .reset_index(drop=True)
    )


def captions_file(split: str) -> str:
    """Return the COCO captions of a split, such as train2017."""
    return f"{ANNOTATIONS}/captions_{split}.json"


def read_captions(root: Root, *, images: pd.DataFrame) -> list[tuple[str, ...]]:
    """Return the captions of every image, in order of annotation id.

    Raises
    ------
    InputError
        If a file is missing or an image has no caption.
    """
    captions: list[tuple[str, ...]] = [()] * len(images)
    for split in sorted(images["cocoSplit"].unique()):
        found = annotated(root, captions_file(split), value="caption")
        for row in np.flatnonzero(images["cocoSplit"] == split):
            texts = found.get(int(images["cocoId"].iloc[row]), ())
            captions[row] = tuple(str(text).strip() for text in texts)
    bare = [k for k, texts in enumerate(captions) if not texts]
    if bare:
        first = images.iloc[bare[0]]
        raise InputError(
            f"{root.at(captions_file(first['cocoSplit']))} has no caption of COCO image "
            f"{first['cocoId']} ({len(bare)} images lack one); download it again"
        )
    return captions


def annotated(root: Root, path: str, *, value: str) -> dict[int, list[object]]:
    """Return COCO image -> its annotations' values in order of their ids.

    Raises
    ------
    InputError
        If the file is missing or is no COCO file.
    """
    content = _json(root, path)
    found: dict[int, list[object]] = {}
    try:
        for note in sorted(content["annotations"], key=lambda note: note["id"]):
            found.setdefault(int(note["image_id"]), []).append(note[value])
    except (KeyError, TypeError):
        raise InputError(
            f"{root.at(path)} is not a COCO file with annotations of image_id, id and {value}; "
            f"download it again"
        ) from None
    return found


def _json(root: Root, path: str) -> dict:
    try:
        return json.loads(root.read(path))
    except ValueError as error:
        raise InputError(
            f"{root.at(path)} is not valid JSON ({error}); download it again"
        ) from None


def instances_file(split: str) -> str:
    """Return the COCO objects of a split, such as train2017."""
    return f"{ANNOTATIONS}/instances_{split}.json"


def read_groups(root: Root, *, images: pd.DataFrame) -> list[str]:
    """Return the COCO category that fills the largest area of every image ('' where none does)."""
    groups = [""] * len(images)
    for split in sorted(images["cocoSplit"].unique()):
        path = instances_file(split)
        content = _json(root, path)
        try:
            names = {entry["id"]: entry["name"] for entry in content["categories"]}
            area: dict[int, dict[str, float]] = {}
            for note in content["annotations"]:
                per_name = area.setdefault(int(note["image_id"]), {})
                name = names[note["category_id"]]
                per_name[name] = per_name.get(name, 0.0) + float(note["area"])
        except (KeyError, TypeError):
            raise InputError(
                f"{root.at(path)} is not a COCO instances file; download it again"
            ) from None
        for row in np.flatnonzero(images["cocoSplit"] == split):
            found = area.get(int(images["cocoId"].iloc[row]), {})
            groups[row] = max(sorted(found), key=lambda name: found[name]) if found else ""
    return groups
