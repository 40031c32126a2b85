"""A sweep: axes along which experiments differ, and how they stand beside each other."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from raybrain.config.base import Location, Positive, Section
from raybrain.config.reading import _numbers_within


class Curve(Section):
    """A plot of one score over an axis of a sweep."""

    x: str
    """The axis along which is plotted; its labels begin with numbers, or are ``all``."""
    lines: str | None = None
    """The axis whose labels are lines; one line when not given."""
    metric: str
    """Of the protocol, or of a decoded target, as in ``image_embeds.two_way``."""


class Contrast(Section):
    """How the runs of a sweep stand beside each other."""

    rows: tuple[str, ...] = ()
    """What tells the rows of tables apart: axes along which the subject stays the same,
    ``dataset``, ``subject`` and ``metric``; what ``columns`` leaves, when not given."""
    columns: tuple[str, ...] = ("metric",)
    """What tells their columns apart."""
    baseline: dict[str, str] = {}
    """Axis -> label of what all others are compared with; the first label of every axis left
    out."""
    row: str = "system"
    """Row of every run's table that is compared."""
    metrics: tuple[str, ...] = ()
    """Of the protocol; all when not given."""
    beside: tuple[str, ...] = (
        "mean image", "random training", "shuffled brain", "nearest training", "ceiling",
    )  # fmt: skip
    """Rows of every dataset shown beside, floors first."""
    images: Positive = 24
    """Images that the page shows of every run, at equal steps through the test set."""
    curves: tuple[Curve, ...] = ()
    published: Literal["hou2023"] | None = None
    """Published figures to set beside: Hou & Najafi Khoshnoo 2023, tables 3 and 4."""
    document: Location | None = None
    """Markdown file to write the comparison to as well."""


class Sweep(Section):
    """Runs that differ along axes: experiments of one file, crossed or listed."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    experiment: Location
    """File of the experiment that all runs start from, beside the sweep's own."""
    settings: dict[str, Any] = {}
    """Address -> value for every run."""
    axes: dict[str, list[Any] | dict[str, dict[str, Any]]] = Field(min_length=1)
    """Address -> the values it takes; or a name -> label -> address -> value, where the address
    ``experiment`` starts from another file."""
    runs: tuple[dict[str, str], ...] | None = None
    """Axis -> label, each a run; axes left out take their first label. All combinations when not
    given."""
    without: tuple[dict[str, str], ...] = ()
    """Axis -> label: combinations that have all of these are left out."""
    absent: Literal["refuse", "skip"] = "refuse"
    """What becomes of runs whose dataset is not here, its variable unset or its folder missing: the
    sweep is refused, or they are left out and said so. What is there in part is refused as ever."""
    compare: Contrast = Contrast()

    @field_validator("settings", "axes", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        return _numbers_within(value)

    @field_validator("axes", mode="before")
    @classmethod
    def _axes_have_values(cls, value: Any) -> Any:
        for axis, values in value.items() if isinstance(value, dict) else ():
            labelled = isinstance(values, dict) and all(
                isinstance(settings, dict) for settings in values.values()
            )
            if not (labelled or isinstance(values, list)):
                raise ValueError(
                    f"'{axis}' needs a list of values, or label: {{address: value}} for each label"
                )
        return value
