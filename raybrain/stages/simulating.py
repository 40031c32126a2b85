"""``simulate``: a dataset tree on disk whose ceilings are known."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from raybrain import cluster, outputs, places
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
    on_workers = functools.partial(
        cluster.map_tasks, workers=experiment.resources.tasks, description="simulate"
    )
    with places.writing(root) as folder:
        simulation.simulate(
            experiment.simulation,
            subject=experiment.subject,
            root=folder,
            # Workers of other nodes do not see the folder from which files go to a bucket.
            run_tasks=simulation.run_in_turn if places.is_remote(root) else on_workers,
        )
    name = {"nsd": "NSD", "things": "THINGS-fMRI"}[experiment.simulation.layout]
    return Made(f"{experiment.subject} in the layout of {name} under {root}")
