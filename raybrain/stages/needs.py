"""Which workers a stage cannot do without."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from raybrain import outputs, seal
from raybrain.cluster import Need
from raybrain.config import ClosedForm

if TYPE_CHECKING:
    from raybrain.config import Experiment, Workers
    from raybrain.outputs import Output

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


def section_of(experiment: Experiment, output: Output) -> str:
    """Return which of the ``resources`` decides how fast one output is made."""
    if output.stage in DRAWING:
        return "generate"
    if output.stage == "train":
        decode = dict(outputs.targets(experiment))[Path(output.folder).name]
        if decode.prior is not None or not isinstance(decode.decoder, ClosedForm):
            return "train"
    return "tasks"


def workers_of(experiment: Experiment, output: Output) -> Workers:
    """Return the workers that make one output."""
    found: Workers = getattr(experiment.resources, section_of(experiment, output))
    return found


def with_workers(experiment: Experiment, output: Output, *, workers: Workers) -> Experiment:
    """Return the experiment with other workers to make one output."""
    changed = {section_of(experiment, output): workers}
    return experiment.model_copy(
        update={"resources": experiment.resources.model_copy(update=changed)}
    )


def held(experiment: Experiment, output: Output) -> dict[str, float]:
    """Return the CPUs and GPUs that an output is made with at most, for its seal."""
    if output.stage not in outputs.RUN_STAGES:
        return {}
    workers = workers_of(experiment, output)
    return {"cpus": workers.max * workers.cpus, "gpus": workers.max * workers.gpus}


def needs_ahead(experiment: Experiment) -> list[Need]:
    """Return the workers of every stage of `raybrain.pipeline.run` that is still to be done."""
    stages = dict.fromkeys(
        output.stage
        for output in outputs.in_order(experiment)
        if seal.status(output.folder, wanted=output.seal).state != "sealed"
    )
    return list(dict.fromkeys(need for one in stages for need in needs_of(experiment, one)))
