"""Which trials train, validate and test: by name and by hash, never by position."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from raybrain.config import InputError

if TYPE_CHECKING:
    from raybrain.catalog import CatalogEntry


def hash_fraction(name: str, *, salt: str) -> float:
    """Return a number in [0, 1) that depends on the name alone, uniform over names."""
    digest = hashlib.sha256(f"{salt}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def held_out(groups: Iterable[str], *, fraction: float, salt: str = "validation") -> frozenset[str]:
    """Return the groups to hold out.

    A group is held out if the hash of its name is below ``fraction``, so that adding sessions
    moves no group from one side to the other. With few groups none may fall below; then the one
    with the lowest hash is held out.
    """
    place = {group: hash_fraction(group, salt=salt) for group in groups}
    if not place or fraction <= 0:
        return frozenset()
    chosen = [group for group in place if place[group] < fraction]
    return frozenset(chosen or [min(place, key=lambda group: place[group])])


def assign(*, is_test: np.ndarray, group: pd.Series, validation: float) -> np.ndarray:
    """Return 'train', 'validation' or 'test' for every trial.

    Parameters
    ----------
    is_test : (trial,) bool
        Trials of the test set; validation never takes from them.
    group : (trial,) str
        What must not be divided between training and validation.
    validation : float
        Share of the groups outside the test set to hold out.

    Raises
    ------
    InputError
        If nothing is left to train on or to test.
    """
    if is_test.all() or not is_test.any():
        what = "to train on" if is_test.all() else "in the test set"
        raise InputError(
            f"no trial is left {what} among {len(is_test)}; "
            f"use more sessions or another test set (split.test)"
        )
    validating = held_out(group[~is_test], fraction=validation)
    split = np.where(group.isin(validating), "validation", "train").astype(object)
    split[is_test] = "test"
    return split


def check_rule(
    entry: CatalogEntry, what: Literal["test", "group"], *, known: Sequence[str]
) -> None:
    """Raise `InputError` if the entry's split names a rule that its reader does not know.

    Parameters
    ----------
    what
        Which of the split's rules.
    known
        Names, or patterns of names.
    """
    value = getattr(entry.split, what)
    if not any(re.fullmatch(one, value) for one in known):
        raise InputError(
            f"catalog entry {entry.name}: 'split.{what}' cannot be '{value}'; choose from "
            f"{', '.join(known)}"
        )


def trials_of(table: pd.DataFrame, *, split: np.ndarray) -> pd.DataFrame:
    """Return a recording's trials.

    Parameters
    ----------
    table : DataFrame
        Trials in order, with columns image_id, session and run.
    split : (trial,) str
        From `assign`.
    """
    return pd.DataFrame(
        {
            "image_id": table["image_id"],
            "session": table["session"],
            "run": table["run"],
            "repeat": table.groupby("image_id").cumcount(),
            "split": split,
        }
    )


def overlap(
    entry: CatalogEntry, *, image_id: pd.Series, concept: pd.Series, is_test: np.ndarray
) -> str:
    """Return a sentence on what training and test share.

    Parameters
    ----------
    image_id, concept : (trial,) str
        Of every trial; concept is '' where none is known.
    is_test : (trial,) bool

    Raises
    ------
    InputError
        If an image is on both sides.
    """
    both = set(image_id[is_test]) & set(image_id[~is_test])
    if both:
        raise InputError(
            f"the trials of {entry.name} show {min(both)} both in training and in the test; get "
            f"the table of trials again"
        )
    tested, trained = set(concept[is_test]) - {""}, set(concept[~is_test])
    if not tested:
        return "no category is known of the test images, so what training shares with them is not"
    shared = len(tested & trained)
    return f"{shared} of {len(tested)} test categories also occur in training, with other images"


def caption_clusters(captions: Sequence[Sequence[str]], *, count: int, seed: int = 0) -> list[str]:
    """Return the name of the cluster of every image: images of like words share one.

    Words are weighted by TF-IDF over images, reduced to at most 50 dimensions by a truncated
    singular value decomposition and grouped by k-means; a cluster is named by its three heaviest
    words, so that the choice of held-out clusters by name does not depend on the order of images.
    """
    from scipy.cluster.vq import kmeans2
    from scipy.sparse import csr_matrix, diags_array
    from scipy.sparse.linalg import svds

    texts = [re.findall(r"[a-z]{3,}", " ".join(caption).lower()) for caption in captions]
    words = sorted({word for text in texts for word in text} - _STOP_WORDS)
    column = {word: k for k, word in enumerate(words)}
    cells = [
        (row, column[word]) for row, text in enumerate(texts) for word in text if word in column
    ]
    if len(words) < 2 or len(texts) <= count:
        raise InputError(
            f"{len(texts)} images with {len(words)} words in their captions cannot form {count} "
            f"clusters; use another test set (split.test)"
        )
    rows, columns = np.array(cells).T
    counts = csr_matrix((np.ones(len(cells)), (rows, columns)), shape=(len(texts), len(words)))
    counts.sum_duplicates()
    spread = np.bincount(counts.indices, minlength=len(words))
    weighted = counts.log1p() @ diags_array(np.log((1 + len(texts)) / (1 + spread)) + 1)
    norms = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1))).ravel()
    weighted = diags_array(1 / np.maximum(norms, 1e-12)) @ weighted
    rank = min(50, min(weighted.shape) - 1)
    start = np.random.default_rng(seed).standard_normal(min(weighted.shape))
    left, values, _ = svds(weighted, k=rank, v0=start)
    _, label = kmeans2(left * values, count, minit="++", rng=np.random.default_rng(seed))
    names = {}
    for cluster in np.unique(label):
        weight = np.asarray(weighted[label == cluster].sum(axis=0)).ravel()
        names[cluster] = "-".join(words[k] for k in np.argsort(-weight, kind="stable")[:3])
    return [names[cluster] for cluster in label]


_FILLERS = (
    "and are for from has her his into its near next one other out over some that the their them "
    "there this two under very with while who"
)
_STOP_WORDS = frozenset(_FILLERS.split())
