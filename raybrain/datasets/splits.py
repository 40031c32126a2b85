"""Which trials train, validate and test: by name and by hash, never by position."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import pandas as pd

from raybrain.config import InputError


def hash_fraction(name: str, *, salt: str = "validation") -> float:
    """Return a number in [0, 1) that depends on the name alone, uniform over names."""
    digest = hashlib.sha256(f"{salt}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def validation_groups(groups: Iterable[str], *, fraction: float) -> frozenset[str]:
    """Return the groups held out for validation.

    A group is held out if the hash of its name is below ``fraction``, so that adding sessions
    moves no group from one side to the other. With few groups none may fall below; then the one
    with the lowest hash is held out.
    """
    ranked = sorted(set(groups), key=hash_fraction)
    if not ranked or fraction <= 0:
        return frozenset()
    chosen = [group for group in ranked if hash_fraction(group) < fraction]
    return frozenset(chosen or ranked[:1])


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
    held_out = validation_groups(group[~is_test], fraction=validation)
    split = np.where(group.isin(held_out), "validation", "train").astype(object)
    split[is_test] = "test"
    return split
