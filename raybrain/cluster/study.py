"""The keeper of a study: the one process that speaks to Optuna and its database."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raybrain.cluster import space
from raybrain.config import InputError, Tuning
from raybrain.seal import digest_of

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial, Trial

DATABASE = "optuna.db"
ERROR = "error"
SECONDS = "seconds"
SEED = "seed"
SPACE = "space"
RANDOM_CANDIDATES = 5
"""Drawn at random before TPE has something to go by."""
WHOLE_CANDIDATES = 2
"""Trained to their end before others are compared with them; the first is the experiment's own."""
State = Literal["complete", "pruned", "failed"]


@dataclass(frozen=True)
class Candidate:
    """One set of settings to try."""

    number: int
    """Place in the order in which candidates were suggested, from 0."""
    settings: Mapping[str, Any]
    """Dotted address -> value."""
    seed: int
    """Of the fit."""


@dataclass(frozen=True)
class Outcome:
    """What came of a candidate."""

    candidate: Candidate
    state: State
    values: tuple[float, ...]
    """One per objective; of a candidate stopped early the last of the first; empty if it failed."""
    epochs: int
    """Epochs that were reported."""
    seconds: float
    """Wall time; NaN where it was not recorded."""
    error: str = ""


@dataclass(frozen=True)
class Event:
    """Something the driver may want to record: a start, an epoch, or an outcome."""

    candidate: Candidate
    metrics: Mapping[str, Any] | None = None
    outcome: Outcome | None = None


class Keeper:
    """Asks Optuna for candidates, hears their epochs, and tells it what came of them.

    A candidate that a dead driver left open is handed out again under its number, with its
    settings; so there can be only one keeper of a study at a time.
    """

    def __init__(self, tuning: Tuning, *, name: str, storage: str, seed: int) -> None:
        self._tuning, self._name, self._storage, self._seed = tuning, name, storage, seed
        self._order = space.in_order(tuning.space)
        self._held: dict[str, int] = {}
        self._told: set[int] = set()
        self._trials: dict[int, Trial] = {}
        self._candidates: dict[int, Candidate] = {}
        self._started: dict[int, float] = {}
        self._events: list[Event] = []

    def open(self, default: Mapping[str, Any]) -> None:
        """Take up the study, or begin it with the ``default`` settings as first candidate."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = _open_study(
            self._tuning, name=self._name, storage=self._storage, seed=self._seed
        )
        trials = self._study.get_trials(deepcopy=False)
        running = optuna.trial.TrialState.RUNNING
        self._left_open = [trial for trial in trials if trial.state == running]
        if not trials:
            self._enqueue(default)

    def ask(self, slot: str) -> Candidate | None:
        """Return a candidate for ``slot``; the same again if the slot's worker died before.

        None when that one is finished.
        """
        import optuna

        if slot in self._held:
            number = self._held[slot]
            return None if number in self._told else self._candidates[number]
        if self._left_open:
            found = self._left_open.pop(0)
            trial = optuna.Trial(self._study, found._trial_id)
        else:
            trial = self._study.ask()
        candidate = Candidate(trial.number, self._suggest(trial), self._seed)
        trial.set_user_attr(SEED, self._seed)
        self._held[slot] = trial.number
        self._trials[trial.number] = trial
        self._candidates[trial.number] = candidate
        self._started[trial.number] = time.monotonic()
        self._events.append(Event(candidate))
        return candidate

    def report(self, number: int, metrics: Mapping[str, Any]) -> bool:
        """Record an epoch and return whether the candidate should stop here."""
        self._events.append(Event(self._candidates[number], metrics=metrics))
        if len(self._tuning.objectives) > 1:
            return False
        trial, step = self._trials[number], int(metrics["epoch"])
        known = self._study._storage.get_trial(trial._trial_id).intermediate_values
        if step not in known:  # an epoch that is done again after a worker died
            trial.report(self._value(metrics, 0), step)
        return self._tuning.pruner != "none" and bool(trial.should_prune())

    def complete(self, number: int, metrics: Mapping[str, Any]) -> None:
        """Record the objectives of a candidate that ran to its end."""
        import optuna

        values = [self._value(metrics, place) for place in range(len(self._tuning.objectives))]
        if any(math.isnan(value) for value in values):
            self.fail(number, f"ValueError: an objective is not a number: {dict(metrics)}")
            return
        self._tell(number, optuna.trial.TrialState.COMPLETE, values=values)

    def prune(self, number: int) -> None:
        """Record that a candidate stopped early."""
        import optuna

        self._tell(number, optuna.trial.TrialState.PRUNED)

    def fail(self, number: int, error: str) -> None:
        """Record that a candidate raised, and what."""
        import optuna

        self._trials[number].set_user_attr(ERROR, error[-10_000:])
        self._tell(number, optuna.trial.TrialState.FAIL)

    def abandon(self, slot: str, error: str) -> None:
        """Record that the workers of a slot died until nobody tried again."""
        number = self._held.get(slot)
        if number is not None and number not in self._told:
            self.fail(number, error)

    def events(self) -> list[Event]:
        """Return what happened since the last call."""
        events, self._events = self._events, []
        return events

    def outcomes(self) -> list[Outcome]:
        """Return every finished candidate of the study, earlier attempts included."""
        trials = self._study.get_trials(deepcopy=False)
        return [self._outcome(trial) for trial in trials if trial.state.is_finished()]

    def _enqueue(self, default: Mapping[str, Any]) -> None:
        # The experiment as it stands comes first, so that the best is never worse.
        if self._tuning.sampler == "grid":
            for settings in space.grid(self._tuning):
                self._study.enqueue_trial(_as_stored(settings))
        elif default and self._within(default):
            self._study.enqueue_trial(_as_stored(default))

    def _within(self, settings: Mapping[str, Any]) -> bool:
        for address, value in settings.items():
            span = self._tuning.space[address]
            if span.choices is not None:
                if value not in [list(c) if isinstance(c, tuple) else c for c in span.choices]:
                    return False
            elif not isinstance(value, int | float) or not span.low <= value <= span.high:  # type: ignore[operator]
                return False
        return True

    def _suggest(self, trial: Trial) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        for address in self._order:
            span = self._tuning.space[address]
            if not space.applies(span, settings):
                continue
            if span.choices is not None:
                choices = {space.encoded(choice): choice for choice in span.choices}
                settings[address] = choices[trial.suggest_categorical(address, list(choices))]
            elif isinstance(span.low, int) and isinstance(span.high, int):  # as in span.whole
                step = int(span.step or 1)
                settings[address] = trial.suggest_int(
                    address, span.low, span.high, step=step, log=span.log
                )
            else:
                assert span.low is not None
                assert span.high is not None
                settings[address] = trial.suggest_float(
                    address, span.low, span.high, step=span.step, log=span.log
                )
        return settings

    def _value(self, metrics: Mapping[str, Any], place: int) -> float:
        wanted = self._tuning.objectives[place].metric
        if wanted not in metrics:
            raise InputError(
                f"tuning.objectives names '{wanted}', but candidates report {', '.join(metrics)}"
            )
        return float(metrics[wanted])

    def _tell(
        self, number: int, state: optuna.trial.TrialState, values: list[float] | None = None
    ) -> None:
        trial = self._trials[number]
        trial.set_user_attr(SECONDS, time.monotonic() - self._started[number])
        self._study.tell(number, values, state=state, skip_if_finished=True)
        self._told.add(number)
        frozen = self._study._storage.get_trial(trial._trial_id)
        self._events.append(Event(self._candidates[number], outcome=self._outcome(frozen)))

    def _outcome(self, trial: FrozenTrial) -> Outcome:
        import optuna

        states: dict[Any, State] = {
            optuna.trial.TrialState.COMPLETE: "complete",
            optuna.trial.TrialState.PRUNED: "pruned",
            optuna.trial.TrialState.FAIL: "failed",
        }
        state = states[trial.state]
        settings = {
            address: self._as_given(address, value) for address, value in trial.params.items()
        }
        values = tuple(trial.values) if state != "failed" and trial.values else ()
        return Outcome(
            candidate=Candidate(trial.number, settings, trial.user_attrs.get(SEED, self._seed)),
            state=state,
            values=values,
            epochs=len(trial.intermediate_values),
            seconds=float(trial.user_attrs.get(SECONDS, math.nan)),
            error=trial.user_attrs.get(ERROR, ""),
        )

    def _as_given(self, address: str, value: Any) -> Any:
        choices = self._tuning.space[address].choices
        if choices is None:
            return value
        return {space.encoded(choice): choice for choice in choices}[value]


def storage_of(tuning: Tuning, *, workspace: str) -> str:
    """Return where the study lives, as an absolute address.

    Raises
    ------
    raybrain.config.InputError
        If the workspace cannot hold a database.
    """
    if tuning.storage is not None:
        return tuning.storage if "://" in tuning.storage else str(Path(tuning.storage).absolute())
    if "://" in workspace:
        raise InputError(
            f"a study cannot be kept in a database at {workspace}; set tuning.storage to a "
            f"database, such as postgresql://..., or to a file that all nodes reach"
        )
    return f"sqlite:///{Path(workspace).absolute() / DATABASE}"


def _open_study(tuning: Tuning, *, name: str, storage: str, seed: int) -> optuna.Study:
    import optuna

    if storage.startswith("sqlite:///"):
        Path(storage.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=name,
        storage=open_storage(storage),
        directions=[objective.direction for objective in tuning.objectives],
        pruner=_pruner(tuning),
        load_if_exists=True,
    )
    digest = digest_of(tuning.model_dump(mode="json", include={"space", "objectives"}))
    if study.user_attrs.setdefault(SPACE, digest) != digest:
        raise InputError(
            f"the study '{name}' at {storage} was begun with another space or other objectives; "
            f"give the experiment another name, or take the old settings back"
        )
    study.set_user_attr(SPACE, digest)
    # With the seed alone, a study that is taken up again would repeat its first draws.
    study.sampler = _sampler(tuning, seed=seed + len(study.get_trials(deepcopy=False)))
    return study


def open_storage(address: str) -> Any:
    """Return what Optuna takes for an address of `storage_of`."""
    if "://" in address:
        return address
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    Path(address).parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(address))


def _sampler(tuning: Tuning, *, seed: int) -> optuna.samplers.BaseSampler:
    from optuna import samplers

    if tuning.sampler == "tpe":
        # Candidates that still run count as bad ones, so that parallel ones differ. Searches here
        # have tens of candidates: 10 random ones first, Optuna's default, would be too many.
        return samplers.TPESampler(
            seed=seed, constant_liar=True, n_startup_trials=RANDOM_CANDIDATES
        )
    if tuning.sampler == "nsga2":
        return samplers.NSGAIISampler(seed=seed)
    return samplers.RandomSampler(seed=seed)


def _pruner(tuning: Tuning) -> optuna.pruners.BasePruner:
    from optuna import pruners

    inner: pruners.BasePruner = pruners.NopPruner()
    if tuning.pruner == "median":
        inner = pruners.MedianPruner(
            n_startup_trials=WHOLE_CANDIDATES, n_warmup_steps=tuning.patience
        )
    elif tuning.pruner == "hyperband":
        inner = pruners.HyperbandPruner(min_resource=tuning.patience)
    return inner


def _as_stored(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {address: space.encoded(value) for address, value in settings.items()}
