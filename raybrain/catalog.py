"""``data_catalog/`` as typed entries: where a dataset is, its ROIs, split, licence and citation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from raybrain.config import Fraction, InputError, Section, fill_environment, validate

CATALOG = Path(__file__).parent.parent / "data_catalog"


class Roi(Section):
    """Voxels by atlas and label name, by columns of a voxel table, or as a union of other ROIs."""

    atlas: str | None = None
    labels: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    union: tuple[str, ...] = ()
    published: dict[str, int] = Field(default_factory=dict)
    """Subject -> published number of voxels, printed beside the number found."""

    @model_validator(mode="after")
    def _one_way(self) -> Roi:
        ways = [bool(self.atlas), bool(self.columns), bool(self.union)]
        if sum(ways) != 1:
            raise ValueError("needs exactly one of atlas (with labels), columns or union")
        return self


class Split(Section):
    """Which trials train, validate and test."""

    test: str
    """A rule the reader knows by name, such as shared1000, 982 or zero_shot."""
    validation: Fraction = 0.1
    group: Literal["image", "concept", "run", "cluster"] = "image"
    """What must not be divided between training and validation."""


class Licence(Section):
    """Terms of use."""

    name: str
    url: str
    redistributable: bool


class CatalogEntry(Section):
    """One dataset."""

    name: str
    title: str
    reader: Literal["nsd", "things", "haxby", "arrays"]
    root: str
    """A folder or URL; ``${NAME}`` is filled in, and a relative one lies in the workspace."""
    get: str = ""
    """How to obtain the data, in one or two sentences."""
    storage: dict[str, Any] = Field(default_factory=dict)
    """Options of the fsspec file system where the root is a URL: anon for a public bucket."""
    layout: dict[str, Any] = Field(default_factory=dict)
    """Choices within the layout, such as betas and space for NSD."""
    subjects: tuple[str, ...]
    rois: dict[str, Roi]
    split: Split
    expect: dict[str, Any] = Field(default_factory=dict)
    """Counts and checksums that the reader compares with what it finds."""
    licence: Licence
    cite: str


def load_entry(dataset: str) -> CatalogEntry:
    """Return the entry named ``dataset`` in the catalog, or the entry file at that path.

    Raises
    ------
    InputError
        If there is none, or if it does not fit the schema.
    """
    path = Path(dataset) if dataset.endswith((".yaml", ".yml")) else CATALOG / f"{dataset}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in CATALOG.glob("*.yaml")))
        raise InputError(
            f"dataset '{dataset}' is not in the catalog ({names}) and is not an entry file; "
            f"name one of these or give the path of a .yaml file"
        )
    tree = yaml.safe_load(path.read_text())
    if not isinstance(tree, dict):
        raise InputError(f"{path} holds no catalog entry; see {CATALOG / 'nsd.yaml'}")
    return validate({"name": path.stem, **tree}, schema=CatalogEntry, source=str(path))


def root_of(entry: CatalogEntry, *, workspace: str) -> str:
    """Return the folder or URL of the dataset, relative roots taken from the workspace."""
    root = fill_environment(entry.root)
    if "://" in root:
        return root
    path = Path(root).expanduser()
    return str(path) if path.is_absolute() else f"{workspace}/{root}"


def check_choice(entry: CatalogEntry, *, subject: str, rois: tuple[str, ...]) -> None:
    """Raise `InputError` if the entry has no such subject or ROI."""
    if subject not in entry.subjects:
        raise InputError(
            f"'subject': {entry.name} has no subject '{subject}'; "
            f"choose from {', '.join(entry.subjects)}"
        )
    for roi in rois:
        if roi not in entry.rois:
            raise InputError(
                f"ROI '{roi}' is not in the catalog entry {entry.name}; "
                f"choose from {', '.join(entry.rois)}"
            )
