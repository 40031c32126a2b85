"""Which workers a stage cannot do without."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raybrain import outputs, seal
from raybrain.cluster import Need

if TYPE_CHECKING:
    from raybrain.config import Experiment

DRAWING = ("features", "reconstruct")


def needs_of(experiment: Experiment, stage: str) -> list[Need]:
    """Return the workers that one stage of the experiment asks for."""
    resources = experiment.resources
    if stage in DRAWING:
        return [Need("resources.generate", resources.generate, together=resources.generate.min)]
    found = [Need("resources.tasks", resources.tasks, shrinks=True)]
    if stage == "train" and outputs.has_networks(experiment):
        found.append(Need("resources.train", resources.train, together=resources.train.min))
    if stage == "evaluate" and experiment.evaluate.rerank:
        found.append(
            Need("resources.generate", resources.generate, together=resources.generate.min)
        )
    if stage == "tune" and experiment.tuning is not None:
        group = experiment.tuning.workers
        found.append(Need("resources.tune", resources.tune, together=group, shrinks=group == 1))
    return found


def needs_ahead(experiment: Experiment) -> list[Need]:
    """Return the workers of every stage of `raybrain.pipeline.run` that is still to be done."""
    stages = dict.fromkeys(
        output.stage
        for output in outputs.in_order(experiment)
        if seal.status(output.folder, wanted=output.seal).state != "sealed"
    )
    return list(dict.fromkeys(need for one in stages for need in needs_of(experiment, one)))
