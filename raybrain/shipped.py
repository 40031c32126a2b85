"""What lies in the package or goes before it: the demo, and the entries of datasets.

No settings are read here, so that `raybrain.config` can use it.
"""

from __future__ import annotations

from pathlib import Path

CATALOG = Path(__file__).parent / "assets" / "data_catalog"
"""In a checkout a link to ``data_catalog/`` at its top, in an installed package a copy."""
DEMO = Path(__file__).parent / "assets" / "experiments" / "demo.yaml"
"""In a checkout behind a link to ``jobs/experiments/``, in an installed package a copy."""
OWN = "data_catalog"
"""Folder of one's own entries where a command is typed; they go before those that are shipped."""


def locate(dataset: str, *, beside: Path) -> str:
    """Return a dataset's name, or the absolute path of an entry of one's own.

    Parameters
    ----------
    dataset : str
        As the experiment names it.
    beside : Path
        Folder of the experiment file, where a relative path is looked for if not here.
    """
    path = Path(dataset).expanduser()
    if not dataset.endswith((".yaml", ".yml")):
        path = Path(OWN) / f"{dataset}.yaml"
        if not path.is_file() or path.resolve() == (CATALOG / path.name).resolve():
            return dataset
    elif not path.is_file() and (beside / path).is_file():
        path = beside / path
    return str(path.absolute())
