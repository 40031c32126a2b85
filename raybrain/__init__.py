"""raybrain reconstructs the images a person saw from their fMRI.

What a notebook needs is here; each name is imported when it is first used::

    import raybrain

    experiment = raybrain.Experiment.load(raybrain.DEMO, "workspace=workspace")
    results = raybrain.run(experiment)
    results.table                                   # scores, floors, ceiling, intervals
    results.open("reconstructions")                 # an xarray Dataset
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raybrain.api.decoder import Decoder as Decoder
    from raybrain.api.generator import Generator as Generator
    from raybrain.api.labelled import open_store as open_store
    from raybrain.api.running import Results as Results
    from raybrain.api.running import run as run
    from raybrain.config import Experiment as Experiment
    from raybrain.config import InputError as InputError
    from raybrain.evaluation.evaluating import evaluate as evaluate
    from raybrain.evaluation.table import Table as Table
    from raybrain.evaluation.table import load_table as load_table
    from raybrain.shipped import DEMO as DEMO

__version__ = "0.1.0"

_FROM = {
    "DEMO": "raybrain.shipped",
    "Decoder": "raybrain.api.decoder",
    "Experiment": "raybrain.config",
    "Generator": "raybrain.api.generator",
    "InputError": "raybrain.config",
    "Results": "raybrain.api.running",
    "Table": "raybrain.evaluation.table",
    "evaluate": "raybrain.evaluation.evaluating",
    "load_table": "raybrain.evaluation.table",
    "open_store": "raybrain.api.labelled",
    "run": "raybrain.api.running",
}
"""Name -> the module it is imported from when it is first used."""

__all__ = [
    "DEMO",
    "Decoder",
    "Experiment",
    "Generator",
    "InputError",
    "Results",
    "Table",
    "__version__",
    "evaluate",
    "load_table",
    "open_store",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module 'raybrain' has no attribute '{name}'")
    return getattr(importlib.import_module(_FROM[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_FROM})
