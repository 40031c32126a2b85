"""One function per stage: what it needs, what it makes, and the work between, in one tracked run.

Every stage is a verb of the command line, a file in ``jobs/`` and a run in MLflow. A stage whose
output is sealed with the settings of today is skipped; one that was killed resumes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybrain import __version__, cluster, config, leases, outputs, places, seal, tracking
from raybrain.config import ClosedForm, Experiment, InputError, flatten
from raybrain.outputs import Output
from raybrain.stages import Work, browsing, checking, describing, said_of, say
from raybrain.stages.needs import held, needs_ahead, needs_of

if TYPE_CHECKING:
    from raybrain.stages.standing import Standing
    from raybrain.stages.sweeping import Unit
    from raybrain.sweeps import Runs


def plan(experiment: Experiment) -> None:
    """Print where every output stands, and what would run; nothing is written."""
    from raybrain.stages import planning

    print(planning.describe(experiment))


def simulate(experiment: Experiment) -> None:
    """Write the simulated subject that the experiment describes as NSD would ship it.

    Raises
    ------
    InputError
        If the experiment has no ``simulation`` section.
    """
    if experiment.simulation is None:
        raise InputError(
            f"experiment '{experiment.name}' has no 'simulation' section, so there is nothing to "
            f"simulate; add one, or start with 'raybrain ingest'"
        )
    for one in outputs.each_subject(experiment):
        made = outputs.simulated(one)
        assert made is not None
        _make(one, made)


def ingest(experiment: Experiment) -> None:
    """Read the dataset into a sealed Zarr store, one task per scan session."""
    for one in outputs.each_subject(experiment):
        _require(outputs.simulated(one))
        _make(one, outputs.subject_store(one))


def features(experiment: Experiment) -> None:
    """Encode the stimuli into the generator's latents and prompt embeddings."""
    for one in outputs.each_subject(experiment):
        _require(outputs.subject_store(one))
        _make(one, outputs.features(one))


def train(experiment: Experiment) -> None:
    """Fit the decoder of every target on training trials; the test trials stay closed."""
    for one in outputs.each_subject(experiment):
        _require(outputs.features(one))
    networks = []
    for target, decode in outputs.targets(experiment):
        output = outputs.decoder(experiment, target)
        if isinstance(decode.decoder, ClosedForm):
            _make(experiment, output)  # takes much memory by itself
        else:
            networks.append(output)
    _make_all(experiment, networks, workers=experiment.resources.train)


def tune(experiment: Experiment) -> None:
    """Search for better settings of decoders or drawing; write the best as an experiment."""
    from raybrain.stages import searching

    output = outputs.tuning(experiment)
    searching.check(experiment)
    _require(outputs.features(experiment))
    if searching.searches_drawing(experiment):
        for target, decode in outputs.targets(experiment):
            if decode.prior is not None or not isinstance(decode.decoder, ClosedForm):
                _require(outputs.decoder(experiment, target))
    _make(experiment, output, searching.work)
    print(places.read_text(f"{output.folder}/{searching.TABLE}"))
    print(f"best     {searching.write_best(experiment, output)}")


def predict(experiment: Experiment) -> None:
    """Decode the test trials, repeats of an image averaged."""
    for target, _ in outputs.targets(experiment):
        _require(outputs.decoder(experiment, target))
    _make(experiment, outputs.predictions(experiment))


def reconstruct(experiment: Experiment) -> None:
    """Draw every sample of every test image, from the predictions and from the true targets."""
    _require(outputs.predictions(experiment))
    _make(experiment, outputs.reconstructions(experiment))


def export(experiment: Experiment, *, form: str = "pictures") -> None:
    """Write every reconstruction as a PNG file, all as tensors, or the decoders as models.

    Parameters
    ----------
    experiment : Experiment
        Whose outputs are exported.
    form : {'pictures', 'tensors', 'models'}
        PNG files, tensors, or decoders with their cards.

    Raises
    ------
    InputError
        If there is no such form, or what is exported has not been made.
    """
    from raybrain.stages import exporting, exporting_models

    forms: dict[str, tuple[Callable[[Experiment], Output], Work]] = {
        "pictures": (outputs.pictures, exporting.work),
        "tensors": (outputs.tensors, exporting.tensors_work),
        "models": (outputs.models, exporting_models.work),
    }
    if form not in forms:
        raise InputError(f"'{form}' is no form of export; choose from {', '.join(forms)}")
    output_of, work = forms[form]
    _require(outputs.reconstructions(experiment))
    if form == "models":
        _require(outputs.report(experiment))  # a card has scores
    output = output_of(experiment)
    _make(experiment, output, work)
    print(f"{form:<8} {output.folder}")


def evaluate(experiment: Experiment, *, images: str | None = None) -> str:
    """Score the reconstructions beside floors and ceiling; return the folder of the report.

    With ``images``, those are scored that a folder holds, whoever drew them.
    """
    from raybrain.stages import scoring

    if images is None:
        _require(outputs.reconstructions(experiment))
        output = outputs.report(experiment)
        _make(experiment, output)
    else:
        output = _evaluate_pictures(experiment, images=images)
    print(places.read_text(f"{output.folder}/{scoring.TABLE}"))
    print(f"gallery  {output.folder}/{scoring.GALLERY}")
    print(f"runs     {browsing.where(experiment)}")
    return output.folder


def _evaluate_pictures(experiment: Experiment, *, images: str) -> Output:
    from raybrain.stages import drawing, scoring_pictures

    _require(outputs.subject_store(experiment))
    found = scoring_pictures.find(experiment, folder=images)
    ceiling = scoring_pictures.ceiling_beside(experiment, found)
    output = outputs.pictures_report(experiment, found, with_ceiling=ceiling is not None)
    permitted = seal.permitted(output.folder, wanted=output.seal, on_change=experiment.on_change)
    # What is wrong with a picture is told before anything is drawn or written.
    drawn = {} if permitted.state == "sealed" else found.read()
    if ceiling is not None and drawn:
        _require(outputs.features(experiment))
        _make(experiment, ceiling, drawing.ceiling_work)
    work = functools.partial(
        scoring_pictures.work, drawn=drawn, source=found.root.url, ceiling=ceiling
    )
    _make(experiment, output, work)
    return output


def run(experiment: Experiment) -> None:
    """Run every stage in order, skipping what is sealed."""
    needs, began = needs_ahead(experiment), time.time()
    with (
        cluster.connect(needs, ahead=True) if needs else contextlib.nullcontext(),
        _recorded(experiment, began=began),
    ):
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


def upgrade(experiment: Experiment) -> None:
    """Bring the database of runs of an older MLflow up to date; a database file is kept as well."""
    print(tracking.upgrade(experiment.tracking, workspace=experiment.workspace))


def browse(experiment: Experiment) -> None:
    """Open the experiment's run in a browser; start MLflow's pages where there is no server."""
    browsing.browse(experiment)


def sweep(runs: Runs) -> None:
    """Run every experiment of a sweep, what they share once, and set them side by side.

    Raises
    ------
    InputError
        If a run fails; the others are compared first.
    """
    from raybrain.stages import contrasting, standing, sweeping

    runs = sweeping.present(runs)
    experiments = [run.experiment for run in runs.runs]
    units = sweeping.units_of(experiments)
    sweeping.check(experiments, units=units)
    needs, began = sweeping.needs(units), time.time()
    names = [one.name for one in experiments]
    first = experiments[0]
    record = tracking.SweepTracked(runs.sweep.name, first.workspace, first.tracking)
    with contextlib.ExitStack() as stack:
        if needs:  # what the cluster can never give is refused before anything is written
            stack.enter_context(cluster.connect(needs, ahead=True))
        stack.enter_context(standing.alone(runs.workspace, name=runs.sweep.name))
        recorded = stack.enter_context(
            tracking.working(
                record,
                settings={},  # those of its runs; a parameter could not change with an axis
                describe=lambda status, _run_id: contrasting.description(runs, status=status),
                started=began,
            )
        )
        if not all(unit.done for unit in units.values()):
            recorded.begin()
        failures = _make_units(units, description="sweep", record=standing.Standing(runs.folder))
        whole, faults = sweeping.summary(names, units=units, failures=failures)
        for line in faults:
            say("failed", line)
        if whole:
            print(contrasting.contrast(runs, whole=whole, recorded=recorded))
        if faults:
            raise InputError(
                f"{len(faults)} of {len(names)} runs of '{runs.sweep.name}' failed, the first is "
                f"{faults[0]}; the others are compared, and the same command tries these again"
            )


def plan_sweep(runs: Runs) -> None:
    """Print what a sweep shares, how far it is and what it may take; nothing is written."""
    from raybrain.stages import sweeping

    print(sweeping.describe(sweeping.present(runs)))


RUN: dict[str, Callable[..., Any]] = {
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
    "open": browse,
    "upgrade": upgrade,
    "demo": run,
}


def _recorded(
    experiment: Experiment, *, began: float | None = None
) -> contextlib.AbstractContextManager[tracking.Work]:
    """Keep the experiment's run open in MLflow, once there is something to do.

    It is closed before Ray is: whoever stops a command may not wait for both.
    """
    page = functools.partial(describing.experiment_page, experiment)
    return tracking.working(
        experiment,
        describe=lambda status, run_id: page(status=status, run_id=run_id),
        started=began,
    )


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
                _make(granted, unit.output)

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


def _make(experiment: Experiment, output: Output, work: Work | None = None) -> None:
    """Bring ``output`` to its sealed state, in one tracked run, unless it is there already.

    By the work of its stage, where no other is given.
    """
    if _stands(experiment, output).state == "sealed":
        return
    # What the cluster cannot give is refused before anything is written or removed.
    with (
        cluster.connect(needs_of(experiment, output.stage)),
        leases.lease(output.folder, waits=functools.partial(say, output.stage)),
    ):
        before = _stands(experiment, output)  # another command may have made it meanwhile
        if before.state != "sealed":
            _work_on(experiment, output, work or WORK[output.stage](), before=before)


def _work_on(experiment: Experiment, output: Output, work: Work, *, before: seal.Status) -> None:
    """Do the work of a stage, record it, and seal what it made."""
    began, started = time.time(), time.monotonic()
    with _recorded(experiment, began=began) as recorded:
        if before.differences:
            say(output.stage, f"again, because {'; '.join(before.differences)}")
        if before.state == "unfinished":
            say(output.stage, f"resumes {output.folder}")
        seal.begin(output.folder, wanted=output.seal, on_change=experiment.on_change)
        tracker, parent = recorded.begin()
        with tracker.stage(
            parent,
            output.stage,
            settings=flatten(experiment),
            title=_title(output),
            started=began,
        ) as stage_run:
            _tell_data(experiment, output, runs=[stage_run, parent])
            with _watched(experiment, stage_run):
                made = work(experiment, output, stage_run)
            seconds = time.monotonic() - started
            stage_run.log_metrics({"seconds": seconds})
            stage_run.set_tags({"seal": output.seal.digest, "output": output.folder})
            stage_run.describe(f"{output.stage}: {made.summary}")
            notes = {
                **made.notes,
                "summary": made.summary,
                "seconds": round(seconds, 3),
                **held(experiment, output),
                "raybrain": __version__,
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            seal.finish(output.folder, seal=replace(output.seal, notes=notes))
    say(output.stage, f"{made.summary} ({seconds:.1f} s)")


def _stands(experiment: Experiment, output: Output) -> seal.Status:
    """Return where ``output`` stands, say so if it is sealed, and raise if it may not be redone."""
    found = seal.permitted(output.folder, wanted=output.seal, on_change=experiment.on_change)
    if found.state == "sealed":
        say(output.stage, f"sealed already: {output.folder}")
    return found


def _title(output: Output) -> str:
    """Return what tells a stage's run from others below the same experiment."""
    name = output.folder.rstrip("/").rpartition("/")[2]
    return f"{output.stage} {name}" if output.stage == "train" else output.stage


def _tell_data(experiment: Experiment, output: Output, *, runs: list[tracking.Run]) -> None:
    """Record which trials the stage sees, with the stage's run and with the experiment's."""
    wanted = {
        "features": False, "train": False, "tune": False, "predict": True, "evaluate": True,
    }  # fmt: skip
    if output.stage in wanted:
        described = describing.parts_of_data(experiment, test=wanted[output.stage])
        if output.stage == "train":
            described += describing.parts_of_others(experiment, Path(output.folder).name)
        for one in runs:
            one.log_datasets(described)


def _watched(experiment: Experiment, run: tracking.Run) -> contextlib.AbstractContextManager[None]:
    """Record what the nodes that work do with CPU, memory, disk, network and GPU."""
    seconds = experiment.tracking.system_metrics
    if seconds is None:
        return contextlib.nullcontext()
    return cluster.watching(
        seconds=seconds,
        on_sample=lambda step, values: run.log_metrics(
            {f"system/{name}": value for name, value in values.items()}, step=step
        ),
    )


def _make_all(experiment: Experiment, wanted: list[Output], *, workers: config.Workers) -> None:
    """Bring several outputs to their sealed state, side by side where the cluster has room."""
    states = [seal.status(one.folder, wanted=one.seal).state for one in wanted]
    if states.count("sealed") >= len(wanted) - 1:
        for output in wanted:
            _make(experiment, output)
        return
    with cluster.connect(), _recorded(experiment):
        at_once = cluster.groups_at_once(len(wanted), size=workers.max, workers=workers)
        # Threads of the driver: what they do is to wait for workers.
        cluster.in_threads(
            [functools.partial(_make, experiment, output) for output in wanted],
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
