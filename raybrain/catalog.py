"""``data_catalog/`` as typed entries: where a dataset is, its ROIs, split, licence and citation."""

from __future__ import annotations

import functools
import ipaddress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from raybrain.config import (
    NO_SECRETS,
    Fraction,
    InputError,
    PathPart,
    Section,
    fill_environment,
    holds_secret,
    read_mapping,
    validate,
)
from raybrain.spelling import as_written

SCHEMES = (
    "s3",
    "gs",
    "gcs",
    "az",
    "abfs",
    "abfss",
    "http",
    "https",
    "hdfs",
    "sftp",
    "memory",
    "file",
)
"""Of the file systems a dataset may be read from; each needs its own package for fsspec."""
METADATA_HOSTS = ("metadata", "metadata.google.internal", "instance-data")
CATALOG = Path(__file__).parent / "assets" / "data_catalog"
"""In a checkout a link to ``data_catalog/`` at its top, in an installed package a copy."""
OWN = "data_catalog"
"""Folder of one's own entries where a command is typed; they go before those that are shipped."""


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

    name: PathPart
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
    subjects: tuple[PathPart, ...]
    rois: dict[PathPart, Roi]
    split: Split
    expect: dict[str, Any] = Field(default_factory=dict)
    """Counts and checksums that the reader compares with what it finds."""
    licence: Licence
    cite: str


def locate(dataset: str, *, beside: Path) -> str:
    """Return a dataset's name, or the absolute path of an entry of one's own.

    Parameters
    ----------
    dataset : str
        As the experiment names it.
    beside : Path
        Folder of the experiment file, where a relative path is looked for if not here.
    """
    path = Path(dataset).expanduser()
    if not dataset.endswith((".yaml", ".yml")):
        path = Path(OWN) / f"{dataset}.yaml"
        if not path.is_file() or path.resolve() == (CATALOG / path.name).resolve():
            return dataset
    elif not path.is_file() and (beside / path).is_file():
        path = beside / path
    return str(path.absolute())


def load_entry(dataset: str) -> CatalogEntry:
    """Return the entry named ``dataset`` in the catalog, or the entry file at that path.

    Raises
    ------
    InputError
        If there is none, or if it does not fit the schema.
    """
    path = (
        Path(dataset).expanduser()
        if dataset.endswith((".yaml", ".yml"))
        else CATALOG / f"{dataset}.yaml"
    )
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in CATALOG.glob("*.yaml")))
        raise InputError(
            f"dataset '{dataset}' is not in the catalog ({names}) and is not an entry file; "
            f"name one of these or give the path of a .yaml file"
        )
    told = path.stat()
    return _entry(path, changed=told.st_mtime_ns, size=told.st_size)


@functools.lru_cache(maxsize=64)
def _entry(path: Path, *, changed: int, size: int) -> CatalogEntry:
    # Whatever depends on data asks for its entry, and reading one takes a thirtieth of a second.
    tree, spelled = read_mapping(path, example="title: What we measured")
    written = as_written(tree, spelled, CatalogEntry)
    return validate({"name": path.stem, **written}, schema=CatalogEntry, source=str(path))


def root_of(entry: CatalogEntry, *, workspace: str) -> str:
    """Return the folder or URL of the dataset, relative roots taken from the workspace.

    Raises
    ------
    InputError
        If a URL holds a secret, or is no place that datasets are kept in.
    """
    root = fill_environment(entry.root)
    if "://" in root or "::" in root:
        _check_url(entry, root)
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


def _check_url(entry: CatalogEntry, root: str) -> None:
    """Raise `InputError` for an address that an entry of somebody else should not lead to."""
    where = f"catalog entry {entry.name}: 'root'"
    if holds_secret(root):
        raise InputError(f"{where} {NO_SECRETS}")
    scheme = root.split("://", 1)[0]
    if "::" in root or scheme not in SCHEMES:
        raise InputError(
            f"{where} begins with {scheme!r}, but datasets are read from a folder or from "
            f"{', '.join(SCHEMES)}; copy it to one of these"
        )
    host = urlsplit(root).hostname or ""
    try:
        local = ipaddress.ip_address(host).is_link_local
    except ValueError:  # a name
        local = host in METADATA_HOSTS
    if local and scheme in ("http", "https"):
        raise InputError(
            f"{where} is {host}, where clouds tell a machine its own credentials; give the "
            f"address of the dataset"
        )
