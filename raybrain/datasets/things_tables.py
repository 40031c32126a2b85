"""The tables of THINGS-fMRI: trials, voxels, concepts and raw events.

Facts checked on the real ``sub-01_StimulusMetadata.csv``: 9840 rows, 82 per run, ``trial_id`` equal
to the row, ``concept`` equal to the stimulus name without its last part, and the order of the raw
events once catch trials are dropped.
"""

from __future__ import annotations

import difflib
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from raybrain.config import InputError
from raybrain.datasets.files import Root
from raybrain.datasets.pictures import stem_of
from raybrain.datasets.splits import assign, check_rule, trials_of
from raybrain.datasets.tables import check_ceiling, flags, numbers, read_table, whole_numbers

if TYPE_CHECKING:
    from raybrain.catalog import CatalogEntry

TRAIN_TYPES = ("train", "exp")
"""The table of trials says ``train`` where the raw events say ``exp``."""
CATCH = "catch"
TEST_SETS = ("standard", "zero_shot")
"""standard: the 100 test images, whose concepts occur in training with other images.
zero_shot: the same images, and no training image of their concepts."""
LAST_TRAIN_EXEMPLAR = 12
"""Exemplars 1 to 12 of a concept train, 13 to 25 test (Hebart et al. 2023)."""


def read_stimuli(root: Root, path: str) -> pd.DataFrame:
    """Return one row per trial: session, run, stem, concept, is_test, column (of the responses).

    Raises
    ------
    InputError
        If trials are doubled or out of order, or if the table contradicts itself.
    """
    name = root.at(path)
    columns = ("trial_type", "session", "run", "trial_id", "stimulus", "concept")
    text = ("trial_type", "stimulus", "concept")
    table = read_table(root, path, columns=columns, text=text)
    unknown = set(table["trial_type"]) - {*TRAIN_TYPES, "test", CATCH}
    if unknown:
        raise InputError(f"{name} has trial_type '{min(unknown)}'; known are train and test")
    table = table[table["trial_type"] != CATCH].reset_index(drop=True)
    for column in ("session", "run", "trial_id"):
        table[column] = whole_numbers(table, column, name=name)
    if table["trial_id"].duplicated().any():
        double = int(table["trial_id"][table["trial_id"].duplicated()].iloc[0])
        raise InputError(f"{name} has trial_id {double} twice; download it again")
    order = table[["session", "run"]].to_numpy()
    if (np.diff(order[:, 0] * 1000 + order[:, 1]) < 0).any() or (
        np.diff(table["trial_id"]) < 0
    ).any():
        raise InputError(f"{name} is not in order of session, run and trial_id; download it again")
    stems = table["stimulus"].map(_stem)
    wrong = np.flatnonzero(stems.map(concept_of) != table["concept"])
    if len(wrong):
        row = table.iloc[int(wrong[0])]
        raise InputError(
            f"{name} gives {row['stimulus']} the concept {row['concept']}; download it again"
        )
    return pd.DataFrame(
        {
            "session": table["session"],
            "run": table["run"],
            "stem": stems,
            "concept": table["concept"],
            "is_test": table["trial_type"] == "test",
            "column": table["trial_id"],
        }
    )


def _stem(path: str) -> str:
    return stem_of(PurePosixPath(path).name)


def read_events(root: Root, path: str) -> pd.DataFrame:
    """Return stem and is_test of the raw events of a run, catch trials dropped, by onset."""
    columns = ("onset", "trial_type", "file_path")
    table = read_table(root, path, columns=columns, text=columns[1:])
    table = table[table["trial_type"] != CATCH].sort_values("onset", kind="stable")
    return pd.DataFrame(
        {"stem": table["file_path"].map(_stem), "is_test": table["trial_type"] == "test"}
    ).reset_index(drop=True)


def read_conditions(root: Root, path: str) -> pd.DataFrame:
    """Return volume, stem and is_test of a run of ``betas_vol``, catch trials dropped."""
    table = read_table(root, path, columns=("image_filename",), text=("image_filename",))
    kept = ~table["image_filename"].str.contains(CATCH)
    stems = table.loc[kept, "image_filename"].map(_stem)
    found = stems.str.extract(r"_([0-9]{1,9})[a-z]?$")[0]
    if found.isna().any():
        raise InputError(
            f"{root.at(path)} shows '{stems[found.isna()].iloc[0]}', but the pictures of "
            f"THINGS-fMRI are called concept_number, such as dog_12s; {root.again}"
        )
    exemplar = found.astype(int)
    return pd.DataFrame(
        {
            "volume": np.flatnonzero(kept),
            "stem": stems,
            "is_test": exemplar > LAST_TRAIN_EXEMPLAR,
            "volumes": len(table),
        }
    ).reset_index(drop=True)


def read_voxels(root: Root, path: str) -> pd.DataFrame:
    """Return the table of voxels with the line breaks in its column names removed.

    Raises
    ------
    InputError
        If row i is not voxel_id i.
    """
    needed = ("voxel_id", "voxel_x", "voxel_y", "voxel_z", "nc_singletrial")
    table = read_table(root, path, columns=needed)
    table.columns = [plain_name(column) for column in table.columns]
    name = root.at(path)
    for column in needed[:4]:
        table[column] = whole_numbers(table, column, name=name)
    if not (table["voxel_id"].to_numpy() == np.arange(len(table))).all():
        raise InputError(f"{name} does not list voxel_id 0, 1, 2, ... in order")
    # THINGS-fMRI gives percent.
    table["nc_singletrial"] = numbers(table, "nc_singletrial", name=name) / 100.0
    check_ceiling(table["nc_singletrial"].to_numpy(), name=f"{name}, column nc_singletrial / 100,")
    return table


def plain_name(column: str) -> str:
    r"""Return a column name without line breaks: ``glasser-p9-\n46v`` is glasser-p9-46v."""
    return re.sub(r"\s*\n\s*", "", column)


def pick_columns(table: pd.DataFrame, *, columns: tuple[str, ...], name: str) -> np.ndarray:
    """Return where any of the 0/1 ``columns`` is 1.

    Raises
    ------
    InputError
        If there is no such column, or it holds anything but 0 and 1.
    """
    mask = np.zeros(len(table), dtype=bool)
    for column in columns:
        plain = plain_name(column)
        if plain not in table.columns:
            known = [str(one) for one in table.columns]
            close = [one for one in known if one.startswith(plain)]
            close += difflib.get_close_matches(plain, known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else "see its first line"
            listing = [one for one in known if (table[one].astype(str) == plain).any()]
            if listing and not close:
                hint = f"its column {listing[0]} lists names: write a column of 0 and 1 per ROI"
            raise InputError(f"{name} has no column '{plain}'; {hint}")
        mask |= flags(table, plain, name=name)
    return mask


def read_definitions(root: Root, path: str) -> dict[str, str]:
    """Return concept -> definition of ``things_concepts.tsv``."""
    table = read_table(root, path, columns=("uniqueID",), text=None)
    found = [column for column in table.columns if column.startswith("Definition")]
    if not found:
        raise InputError(f"{root.at(path)} has no column 'Definition ...'; download it again")
    texts = table[found[0]].str.strip()
    return dict(zip(table["uniqueID"], texts, strict=True))


def caption(concept: str, *, definitions: dict[str, str]) -> tuple[str, ...]:
    """Return the text of a concept, ``name, definition``.

    Some concepts carry a digit to tell homonyms apart (mouse1); it is left out of the text.
    """
    name = re.sub(r"\d+$", "", concept).replace("_", " ")
    definition = definitions.get(concept, "")
    return (f"{name}, {definition}" if definition else name,)


def concept_of(stem: str) -> str:
    """Return ``dog`` for ``dog_12s``."""
    return stem.rsplit("_", 1)[0]


def split_trials(
    entry: CatalogEntry, *, trials: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Return the kept rows of ``trials``, the recording's trials, and what to tell."""
    check_rule(entry, "test", known=TEST_SETS)
    if entry.split.group not in ("image", "concept"):
        raise InputError(
            f"catalog entry {entry.name}: 'split.group' cannot be '{entry.split.group}'; "
            f"choose image or concept"
        )
    notes = []
    tested = set(trials["concept"][trials["is_test"]])
    if entry.split.test == "zero_shot":
        drop = ~trials["is_test"] & trials["concept"].isin(tested)
        notes.append(
            f"zero_shot: {int(drop.sum())} training trials of {len(tested)} test concepts left out"
        )
        trials = trials[~drop]
    else:
        both = tested & set(trials["concept"][~trials["is_test"]])
        notes.append(
            f"{len(both)} of {len(tested)} test concepts also occur in training, with other images"
        )
    kept = trials.reset_index(drop=True)
    is_test = kept["is_test"].to_numpy(dtype=bool)
    group = kept["concept"] if entry.split.group == "concept" else kept["stem"]
    split = assign(is_test=is_test, group=group, validation=entry.split.validation)
    table = trials_of(kept.rename(columns={"stem": "image_id"}), split=split)
    mixed = set(kept["stem"][is_test]) & set(kept["stem"][~is_test])
    if mixed:
        raise InputError(
            f"the trials of {entry.name} show {min(mixed)} both in training and in the test; "
            f"download the table of trials again"
        )
    notes.insert(
        0,
        f"{kept['session'].nunique()} sessions, {len(kept)} trials; test set {entry.split.test}: "
        f"{kept['stem'][is_test].nunique()} images in {int(is_test.sum())} trials",
    )
    return kept, table, notes
