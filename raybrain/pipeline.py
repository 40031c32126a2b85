"""One function per stage: what it needs, what it makes, and the work between, in one tracked run.

Every stage is a verb of the command line, a file in ``jobs/`` and a run in MLflow. A stage whose
output is sealed with the settings of today is skipped; one that was killed resumes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from raybrain import __version__, cluster, config, outputs, places, seal, tracking
from raybrain.config import Experiment, InputError, flatten
from raybrain.outputs import Output
from raybrain.stages import Work, checking, said_of, say
from raybrain.stages.needs import held, needs_ahead, needs_of

_naming = threading.Lock()

if TYPE_CHECKING:
    from raybrain.stages.standing import Standing
    from raybrain.stages.sweeping import Unit
    from raybrain.sweeps import Runs


def plan(experiment: Experiment) -> None:
    """Print where every output stands, and what would run; nothing is written."""
    from raybrain.stages import planning

    print(planning.describe(experiment))


def simulate(experiment: Experiment) -> None:
    """Write the simulated subject that the experiment describes as NSD would ship it."""
    from raybrain.stages import simulating

    if experiment.simulation is None:
        raise InputError(
            f"experiment '{experiment.name}' has no 'simulation' section, so there is nothing to "
            f"simulate; add one, or start with 'raybrain ingest'"
        )
    for one in outputs.each_subject(experiment):
        made = outputs.simulated(one)
        assert made is not None
        _make(one, made, simulating.work)


def ingest(experiment: Experiment) -> None:
    """Read the dataset into a sealed Zarr store, one task per scan session."""
    from raybrain.stages import ingesting

    for one in outputs.each_subject(experiment):
        _require(outputs.simulated(one))
        _make(one, outputs.subject_store(one), ingesting.work)


def features(experiment: Experiment) -> None:
    """Encode the stimuli into the generator's latents and prompt embeddings."""
    from raybrain.stages import encoding

    for one in outputs.each_subject(experiment):
        _require(outputs.subject_store(one))
        _make(one, outputs.features(one), encoding.work)


def train(experiment: Experiment) -> None:
    """Fit the decoder of every target on training trials; the test trials stay closed."""
    from raybrain.stages import fitting

    for one in outputs.each_subject(experiment):
        _require(outputs.features(one))
    networks = []
    for target, decode in outputs.targets(experiment):
        output = outputs.decoder(experiment, target)
        if isinstance(decode.decoder, outputs.CLOSED_FORM):
            _make(experiment, output, fitting.work)  # takes much memory by itself
        else:
            networks.append(output)
    _make_all(experiment, networks, fitting.work, workers=experiment.resources.train)


def tune(experiment: Experiment) -> None:
    """Search for better settings of decoders or drawing; write the best as an experiment."""
    from raybrain.stages import searching

    output = outputs.tuning(experiment)
    searching.check(experiment)
    _require(outputs.features(experiment))
    if searching.searches_drawing(experiment):
        for target, decode in outputs.targets(experiment):
            if decode.prior is not None or not isinstance(decode.decoder, outputs.CLOSED_FORM):
                _require(outputs.decoder(experiment, target))
    _make(experiment, output, searching.work)
    print(places.read_text(f"{output.folder}/{searching.TABLE}"))
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


def export(experiment: Experiment) -> None:
    """Write every reconstruction as a PNG file."""
    from raybrain.stages import exporting

    _require(outputs.reconstructions(experiment))
    output = outputs.pictures(experiment)
    _make(experiment, output, exporting.work)
    print(f"pictures {output.folder}")


def evaluate(experiment: Experiment) -> None:
    """Score the reconstructions beside floors and ceiling, and write the gallery."""
    from raybrain.stages import scoring

    _require(outputs.reconstructions(experiment))
    output = outputs.report(experiment)
    _make(experiment, output, scoring.work)
    print(places.read_text(f"{output.folder}/{scoring.TABLE}"))
    print(f"gallery  {output.folder}/{scoring.GALLERY}")
    print(f"runs     {tracking.ui_command(experiment.tracking, workspace=experiment.workspace)}")


def run(experiment: Experiment) -> None:
    """Run every stage in order, skipping what is sealed."""
    needs = needs_ahead(experiment)
    with cluster.connect(needs, ahead=True) if needs else contextlib.nullcontext():
        for stage in outputs.RUN_STAGES:
            if stage != "simulate" or experiment.simulation is not None:
                RUN[stage](experiment)
            if stage == "ingest" and needs:
                checking.check(experiment, stage="run")  # more is known of the data now


def ablate(experiment: Experiment) -> None:
    """Run the experiment without each ROI and with each alone, and compare what they gain."""
    from raybrain.stages import ablating, comparing, sweeping

    experiments = [experiment, *ablating.variants(experiment)]
    units = sweeping.units_of(experiments)
    sweeping.check(experiments, units=units)
    for error in _make_units(units, description="ablate").values():
        raise error
    folders = [outputs.run_folder(one) for one in experiments]
    print(comparing.compare([*folders, f"{comparing.OUT}{folders[0]}/ablation"]))
    print(f"table    {folders[0]}/ablation/{comparing.FILE}")


def sweep(runs: Runs) -> None:
    """Run every experiment of a sweep, what they share once, and set them side by side."""
    from raybrain.stages import contrasting, standing, sweeping

    experiments = [run.experiment for run in runs.runs]
    units = sweeping.units_of(experiments)
    sweeping.check(experiments, units=units)
    needs = sweeping.needs(units)
    names = [one.name for one in experiments]
    with contextlib.ExitStack() as stack:
        if needs:  # what the cluster can never give is refused before anything is written
            stack.enter_context(cluster.connect(needs, ahead=True))
        stack.enter_context(standing.alone(runs.workspace, name=runs.sweep.name))
        failures = _make_units(units, description="sweep", record=standing.Standing(runs.folder))
        whole, faults = sweeping.summary(names, units=units, failures=failures)
        for line in faults:
            say("failed", line)
        if whole:
            print(contrasting.contrast(runs, whole=whole))
    if faults:
        raise InputError(
            f"{len(faults)} of {len(names)} runs of '{runs.sweep.name}' failed, the first is "
            f"{faults[0]}; the others are compared, and the same command tries these again"
        )


def plan_sweep(runs: Runs) -> None:
    """Print what a sweep shares, how far it is and what it may take; nothing is written."""
    from raybrain.stages import sweeping

    print(sweeping.describe(runs))


RUN: dict[str, Callable[[Experiment], None]] = {
    "plan": plan,
    "simulate": simulate,
    "ingest": ingest,
    "features": features,
    "tune": tune,
    "train": train,
    "predict": predict,
    "reconstruct": reconstruct,
    "export": export,
    "evaluate": evaluate,
    "run": run,
    "ablate": ablate,
    "demo": run,
}


def _make_units(
    units: Mapping[str, Unit], *, description: str, record: Standing | None = None
) -> dict[str, BaseException]:
    """Make what is not there yet, side by side as resources allow; return what failed."""
    from raybrain.stages import sweeping
    from raybrain.stages.needs import with_workers, workers_of

    first = sweeping.first_run(units)

    def step(folder: str, unit: Unit) -> cluster.Step:
        def make(workers: config.Workers) -> None:
            with said_of(unit.told):
                granted = with_workers(unit.experiment, unit.output, workers=workers)
                _make(granted, unit.output, WORK[unit.output.stage]())

        return cluster.Step(
            key=folder,
            make=make,
            workers=workers_of(unit.experiment, unit.output),
            after=unit.after,
            first=first in unit.runs,
            in_driver=unit.output.stage == "evaluate",
        )

    def change(folder: str, state: cluster.State, error: BaseException | None) -> None:
        if record is not None:
            record.change(units[folder].output, state, error)

    steps = [step(folder, unit) for folder, unit in units.items() if not unit.done]
    return cluster.run_steps(steps, description=description, on_change=change) if steps else {}


def _work(stage: str) -> Work:
    """Return what does the work of a stage."""
    work: Work = importlib.import_module(f"raybrain.stages.{stage}").work
    return work


WORK: dict[str, Callable[[], Work]] = {
    stage: functools.partial(_work, module)
    for stage, module in (
        ("simulate", "simulating"),
        ("ingest", "ingesting"),
        ("features", "encoding"),
        ("train", "fitting"),
        ("predict", "predicting"),
        ("reconstruct", "drawing"),
        ("evaluate", "scoring"),
    )
}
"""Stage to the work of its module, which is imported when it is wanted."""


def _make(experiment: Experiment, output: Output, work: Work) -> None:
    """Bring ``output`` to its sealed state, in one tracked run, unless it is there already."""
    started = time.monotonic()
    change = experiment.on_change
    before = seal.permitted(output.folder, wanted=output.seal, on_change=change)
    if before.state == "sealed":
        say(output.stage, f"sealed already: {output.folder}")
        return
    # What the cluster cannot give is refused before anything is written or removed.
    with cluster.connect(needs_of(experiment, output.stage)):
        if before.differences:
            say(output.stage, f"again, because {'; '.join(before.differences)}")
        if before.state == "unfinished":
            say(output.stage, f"resumes {output.folder}")
        seal.begin(output.folder, wanted=output.seal, on_change=change)
        with _naming:  # outputs of one experiment may be made in several threads
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
                "seconds": round(seconds, 3),
                **held(experiment, output),
                "raybrain": __version__,
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            entry = outputs.dataset_entry(experiment)
            stage_run.log_dataset(
                f"{entry.name}/{experiment.subject}",
                digest=outputs.subject_store(experiment).seal.digest,
                source=outputs.dataset_root(experiment),
            )
            seal.finish(output.folder, seal=replace(output.seal, notes=notes))
    say(output.stage, f"{made.summary} ({seconds:.1f} s)")


def _make_all(
    experiment: Experiment, wanted: list[Output], work: Work, *, workers: config.Workers
) -> None:
    """Bring several outputs to their sealed state, side by side where the cluster has room."""
    states = [seal.status(one.folder, wanted=one.seal).state for one in wanted]
    if states.count("sealed") >= len(wanted) - 1:
        for output in wanted:
            _make(experiment, output, work)
        return
    with cluster.connect():
        at_once = cluster.groups_at_once(len(wanted), size=workers.max, workers=workers)
        # Threads of the driver: what they do is to wait for workers.
        cluster.in_threads(
            [functools.partial(_make, experiment, output, work) for output in wanted],
            at_once=at_once,
        )


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
