"""``simulate``: a dataset tree on disk whose ceilings are known."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from raybrain import cluster, outputs
from raybrain.stages import Made

if TYPE_CHECKING:
    from raybrain.config import Experiment
    from raybrain.outputs import Output
    from raybrain.tracking import Run


def work(experiment: Experiment, output: Output, run: Run) -> Made:
    """Write the simulated subject under the dataset's root."""
    from raybrain import simulation

    assert experiment.simulation is not None
    root = outputs.dataset_root(experiment)
    simulation.simulate(
        experiment.simulation,
        subject=experiment.subject,
        root=Path(root),
        run_tasks=functools.partial(
            cluster.map_tasks, workers=experiment.resources.tasks, description="simulate"
        ),
    )
    name = {"nsd": "NSD", "things": "THINGS-fMRI"}[experiment.simulation.layout]
    return Made(f"{experiment.subject} in the layout of {name} under {root}")
