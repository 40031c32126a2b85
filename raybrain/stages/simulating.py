"""``simulate``: a dataset tree on disk whose ceilings are known."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from raybrain import cluster, outputs, places
from raybrain.stages import Made

if TYPE_CHECKING:
    from raybrain.config import Experiment, Simulation
    from raybrain.outputs import Output
    from raybrain.tracking import Run


def work(experiment: Experiment, output: Output, run: Run) -> Made:
    """Write the simulated subject under the dataset's root."""
    from raybrain import simulation

    assert experiment.simulation is not None
    root, workers = outputs.dataset_root(experiment), experiment.resources.tasks
    write = functools.partial(
        _write, settings=experiment.simulation, subject=experiment.subject, root=root
    )
    if places.is_remote(root):
        # One worker writes it all: others do not see the folder from which files go to a bucket.
        alone = functools.partial(write, run_tasks=simulation.run_in_turn)
        cluster.on_worker(alone, workers=workers, description="simulate")
    else:
        write(
            run_tasks=functools.partial(cluster.map_tasks, workers=workers, description="simulate")
        )
    name = {"nsd": "NSD", "things": "THINGS-fMRI"}[experiment.simulation.layout]
    return Made(f"{experiment.subject} in the layout of {name} under {root}")


def _write(
    *,
    settings: Simulation,
    subject: str,
    root: str,
    run_tasks: Callable[..., list[Any]],
) -> None:
    from raybrain import simulation

    with places.writing(root) as folder:
        simulation.simulate(
            settings,
            subject=subject,
            root=folder,
            run_tasks=run_tasks,
        )
