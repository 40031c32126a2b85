"""``sweep``: what several runs need, each of it once, and where it stands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from raybrain import catalog, outputs, seal
from raybrain.config import InputError
from raybrain.stages import STAGE_COLUMN, checking, extent, say, standing
from raybrain.stages.needs import needs_of
from raybrain.stages.planning import told_bytes

if TYPE_CHECKING:
    from raybrain.cluster import Need
    from raybrain.config import Experiment
    from raybrain.outputs import Output
    from raybrain.sweeps import Runs

PER_SUBJECT = ("simulate", "ingest", "features")
LONGEST_LIST = 200
"""Runs that a plan lists one by one."""


@dataclass
class Unit:
    """One output of one or several runs."""

    output: Output
    experiment: Experiment
    """Of the first run that needs it."""
    state: seal.State
    after: frozenset[str] = frozenset()
    """Folders of what it is made from."""
    runs: list[str] = field(default_factory=list)

    @property
    def told(self) -> str:
        """Whose it is, in a few words."""
        others = len(self.runs) - 1
        return f"{self.runs[0]}{f' and {others} more' if others else ''}"

    @property
    def done(self) -> bool:
        """Whether it is there as it is wanted."""
        return self.state == "sealed"


def present(runs: Runs) -> Runs:
    """Return the runs whose datasets are here and say which are left out, where the sweep skips.

    Raises
    ------
    InputError
        If none is left.
    """
    if runs.sweep.absent != "skip":
        return runs
    left_out: dict[str, str] = {}
    kept = []
    for run in runs.runs:
        absent = _absent(run.experiment)
        if absent:
            left_out.setdefault(*absent)
        else:
            kept.append(run)
    for dataset, why in left_out.items():
        say("skipped", f"{dataset}: {why}")
    if not kept:
        raise InputError(
            f"none of the datasets of '{runs.sweep.name}' is here, the first is missing because "
            f"{next(iter(left_out.values()))}"
        )
    return replace(runs, runs=tuple(kept))


def _absent(experiment: Experiment) -> tuple[str, str] | None:
    """Return the first dataset that is not here, of those the experiment needs, and why."""
    for one in outputs.each_subject(experiment):
        if one.simulation is None:
            entry = catalog.load_entry(one.dataset)
            why = catalog.absence(entry, workspace=one.workspace)
            if why and one.dataset == experiment.dataset:
                return one.dataset, why
            if why:
                return f"{experiment.dataset} with {outputs.subject_name(experiment, one)}", why
    return None


def units_of(experiments: Sequence[Experiment]) -> dict[str, Unit]:
    """Return what the experiments need, by folder: what several need is one unit.

    Raises
    ------
    InputError
        If two of them want the same folder made with different settings.
    """
    found: dict[str, Unit] = {}
    roots: dict[str, str] = {}
    for experiment in experiments:
        before: list[str] = []
        for stage in outputs.RUN_STAGES:
            made = outputs.of_stage(experiment, stage)
            for place, output in enumerate(made):
                unit = found.get(output.folder)
                if unit is None:
                    after = _needed(stage, place, before=before)
                    if stage == "simulate":  # subjects share the stimuli, which the first writes
                        root = outputs.dataset_root(outputs.each_subject(experiment)[place])
                        after = {roots[root]} if root in roots else set()
                        roots[root] = output.folder
                    unit = found[output.folder] = Unit(
                        output,
                        outputs.each_subject(experiment)[place]
                        if stage in PER_SUBJECT
                        else experiment,
                        seal.status(output.folder, wanted=output.seal).state,
                        frozenset(after),
                    )
                _check_same(unit, output, run=experiment.name)
                unit.runs.append(experiment.name)
            before = [output.folder for output in made] or before
    return found


def _needed(stage: str, place: int, *, before: Sequence[str]) -> set[str]:
    """Return what the output at a place of its stage is made from, of what the stage before made.

    Up to the features every subject goes its own way.
    """
    if not before:
        return set()
    return {before[place]} if stage in PER_SUBJECT else set(before)


def _check_same(unit: Unit, output: Output, *, run: str) -> None:
    if unit.output.seal.digest != output.seal.digest:
        differ = "; ".join(seal.differences(found=unit.output.seal, wanted=output.seal))
        raise InputError(
            f"the runs '{unit.runs[0]}' and '{run}' both make {output.folder}, each with other "
            f"settings ({differ}); let them have the same, or another dataset each"
        )


def check(experiments: Sequence[Experiment], *, units: Mapping[str, Unit]) -> None:
    """Raise one sentence about the first thing that is known to fail in runs still to be done."""
    for unit in units.values():
        if not unit.done:
            seal.permitted(
                unit.output.folder, wanted=unit.output.seal, on_change=unit.experiment.on_change
            )
    undone = {run for unit in units.values() if not unit.done for run in unit.runs}
    for experiment in experiments:
        if experiment.name in undone:
            try:
                checking.check(experiment, stage="run")
            except InputError as error:
                raise InputError(f"{error} (run '{experiment.name}')") from None
    workspace = experiments[0].workspace
    if "://" not in workspace:
        checking.check_disk(
            workspace,
            planned=_bytes_to_write(units),
            folders=[unit.output.folder for unit in units.values() if not unit.done],
        )


def needs(units: Mapping[str, Unit]) -> list[Need]:
    """Return the workers that what is still to be done asks for."""
    found = [
        need
        for unit in units.values()
        if not unit.done
        for need in needs_of(unit.experiment, unit.output.stage)
    ]
    return list(dict.fromkeys(found))


def _bytes_to_write(units: Mapping[str, Unit]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for unit in units.values():
        if not unit.done:
            stage = unit.output.stage
            total[stage] += extent.planned_bytes(unit.experiment, stage)
    return dict(total)


def describe(runs: Runs) -> str:
    """Return what a sweep shares, how far it is and what it may take, for a console."""
    experiments = [run.experiment for run in runs.runs]
    units = units_of(experiments)
    states = states_of(runs, units=units)
    axes = " x ".join(f"{len(labels)} {axis}" for axis, labels in runs.axes.items())
    lines = [
        f"{'sweep':<{STAGE_COLUMN}}{runs.sweep.name}: {len(experiments)} runs ({axes})",
        f"{'shared':<{STAGE_COLUMN}}{_shared(units)}",
        "",
        f"{'stage':<{STAGE_COLUMN}}{'units':>6}{'done':>6}{'running':>9}{'failed':>8}{'to do':>7}"
        f"{'to write':>11}{'to take':>22}",
    ]
    bytes_of, hours = _bytes_to_write(units), _hours(units)
    for stage in outputs.RUN_STAGES:
        here = [folder for folder, unit in units.items() if unit.output.stage == stage]
        if not here:
            continue
        count = Counter(states[folder] for folder in here)
        waiting = len(here) - sum(count[one] for one in ("done", "running", "failed"))
        lines.append(
            f"{stage:<{STAGE_COLUMN}}{len(here):>6}{count['done']:>6}{count['running']:>9}"
            f"{count['failed']:>8}{waiting:>7}"
            f"{told_bytes(bytes_of.get(stage, 0)) if bytes_of.get(stage) else '':>11}"
            f"{hours.get(stage, ''):>22}"
        )
    lines.append("")
    errors = standing.units_of(runs.folder)
    for experiment in experiments[:LONGEST_LIST]:
        state = _state_of_run(experiment.name, units=units, states=states, errors=errors)
        lines.append(
            f"{state.partition(' ')[0]:<{STAGE_COLUMN}}{experiment.name}{state.partition(' ')[2]}"
        )
    if len(experiments) > LONGEST_LIST:
        lines.append(f"{'':<{STAGE_COLUMN}}and {len(experiments) - LONGEST_LIST} more")
    left = [unit for unit in units.values() if not unit.done]
    then = f"raybrain sweep makes {len(left)} units" if left else "all is done"
    lines.append(f"{'next':<{STAGE_COLUMN}}{then}")
    return "\n".join(lines)


def states_of(runs: Runs, *, units: Mapping[str, Unit]) -> dict[str, str]:
    """Return done, running, failed, interrupted or to do, by folder of every unit."""
    recorded = standing.units_of(runs.folder)
    alive = standing.under_way(runs.workspace, name=runs.sweep.name)
    found = {}
    for folder, unit in units.items():
        last = recorded.get(folder, {}).get("state")
        if unit.done:
            found[folder] = "done"
        elif last == "running":
            found[folder] = "running" if alive else "interrupted"
        else:
            found[folder] = "failed" if last == "failed" else "to do"
    return found


def _state_of_run(
    run: str,
    *,
    units: Mapping[str, Unit],
    states: Mapping[str, str],
    errors: Mapping[str, Mapping[str, str]],
) -> str:
    mine = [folder for folder, unit in units.items() if run in unit.runs]
    for state in ("failed", "running", "interrupted"):
        for folder in mine:
            if states[folder] == state:
                said = errors.get(folder, {}).get("error", "")
                what = f" in {units[folder].output.stage}"
                return f"{state} {what}{f': {said}' if said else ''}"
    if all(states[folder] == "done" for folder in mine):
        return "done "
    following = next(units[folder].output.stage for folder in mine if states[folder] == "to do")
    return f"to-do  (next: {following})"


def _shared(units: Mapping[str, Unit]) -> str:
    """Return how much less there is to make than if every run made all of its own."""
    alone = sum(len(unit.runs) for unit in units.values())
    parts = []
    for stage in outputs.RUN_STAGES:
        here = [unit for unit in units.values() if unit.output.stage == stage]
        wanted = sum(len(unit.runs) for unit in here)
        if wanted > len(here):
            parts.append(f"{stage} {len(here)} for {wanted}")
    said = f": {', '.join(parts)}" if parts else ""
    return f"{len(units)} units where runs by themselves would make {alone}{said}"


def _hours(units: Mapping[str, Unit]) -> dict[str, str]:
    """Return for each stage what is left of it takes, by the mean of the units that are done."""
    found = {}
    for stage in outputs.RUN_STAGES:
        here = [unit for unit in units.values() if unit.output.stage == stage]
        left = sum(not unit.done for unit in here)
        measured = [note for unit in here if unit.done and (note := _measured(unit))]
        if not left or not measured:
            continue
        mean = sum(seconds * gpus for seconds, _, gpus in measured) / len(measured)
        kind = "GPU"
        if not mean:
            mean, kind = sum(s * cpus for s, cpus, _ in measured) / len(measured), "CPU"
        found[stage] = f"{left * mean / 3600:.2g} {kind} hours"
    return found


def _measured(unit: Unit) -> tuple[float, float, float] | None:
    """Return seconds, CPUs and GPUs that a sealed unit took, if its seal says."""
    found = seal.read_seal(unit.output.folder)
    if found is None or "seconds" not in found.notes:
        return None
    notes = found.notes
    return float(notes["seconds"]), float(notes["cpus"]), float(notes["gpus"])


def first_run(units: Mapping[str, Unit]) -> str:
    """Return the run that goes first, so that what is wrong with late stages shows early."""
    return next((unit.runs[0] for unit in units.values() if not unit.done), "")


def summary(
    runs: Sequence[str], *, units: Mapping[str, Unit], failures: Mapping[str, BaseException]
) -> tuple[list[str], list[str]]:
    """Return the names of the runs that are whole, and a line about each that is not."""
    faults: dict[str, str] = {}
    for folder, error in failures.items():
        said = f"{units[folder].output.stage}: {standing.told(error)}"
        for run in units[folder].runs:
            faults.setdefault(run, f"{run}: {said}")
    whole = [run for run in runs if run not in faults]
    return whole, [faults[run] for run in runs if run in faults]
