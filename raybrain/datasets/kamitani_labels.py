"""What the numbers in the Kamitani lab's files mean: a picture's name, synset and number.

ImageNet's picture ``n01518878_14910`` is the number 1518878.014910 (``stimulus_id``): the synset
before the point and six digits of the picture behind it. Tables write it without the zeros at its
end (1518878.01491), so that its digits as text are another picture's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from raybrain.config import InputError
from raybrain.datasets.files import Root
from raybrain.datasets.pictures import stem_of
from raybrain.datasets.synsets import synset_of
from raybrain.datasets.tables import decode_text

FIRST_STIMULUS_ID = 1_000_000
"""Synsets of things have eight digits; a label below this is a number from 1."""
_DIGITS = 6


@dataclass(frozen=True)
class Stimuli:
    """The pictures of a session by their numbers."""

    by_id: Mapping[int, str]
    """stimulus_id in millionths -> name."""
    by_number: Mapping[int, str]
    """Number from 1 -> name."""

    def get(self, value: float) -> str | None:
        """Return the name of a label's picture, None if there is none."""
        if value >= FIRST_STIMULUS_ID:
            return self.by_id.get(_millionths(value))
        return self.by_number.get(int(value)) if value == int(value) else None


def read_stimuli(root: Root, path: str) -> Stimuli:
    """Return the pictures of a table without header: name, stimulus_id, category, number.

    Columns may be left out from the middle: the first is the name, the second the stimulus_id or
    the only number, the last the number from 1.

    Raises
    ------
    InputError
        If a line has no number, or a number has two names.
    """
    name = root.at(path)
    by_id: dict[int, str] = {}
    by_number: dict[int, str] = {}
    for line, text in enumerate(decode_text(root.read(path), name=name).splitlines(), start=1):
        words = [word.strip().strip('"') for word in text.split("\t")]
        if not text.strip():
            continue
        try:
            numbers = [float(word) for word in words[1:]]
        except ValueError:
            numbers = []
        if not numbers or not words[0] or not np.isfinite(numbers).all():
            raise InputError(
                f"{name} has the line {line} '{text.strip()[:60]}'; each must hold a picture's "
                f"name and its numbers, with tabs between"
            )
        picture = stem_of(words[0])
        for found, key in ((by_id, numbers[0]), (by_number, numbers[-1])):
            wanted = found is by_id if key >= FIRST_STIMULUS_ID else found is by_number
            if not wanted or (found is by_number and key != int(key)):
                continue
            number = _millionths(key) if found is by_id else int(key)
            if found.setdefault(number, picture) != picture:
                raise InputError(
                    f"{name} gives the number {key:.6f} to {found[number]} and to {picture}; get "
                    f"the table again"
                )
    if not by_id and not by_number:
        raise InputError(f"{name} lists no picture; get the table again")
    return Stimuli(by_id=by_id, by_number=by_number)


def stimulus_name(value: float) -> str:
    """Return ``n01518878_14910`` for 1518878.014910, and the synset alone for 1518878."""
    whole, image = divmod(_millionths(value), 10**_DIGITS)
    return f"n{whole:08d}_{image}" if image else f"n{whole:08d}"


def concept_of(name: str) -> str:
    """Return the synset of an ImageNet picture, and of any other the name without its number."""
    return synset_of(name) or re.sub(r"[_-]?\d+$", "", name) or name


def is_synset(name: str) -> bool:
    """Return whether a name is a synset alone, no picture of it."""
    return synset_of(name) == name


def _millionths(value: float) -> int:
    return round(value * 10**_DIGITS)
