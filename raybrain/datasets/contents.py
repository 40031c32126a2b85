"""The files that ingest reads, and one digest of what they hold.

What lies beside them, such as a ``Thumbs.db``, the copy of an editor or a hidden file, is not read
and does not count.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import fsspec

from raybrain.datasets import reader_of
from raybrain.datasets.files import RequiredFile, Root
from raybrain.datasets.pictures import ENDINGS, names_of
from raybrain.datasets.tables import composed
from raybrain.seal import digest_of

if TYPE_CHECKING:
    from raybrain.catalog import CatalogEntry
    from raybrain.config import Ingest

ZARR_NAMES = re.compile(r"zarr\.json|\.z(array|attrs|group|metadata)|c|(c\.)?\d+(\.\d+)*")
"""What Zarr itself writes: descriptions, and chunks named by their place."""
VERSIONS = ("ETag", "etag", "md5Hash", "crc32c", "content_md5")
"""What stores of objects say of the content, by the name they give it."""
TIMES = ("LastModified", "last_modified", "mtime", "modified", "updated", "created")


def required_files(
    entry: CatalogEntry, *, root: str, subject: str, settings: Ingest
) -> list[RequiredFile]:
    """Return every file that ingest of this subject reads, present or not."""
    found: list[RequiredFile] = reader_of(entry).required_files(
        entry, root=root, subject=subject, settings=settings
    )
    return found


def picture_folder(
    place: Root, folder: str, *, shown: Collection[str] | None = None
) -> RequiredFile:
    """Return a folder of pictures as an entry of the data plan.

    Parameters
    ----------
    place : Root
    folder : str
        Relative to the root.
    shown : collection of str, optional
        Names of the pictures that are read; all when the table that tells is not there.
    """
    names = None if shown is None else set(map(composed, shown))
    return _folder(
        place,
        folder,
        keep=lambda path: (
            path.suffix.lower() in ENDINGS
            and not any(part.startswith(".") for part in path.parts)
            and (names is None or not names.isdisjoint(names_of(path)))
        ),
    )


def zarr_folder(place: Root, folder: str) -> RequiredFile:
    """Return a folder that is a Zarr array as an entry of the data plan."""
    return _folder(
        place,
        folder,
        keep=lambda path: (
            ZARR_NAMES.fullmatch(path.name) is not None
            and not any(part.startswith(".") for part in path.parent.parts)
        ),
    )


def digest_of_contents(
    files: Sequence[RequiredFile],
    *,
    root: Root,
    digests: Callable[[list[Path]], list[str]],
) -> str | None:
    """Return a digest of the names and contents of the files that are present, None if none is.

    Parameters
    ----------
    files : sequence of RequiredFile
    root : Root
        Of a store of objects only what it says of its content is read.
    digests : callable
        Local files -> a digest of each.
    """
    paths = sorted(part for file in files if file.present for part in file.parts or (file.path,))
    if not paths:
        return None
    if root.is_local:
        words = digests([Path(root.at(path)) for path in paths])
    else:
        words = [_version(found) for found in _described(files, root=root)]
    return digest_of(list(zip(paths, words, strict=True)))


def _folder(place: Root, folder: str, *, keep: Callable[[PurePosixPath], bool]) -> RequiredFile:
    sizes = {
        path: size
        for path, size in place.tree(folder).items()
        if keep(PurePosixPath(path).relative_to(folder))
    }
    return RequiredFile(
        path=folder, bytes=sum(sizes.values()) or None, present=bool(sizes), parts=tuple(sizes)
    )


def _described(files: Sequence[RequiredFile], *, root: Root) -> list[Mapping[str, Any]]:
    """Return what a store says of every file that is present, in the order of their paths."""
    found: dict[str, Mapping[str, Any]] = {}
    for file in (one for one in files if one.present):
        system, where = fsspec.core.url_to_fs(root.at(file.path), **root.storage)
        if not file.parts:
            found[file.path] = system.info(where)
            continue
        cut = len(where) - len(file.path)
        listed = {str(name)[cut:]: entry for name, entry in system.find(where, detail=True).items()}
        found |= {part: listed[part] for part in file.parts}
    return [found[path] for path in sorted(found)]


def _version(described: Mapping[str, Any]) -> str:
    words = [name for name in VERSIONS if described.get(name)][:1] or list(TIMES)
    return digest_of([described["size"], *(described.get(word) for word in words)])
