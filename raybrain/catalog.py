"""``data_catalog/`` as typed entries: where a dataset is, its ROIs, split, licence and citation."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from raybrain import plugins
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
from raybrain.shipped import CATALOG, OWN, locate
from raybrain.spelling import as_written

__all__ = [
    "CATALOG",
    "OWN",
    "READERS",
    "CatalogEntry",
    "Licence",
    "Roi",
    "Split",
    "absence",
    "check_choice",
    "in_workspace",
    "load_entry",
    "locate",
    "root_of",
]

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
Layout = TypeVar("Layout", bound=Section)
METADATA_HOSTS = ("metadata", "metadata.google.internal", "instance-data")


class Roi(Section):
    """Voxels by atlas and label name, by columns of a voxel table, or as a union of other ROIs."""

    atlas: str | None = None
    """Name of the dataset's own label file."""
    labels: tuple[str, ...] = ()
    """Labels of the atlas; all above 0 when not given."""
    columns: tuple[str, ...] = ()
    """Columns of the voxel table; a voxel belongs where any of them marks it."""
    union: tuple[str, ...] = ()
    """Other ROIs of this entry."""
    published: dict[str, int] = Field(default_factory=dict)
    """Subject -> published number of voxels, printed beside the number found."""
    source: str = ""
    """The atlas or localizer that drew it; a word for the reader, which changes nothing."""

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
    """Share of the training images (or groups) set aside to choose by."""
    group: Literal["image", "concept", "run", "cluster"] = "image"
    """What must not be divided between training and validation."""


class Licence(Section):
    """Terms of use."""

    name: str
    """As its publisher calls it."""
    url: str
    """Where its text is."""
    redistributable: bool
    """Whether stimuli may be copied into reports and MLflow."""


READERS = ("nsd", "things", "haxby", "arrays", "kamitani", "bold5000", "nod", "laion")


def _reader(name: str) -> str:
    known = (*READERS, *plugins.names(plugins.DATASETS))
    if name not in known:
        raise ValueError(f"there is no reader '{name}'; choose from {', '.join(known)}")
    return name


def _counts(expect: dict[str, Any]) -> dict[str, Any]:
    def check(value: Any, at: str) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                check(inner, f"{at}.{name}" if at else str(name))
        elif isinstance(value, list):
            for inner in value:
                check(inner, at)
        elif isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"'{at}' should be a whole number, found {value!r}")

    check(expect, "")
    return expect


class CatalogEntry(Section):
    """One dataset."""

    name: PathPart
    """What experiments call it; the name of the file when not given."""
    title: str
    """For people."""
    reader: Annotated[str, AfterValidator(_reader)]
    """What reads the files: one of `READERS`, or one that another package adds."""
    root: str
    """A folder or URL; ``${NAME}`` is filled in, and a relative one lies in the workspace."""
    get: str = ""
    """How to obtain the data, in one or two sentences."""
    storage: dict[str, Any] = Field(default_factory=dict)
    """Options of the fsspec file system where the root is a URL: anon for a public bucket."""
    layout: dict[str, Any] = Field(default_factory=dict)
    """Choices within the layout, such as betas and space for NSD."""
    subjects: tuple[PathPart, ...]
    """Names as experiments use them."""
    rois: dict[PathPart, Roi]
    """Name -> which voxels."""
    split: Split
    """Which trials are test, and how validation is set aside."""
    expect: Annotated[dict[str, Any], AfterValidator(_counts)] = Field(default_factory=dict)
    """Counts that the reader compares with what it finds: whole numbers or lists of them. Each may
    be given by name, such as by subject; what is not holds for all."""
    licence: Licence
    """Terms under which the data may be used."""
    cite: str
    """What to cite."""

    def expected(self, *names: str) -> int | None:
        """Return a count of ``expect``, by what it may be given by; None if the entry has none.

        Raises
        ------
        InputError
            If it is something else than a whole number.
        """
        found = self._expected(names)
        if found is None or isinstance(found, int):
            return found
        raise self._unexpected(names, "a whole number", found)

    def expected_list(self, *names: str, length: int | None = None) -> tuple[int, ...] | None:
        """Return a list of ``expect``, as `expected` does a count.

        Parameters
        ----------
        *names : str
            Keys into ``expect``, from the outside in; a value that stands higher holds for all
            below it.
        length : int, optional
            How many numbers it has to hold; any number of them when not given.

        Raises
        ------
        InputError
            If it is something else than a list of whole numbers, or of another length.
        """
        found = self._expected(names)
        if found is None:
            return None
        numbers = isinstance(found, list) and all(isinstance(one, int) for one in found)
        if not numbers or length not in (None, len(found)):
            many = "" if length is None else f"{length} "
            raise self._unexpected(names, f"a list of {many}whole numbers", found)
        return tuple(found)

    def _expected(self, names: Sequence[str]) -> Any:
        found: Any = self.expect
        for name in names:
            if not isinstance(found, dict):
                break
            found = found.get(name)
        return found

    def _unexpected(self, names: Sequence[str], wanted: str, found: object) -> InputError:
        return InputError(
            f"catalog entry {self.name}: 'expect.{'.'.join(names)}' should be {wanted}, found "
            f"{found!r}; mend the entry"
        )

    def layout_as(self, schema: type[Layout]) -> Layout:
        """Return ``layout`` as what a reader makes of it, its defaults filled in.

        Raises
        ------
        InputError
            If a choice does not exist or a value does not fit.
        """
        return validate(self.layout, schema=schema, source=f"layout of catalog entry {self.name}")


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
    about = path.stat()
    return _read_entry(path, (about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns))


@functools.lru_cache(maxsize=64)
def _read_entry(path: Path, _version: tuple[int, ...]) -> CatalogEntry:
    """Read an entry once for each version of its file: every output's seal asks for it."""
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


def absence(entry: CatalogEntry, *, workspace: str) -> str:
    """Return why a dataset cannot be here, or nothing: a variable that is not set, or no folder.

    Raises
    ------
    InputError
        As `root_of`, for a URL.
    """
    try:
        fill_environment(entry.root)
    except InputError as error:
        return str(error)
    root = root_of(entry, workspace=workspace)
    return "" if "://" in root or Path(root).is_dir() else f"there is no folder {root}"


def in_workspace(entry: CatalogEntry) -> bool:
    """Return whether a dataset lies under the workspace, where simulated ones are written."""
    elsewhere = any(mark in entry.root for mark in ("$", "://", "::", "~"))
    return not elsewhere and not Path(entry.root).is_absolute()


def check_choice(entry: CatalogEntry, *, subject: str, rois: tuple[str, ...]) -> None:
    """Refuse a subject or ROI that the entry does not have.

    Raises
    ------
    InputError
        If the entry has no such subject or ROI.
    """
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
