"""``resources``, ``tuning`` and ``tracking``: where and how often work is done, and its record."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from raybrain.config.base import Location, NonNegative, Positive, Section
from raybrain.config.reading import _number


class Workers(Section):
    """How many workers a stage may use and what each one holds."""

    min: Positive = 1
    """Workers without which the stage does not begin."""
    max: Positive = 1
    """Workers at most."""
    cpus: Annotated[float, Field(gt=0.0)] = 1.0
    """CPUs of each."""
    gpus: Annotated[float, Field(ge=0.0)] = 0.0
    """GPUs of each; .5 puts two workers on one."""

    @model_validator(mode="after")
    def _ordered(self) -> Workers:
        if self.min > self.max:
            raise ValueError(
                f"min={self.min} is above max={self.max}; make max at least {self.min}"
            )
        return self


class Resources(Section):
    """Workers of every stage that runs on Ray."""

    tasks: Workers = Workers(max=2)
    """Tasks without a network or a generator: simulation, ingest, ridge, evaluation. Ridge computes
    on the GPU of its task, if ``gpus`` gives it one; a fraction will do."""
    train: Workers = Workers()
    """Workers that fit one network together."""
    generate: Workers = Workers(max=2)
    """The pool of Stable Diffusion workers."""
    tune: Workers = Workers(max=2)
    """Candidates at once, and what each worker of a candidate holds. A cluster that was joined is
    asked for all of them together, so that it can add nodes."""


class Range(Section):
    """The values that one address may take in a search."""

    choices: tuple[Any, ...] | None = None
    """Values to choose among; lists are allowed, as in sets of ROIs."""
    low: int | float | None = None
    """Smallest value."""
    high: int | float | None = None
    """Bounds, both included; whole numbers when both are whole."""
    step: Annotated[int | float, Field(gt=0)] | None = None
    """Distance of the values from ``low`` on."""
    log: bool = False
    """Search the logarithm."""
    when: dict[str, Any] = {}
    """Search this address only in candidates that have these values at other addresses."""

    @property
    def whole(self) -> bool:
        """Whether whole numbers alone are searched."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @field_validator("choices", "when", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {address: _number(wanted) for address, wanted in value.items()}
        return _number(value)

    @model_validator(mode="after")
    def _choices_or_bounds(self) -> Range:
        if self.choices is not None:
            if not self.choices or (self.low, self.high, self.step) != (None, None, None):
                raise ValueError("needs either choices, at least one, or low and high")
            return self
        if self.low is None or self.high is None:
            raise ValueError("needs either choices or both low and high")
        if self.whole and self.step is not None and self.step != int(self.step):
            raise ValueError(
                f"step={self.step} is a fraction, but low={self.low} and high={self.high} are "
                f"whole numbers, and so is what lies between; write low: {self.low}.0, or a whole "
                f"step"
            )
        if self.low > self.high:
            raise ValueError(f"low={self.low} is above high={self.high}; exchange them")
        if self.log and self.low <= 0:
            raise ValueError(f"low={self.low} has no logarithm; raise it or leave out log")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other; leave out one")
        return self


class Objective(Section):
    """A metric of the candidates and which way is better."""

    metric: str = "validation_loss"
    """Name of a metric that the candidates report."""
    direction: Literal["minimize", "maximize"] = "minimize"
    """Which way is better."""


DRAWN_BY = ("generator.lora", "generator.quantize")
"""Settings of the generator that change what it draws and no target."""
DRAWN_OF_PRIOR = ("sampling_steps", "guidance")
"""Settings of a prior that change what is drawn from it and not how it was fitted."""


def changes_drawing(address: str) -> bool:
    """Return whether an address changes what is drawn and not what is decoded.

    Examples
    --------
    >>> changes_drawing("reconstruct.steps"), changes_drawing("decode.latents.rois")
    (True, False)
    """
    section, *rest = address.split(".")
    if section == "reconstruct" or address in DRAWN_BY:
        return True
    return rest[1:2] == ["prior"] and rest[-1] in DRAWN_OF_PRIOR


class Tuning(Section):
    """The search for better settings."""

    space: dict[str, Range] = Field(min_length=1)
    """Dotted address of this experiment -> the values it may take."""
    candidates: Positive = 30
    """How many to try in all, those of earlier attempts included; for ``grid``, at most."""
    sampler: Literal["tpe", "random", "grid", "nsga2"] = "tpe"
    """How values are proposed: Optuna's tree of Parzen estimators, at random, one after another, or
    its evolution of a front for several objectives."""
    pruner: Literal["median", "hyperband", "none"] = "median"
    """Which candidates to stop early, by the first objective."""
    patience: Positive = 5
    """Epochs every candidate may train before it can be stopped early."""
    objectives: tuple[Objective, ...] = Field((Objective(),), min_length=1)
    """What to make better; several give a front of compromises."""
    storage: Location | None = None
    """Database of the study, as an SQLAlchemy URL or the path of a journal file that all nodes
    reach; a sqlite file in the workspace when not given."""
    workers: Positive = 1
    """Workers that train one candidate together."""
    images: Positive = 100
    """Validation images that a candidate draws, where drawing is searched."""
    top: Positive = 3
    """How many of the best are fitted again with other seeds."""
    seeds: Positive = 3
    """How many other seeds that are."""

    @model_validator(mode="after")
    def _samplers_fit(self) -> Tuning:
        several = len(self.objectives) > 1
        if several and self.pruner != "none":
            raise ValueError("several objectives cannot be compared early; write pruner: none")
        if several and self.sampler not in ("nsga2", "random", "grid"):
            raise ValueError("several objectives need sampler: nsga2, random or grid")
        for address, span in self.space.items():
            for other in span.when:
                if other not in self.space:
                    raise ValueError(
                        f"'{address}' is searched when '{other}' has a value, but '{other}' is "
                        f"not in the space; add it"
                    )
            if self.sampler == "grid" and not (span.choices or span.step or span.whole):
                raise ValueError(f"a grid needs choices or a step for '{address}'")
        return self


class Tracking(Section):
    """Where runs are recorded."""

    uri: Location | None = None
    """MLflow tracking server or database; a sqlite file in the workspace when not given."""
    models: bool = True
    """Register every fitted decoder as an MLflow model, a copy of its weights included."""
    system_metrics: Annotated[float, Field(gt=0.0)] | None = 10.0
    """Seconds between two looks at CPU, memory, disk, network and GPU of every node that works;
    null takes none."""
    pictures: NonNegative = 12
    """Test images in a run's image grid, seen beside reconstructed, and a third as many validation
    images while a network learns latents; 0 shows none."""
    private: bool = False
    """Whether stimuli that may not be redistributed may be logged as artifacts."""
