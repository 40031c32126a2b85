"""Folders of reconstructions, as ``raybrain export`` writes them and as anybody may bring them.

A row of the table is a folder of pictures ``IMAGE_ID.png``, or ``IMAGE_ID_SAMPLE.png`` where an
image was drawn several times. A folder that holds folders holds a row in each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from raybrain.config import InputError
from raybrain.datasets.files import RequiredFile, Root
from raybrain.datasets.pictures import ENDINGS, decode, size_of, stem_of
from raybrain.datasets.tables import composed

SAMPLE = re.compile(r"(.+)_(\d{1,6})")
SHOWN = 3
"""Names that a message gives of those it counts."""

Samples = tuple[str, ...]
"""Files of one image, by sample."""


@dataclass(frozen=True)
class DrawnPictures:
    """Which file shows which sample of which image, row by row; nothing is decoded yet."""

    root: Root
    rows: Mapping[str, tuple[Samples, ...]]
    """Row to the files of every image, in the order of the image_ids asked for."""

    @property
    def files(self) -> list[RequiredFile]:
        """All files, as in a data plan."""
        paths = (path for row in self.rows.values() for files in row for path in files)
        return [self.root.required(path) for path in paths]

    def read(self) -> dict[str, np.ndarray]:
        """Return row to uint8 (image, sample, y, x, rgb).

        Raises
        ------
        InputError
            If a picture cannot be read, is not square, or differs in size from others of its row.
        """
        return {name: self._read(files) for name, files in self.rows.items()}

    def _read(self, row: tuple[Samples, ...]) -> np.ndarray:
        first = row[0][0]
        width, height = self._size(first)
        if width != height:
            raise InputError(
                f"{self.root.at(first)} has {width} x {height} pixels, but reconstructions are "
                f"scored as squares; crop or pad them"
            )
        for path in (path for files in row for path in files):
            found = self._size(path)
            if found != (width, height):
                raise InputError(
                    f"{self.root.at(path)} has {found[0]} x {found[1]} pixels, but "
                    f"{self.root.at(first)} has {width} x {height}; bring all to one size"
                )
        return np.stack(
            [
                [decode(self.root.read(path), name=self.root.at(path)) for path in files]
                for files in row
            ]
        )

    def _size(self, path: str) -> tuple[int, int]:
        return size_of(self.root.read(path), name=self.root.at(path))


def file_name(image_id: str) -> str:
    """Return an image_id as the name of a file, in no other folder, and another one for each.

    An id of one's own data may be a path; what is no letter of a file name becomes ``%`` and its
    code, as in addresses.
    """
    return re.sub(r'^\.|[%/\\:*?"<>|\x00-\x1f\x7f]', lambda one: f"%{ord(one[0]):02X}", image_id)


def find_drawn(
    folder: str, *, image_ids: Sequence[str], rows: Sequence[str], system: str
) -> DrawnPictures:
    """Return the picture of every sample of every image, in the rows that the folder has.

    Parameters
    ----------
    folder : str
        A folder or a URL. Its pictures are the row `system`; if it holds folders instead, each is
        the row that it is named after.
    image_ids : sequence of str
        Every image that must have been drawn, and no other. A picture is named after its image as
        `file_name` writes it, or without folders and ending; numbers may lack leading zeros.
    rows : sequence of str
        Names that folders may have.
    system : str
        The row that must be there.

    Raises
    ------
    InputError
        If pictures are missing, belong to no image or could belong to two, or images were drawn
        with different samples.
    """
    root = Root(folder, again="write it again")
    if root.is_local and not Path(folder).is_dir():
        raise InputError(f"there is no folder {folder}; name one that holds pictures")
    found: dict[str, list[str]] = {}
    for path in root.tree(""):
        inner = PurePosixPath(path.lstrip("/"))
        if path.lower().endswith(ENDINGS) and not any(p.startswith(".") for p in inner.parts):
            found.setdefault(str(inner.parent), []).append(str(inner))
    if not found:
        raise InputError(
            f"{folder} holds no pictures ({', '.join(ENDINGS)}); write one for each test image, "
            f"named {file_name(image_ids[0])}.png"
        )
    if list(found) == ["."]:
        found = {system: found["."]}
    unknown = [name for name in found if name not in rows]
    if unknown:
        where = "beside folders" if "." in unknown else f"in its folder {unknown[0]}"
        raise InputError(
            f"{folder} has pictures {where}; put those to be scored into it alone, or into a "
            f"folder '{system}' and others beside it, named {', '.join(rows)}"
        )
    if system not in found:
        raise InputError(
            f"{folder} has the folders {', '.join(found)} but not '{system}', whose pictures are "
            f"to be scored; add it"
        )
    names = _Names.of(image_ids)
    return DrawnPictures(
        root=root,
        rows={
            name: _assigned(found[name], root=root, names=names, image_ids=image_ids)
            for name in rows
            if name in found
        },
    )


@dataclass(frozen=True)
class _Names:
    """What pictures may be called: exactly as `file_name` writes an image, or loosely."""

    exact: Mapping[str, str]
    loose: Mapping[str, set[str]]

    @classmethod
    def of(cls, image_ids: Sequence[str]) -> _Names:
        exact = {composed(file_name(image_id)): image_id for image_id in image_ids}
        loose: dict[str, set[str]] = {}
        for name, image_id in exact.items():
            last = composed(PurePosixPath(image_id).name)
            for one in {name, stem_of(name), last, stem_of(last)}:
                loose.setdefault(_plain(one), set()).add(image_id)
        return cls(exact, loose)

    def owners(self, name: str) -> list[str]:
        """Return the images that a picture of this name may be of."""
        if name in self.exact:
            return [self.exact[name]]
        return sorted(self.loose.get(_plain(name), ()))


def _plain(name: str) -> str:
    return str(int(name)) if name.isascii() and name.isdigit() else name


def _assigned(
    paths: Sequence[str], *, root: Root, names: _Names, image_ids: Sequence[str]
) -> tuple[Samples, ...]:
    """Return the files of every image, by sample."""
    read = {path: _readings(path) for path in paths}
    strange = [
        [path for path, ways in read.items() if not names.owners(ways[way][0])] for way in (0, 1)
    ]
    if not strange[0] and not strange[1]:
        once, several = read[paths[0]]
        raise InputError(
            f"{root.at(paths[0])} could be of image {once[0]}, or sample {several[1]} of image "
            f"{several[0]}; name every picture IMAGE_ID_SAMPLE.png"
        )
    way = int(len(strange[1]) < len(strange[0]))
    if strange[way]:
        raise InputError(
            f"{len(strange[way])} of {len(paths)} pictures in {root.url} are of no test image, "
            f"such as {_listed(strange[way])}; names are IMAGE_ID.png or IMAGE_ID_SAMPLE.png, as "
            f"{file_name(image_ids[0])}.png: rename them, or take them out"
        )
    files: dict[str, dict[int, str]] = {image_id: {} for image_id in image_ids}
    for path, ways in read.items():
        name, sample = ways[way]
        owners = names.owners(name)
        if len(owners) > 1:
            raise InputError(
                f"{root.at(path)} could be of image {owners[0]} or {owners[1]}; name it "
                f"{file_name(owners[0])}.png or {file_name(owners[1])}.png"
            )
        other = files[owners[0]].setdefault(sample, path)
        if other != path:
            raise InputError(
                f"{root.at(other)} and {root.at(path)} are both sample {sample} of image "
                f"{owners[0]}; keep one"
            )
    missing = [image_id for image_id, samples in files.items() if not samples]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(image_ids)} test images have no picture in {root.url}, such "
            f"as {_listed(missing)}; a protocol is about all of them: draw these too"
        )
    wanted = sorted(files[image_ids[0]])
    for image_id, samples in files.items():
        if sorted(samples) != wanted:
            raise InputError(
                f"image {image_id} has the samples {_listed(sorted(samples))} in {root.url}, but "
                f"{image_ids[0]} has {_listed(wanted)}; draw all images equally often"
            )
    return tuple(tuple(files[image_id][number] for number in wanted) for image_id in image_ids)


def _readings(path: str) -> tuple[tuple[str, int], tuple[str, int]]:
    """Return image and sample of a file, if its name is an image's and if it ends in a sample."""
    stem = composed(stem_of(PurePosixPath(path).name))
    match = SAMPLE.fullmatch(stem)
    return (stem, 0), (match[1], int(match[2])) if match else ("", 0)


def _listed(names: Sequence[object]) -> str:
    more = ", ..." if len(names) > SHOWN else ""
    return ", ".join(map(str, names[:SHOWN])) + more
