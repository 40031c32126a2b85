"""What other packages add, found by their entry points and loaded when it is named.

A package says in its ``pyproject.toml``::

    [project.entry-points."raybrain.decoders"]
    low_rank = "my_package.decoder:LowRank"

and ``kind: low_rank`` is a decoder of every experiment. ``raybrain.datasets`` are readers,
``raybrain.targets`` what can be decoded, ``raybrain.generators`` what draws and
``raybrain.metrics`` columns of the table. What the package itself has goes first.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

DECODERS = "raybrain.decoders"
"""A subclass of `raybrain.config.OtherNetwork`, by its ``kind``."""
DATASETS = "raybrain.datasets"
"""A module, or anything else, with ``open_recording`` and ``required_files``, by its ``reader``."""
TARGETS = "raybrain.targets"
"""A module, or anything else, with ``SHAPE`` and ``encode``, by its name under ``decode``."""
GENERATORS = "raybrain.generators"
"""A function that returns the folder of a checkpoint, by its name as ``generator.checkpoint``."""
METRICS = "raybrain.metrics"
"""A `raybrain.evaluation.Metric` with a function, by its name."""


class BrokenPluginError(Exception):
    """What another package offers cannot be used; the message is one sentence with a remedy."""


def names(group: str) -> list[str]:
    """Return the names that installed packages offer in a group, in alphabetical order."""
    return sorted(_found(group))


def load(group: str, name: str) -> Any:
    """Return what an installed package offers under a name.

    Raises
    ------
    BrokenPluginError
        If it cannot be imported, or two packages offer the name.
    KeyError
        If none offers it.
    """
    offered = _found(group)[name]
    if len(offered) > 1:
        whose = " and ".join(sorted(_package(one) for one in offered))
        raise BrokenPluginError(f"'{name}' is offered by {whose}; uninstall one of them")
    try:
        return offered[0].load()
    except Exception as error:  # the code of somebody else may raise anything
        raise BrokenPluginError(
            f"'{name}' of {_package(offered[0])} cannot be imported "
            f"({type(error).__name__}: {error}); mend or uninstall it"
        ) from error


def version(group: str, name: str) -> str:
    """Return the package and version that offers a name, as ``package 1.0``."""
    return _package(_found(group)[name][0])


@lru_cache
def _found(group: str) -> dict[str, list[EntryPoint]]:
    found: dict[str, dict[str, EntryPoint]] = {}
    for one in entry_points(group=group):
        # A folder that is twice on the path offers the same twice.
        found.setdefault(one.name, {})[f"{_package(one)} {one.value}"] = one
    return {name: list(offers.values()) for name, offers in found.items()}


def _package(one: EntryPoint) -> str:
    return f"{one.dist.name} {one.dist.version}" if one.dist else one.value
