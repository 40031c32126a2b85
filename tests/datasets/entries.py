"""The catalog entries that are shipped, changed where a test needs it."""

from __future__ import annotations

from raybrain.catalog import CatalogEntry, load_entry


def make(name: str, **changes: object) -> CatalogEntry:
    """Return a shipped entry without its published counts, which no miniature has."""
    tree = load_entry(name).model_dump()
    return CatalogEntry.model_validate(tree | {"expect": {}} | changes)


def god_entry(**changes: object) -> CatalogEntry:
    return make("god", **({"split": _split("perception", "concept")} | changes))


def deeprecon_entry(**changes: object) -> CatalogEntry:
    return make("deeprecon", **({"split": _split("perception", "concept")} | changes))


def _split(test: str, group: str) -> dict[str, object]:
    return {"test": test, "validation": 0.3, "group": group}


def bold5000_entry(**changes: object) -> CatalogEntry:
    made = {
        "split": _split("repeated", "image"),
        "expect": {"trials_per_run": 4, "runs": {"CSI2": [2, 1, 2]}},
    }
    return make("bold5000", **(made | changes))


def laion_entry(**changes: object) -> CatalogEntry:
    return make("laion", **({"split": _split("tau", "image")} | changes))


def nod_entry(**changes: object) -> CatalogEntry:
    return make("nod", **({"split": _split("categories", "concept")} | changes))
