"""One function per stage: what it needs, what it makes, and the work between, in one tracked run.

Every stage is a verb of the command line, a file in ``jobs/`` and a run in MLflow. A stage whose
output is sealed with the settings of today is skipped; one that was killed resumes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from raybrain import __version__, cluster, outputs, seal, tracking
from raybrain.config import Experiment, InputError, flatten
from raybrain.outputs import Output
from raybrain.stages import Work, say


def plan(experiment: Experiment) -> None:
    """Print where every output stands, and what would run; nothing is written."""
    from raybrain.stages import planning

    print(planning.describe(experiment))


def simulate(experiment: Experiment) -> None:
    """Write the simulated subject that the experiment describes as NSD would ship it."""
    from raybrain.stages import simulating

    output = outputs.simulated(experiment)
    if output is None:
        raise InputError(
            f"experiment '{experiment.name}' has no 'simulation' section, so there is nothing to "
            f"simulate; add one, or start with 'raybrain ingest'"
        )
    _make(experiment, output, simulating.work)


def ingest(experiment: Experiment) -> None:
    """Read the dataset into a sealed Zarr store, one task per scan session."""
    from raybrain.stages import ingesting

    _require(outputs.simulated(experiment))
    _make(experiment, outputs.subject_store(experiment), ingesting.work)


def features(experiment: Experiment) -> None:
    """Encode the stimuli into the generator's latents and prompt embeddings."""
    from raybrain.stages import encoding

    _require(outputs.subject_store(experiment))
    _make(experiment, outputs.features(experiment), encoding.work)


def train(experiment: Experiment) -> None:
    """Fit the decoder of every target on training trials; the test trials stay closed."""
    from raybrain.stages import fitting

    _require(outputs.features(experiment))
    for target, _ in outputs.targets(experiment):
        _make(experiment, outputs.decoder(experiment, target), fitting.work)


def tune(experiment: Experiment) -> None:
    """Search for better settings of the decoders and write the best as an experiment."""
    from raybrain.stages import searching

    output = outputs.tuning(experiment)
    searching.check(experiment)
    _require(outputs.features(experiment))
    _make(experiment, output, searching.work)
    print(Path(output.folder, searching.TABLE).read_text())
    print(f"best     {searching.write_best(experiment, output)}")


def predict(experiment: Experiment) -> None:
    """Decode the test trials, repeats of an image averaged."""
    from raybrain.stages import predicting

    for target, _ in outputs.targets(experiment):
        _require(outputs.decoder(experiment, target))
    _make(experiment, outputs.predictions(experiment), predicting.work)


def reconstruct(experiment: Experiment) -> None:
    """Draw every sample of every test image, from the predictions and from the true targets."""
    from raybrain.stages import drawing

    _require(outputs.predictions(experiment))
    _make(experiment, outputs.reconstructions(experiment), drawing.work)


def evaluate(experiment: Experiment) -> None:
    """Score the reconstructions beside floors and ceiling, and write the gallery."""
    from raybrain.stages import scoring

    _require(outputs.reconstructions(experiment))
    output = outputs.report(experiment)
    _make(experiment, output, scoring.work)
    print(Path(output.folder, scoring.TABLE).read_text())
    print(f"gallery  {Path(output.folder, scoring.GALLERY)}")
    print(f"runs     {tracking.ui_command(experiment.tracking, workspace=experiment.workspace)}")


def run(experiment: Experiment) -> None:
    """Run every stage in order, skipping what is sealed."""
    last = None if experiment.simulation is None else outputs.report(experiment)
    done = last and seal.status(last.folder, wanted=last.seal).state == "sealed"
    with contextlib.nullcontext() if done else cluster.connect(experiment.resources):
        for stage in (simulate, ingest, features, train, predict, reconstruct, evaluate):
            if stage is not simulate or experiment.simulation is not None:
                stage(experiment)


RUN: dict[str, Callable[[Experiment], None]] = {
    "plan": plan,
    "simulate": simulate,
    "ingest": ingest,
    "features": features,
    "tune": tune,
    "train": train,
    "predict": predict,
    "reconstruct": reconstruct,
    "evaluate": evaluate,
    "run": run,
    "demo": run,
}


def _make(experiment: Experiment, output: Output, work: Work) -> None:
    """Bring ``output`` to its sealed state, in one tracked run, unless it is there already."""
    started = time.monotonic()
    before = seal.begin(output.folder, wanted=output.seal, on_change=experiment.on_change)
    if before.state == "sealed":
        say(output.stage, f"sealed already: {output.folder}")
        return
    if before.differences:
        say(output.stage, f"again, because {'; '.join(before.differences)}")
    if before.state == "unfinished":
        say(output.stage, f"resumes {output.folder}")
    with cluster.connect():
        tracker = tracking.open_tracker(experiment.tracking, workspace=experiment.workspace)
        parent = tracker.experiment_run(experiment)
        with tracker.stage(parent, output.stage, settings=flatten(experiment)) as stage_run:
            made = work(experiment, output, stage_run)
            seconds = time.monotonic() - started
            stage_run.log_metrics({"seconds": seconds})
            stage_run.set_tags({"seal": output.seal.digest, "output": output.folder})
            notes = {
                **made.notes,
                "summary": made.summary,
                "raybrain": __version__,
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            seal.finish(output.folder, seal=replace(output.seal, notes=notes))
    say(output.stage, f"{made.summary} ({seconds:.1f} s)")


def _require(output: Output | None) -> None:
    """Raise `InputError` naming the command that makes ``output`` if it is not sealed."""
    if output is None:
        return
    found = seal.status(output.folder, wanted=output.seal)
    if found.state != "sealed":
        detail = f" ({'; '.join(found.differences)})" if found.differences else ""
        raise InputError(
            f"{output.folder} is {found.state}{detail}; "
            f"type 'raybrain {output.stage}' with this experiment, or 'raybrain run' to do all"
        )
