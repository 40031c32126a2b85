"""What WordNet's synsets are called, as ImageNet lists it: ``n01440764`` is a tench."""

from __future__ import annotations

import re
from collections.abc import Mapping

from raybrain.datasets.files import Root
from raybrain.datasets.tables import decode_text


def read_words(root: Root, path: str) -> dict[str, str]:
    """Return synset -> words of ImageNet's ``words.txt``; nothing if there is no such file.

    A line is the synset, a tab or blanks, and its words with commas between. Lines of another form
    are left out.
    """
    if not root.exists(path):
        return {}
    found = {}
    for line in decode_text(root.read(path), name=root.at(path)).splitlines():
        match = re.fullmatch(r"\s*(n\d{8})\s+(\S.*?)\s*", line)
        if match:
            found[match.group(1)] = match.group(2)
    return found


def synset_of(name: str) -> str:
    """Return the synset that an ImageNet picture's name begins with, '' for any other name."""
    found = re.match(r"n\d{8}(?=_|$)", name)
    return found.group() if found else ""


def caption_of(concept: str, *, words: Mapping[str, str]) -> tuple[str, ...]:
    """Return the text of a synset, or a name with blanks where it has none."""
    return (words.get(concept) or concept.replace("_", " ").strip() or concept,)
