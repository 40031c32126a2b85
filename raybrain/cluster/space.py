"""A search space is addresses of the experiment, and a candidate is an experiment."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from raybrain.config import Experiment, InputError, Range, Tuning, flatten

SEARCHED = ("decode", "training", "reconstruct")
"""What a candidate can change: how decoders are fitted, or how is drawn from what they decode. The
rest says what they are fitted on and what is done with the pictures."""


def check_space(experiment: Experiment) -> None:
    """Refuse a space with an address or a value that the experiment would refuse.

    Every choice and both bounds of every address are tried in the experiment, each with the
    values that its ``when`` asks for.

    Raises
    ------
    raybrain.config.InputError
        One sentence about the first fault.
    """
    tuning = _tuning(experiment)
    for address in in_order(tuning.space):
        span = tuning.space[address]
        section = address.split(".")[0]
        if section in Experiment.model_fields and section not in SEARCHED:
            raise InputError(
                f"'{address}' cannot be searched; search what the decoders are fitted with, "
                f"such as training.lr, or how is drawn, such as reconstruct.strength"
            )
        values = span.choices if span.choices is not None else (span.low, span.high)
        for value in values:
            tried = {**_required(address, tuning.space), address: value}
            experiment.with_(tried, source="tuning.space")


def default_settings(experiment: Experiment) -> dict[str, Any]:
    """Return the experiment's own values at the addresses of its space, where it has them."""
    leaves = flatten(experiment)
    return {address: leaves[address] for address in _tuning(experiment).space if address in leaves}


def assignments(settings: Mapping[str, Any]) -> str:
    """Return settings as they are typed after ``raybrain train experiment.yaml``."""
    typed = []
    for address, value in settings.items():
        text = yaml.safe_dump(value, default_flow_style=True, width=10_000).strip()
        typed.append(shlex.quote(f"{address}={text.removesuffix('...').strip()}"))
    return " ".join(typed)


def in_order(space: Mapping[str, Range]) -> list[str]:
    """Return the addresses so that each comes after those its ``when`` looks at."""
    placed: list[str] = []
    while len(placed) < len(space):
        ready = [
            address
            for address, span in space.items()
            if address not in placed and all(other in placed for other in span.when)
        ]
        if not ready:
            waiting = ", ".join(sorted(set(space) - set(placed)))
            raise InputError(f"tuning.space: {waiting} are searched when each other has a value")
        placed += ready
    return placed


def applies(span: Range, settings: Mapping[str, Any]) -> bool:
    """Return whether an address is searched in a candidate with these settings so far."""
    return all(
        other in settings and settings[other] in _allowed(wanted)
        for other, wanted in span.when.items()
    )


def grid(tuning: Tuning) -> Iterator[dict[str, Any]]:
    """Yield every combination of the space, conditions respected, each once."""
    space = tuning.space
    addresses = in_order(space)
    seen = set()
    for values in itertools.product(*(_points(space[address]) for address in addresses)):
        settings: dict[str, Any] = {}
        for address, value in zip(addresses, values, strict=True):
            if applies(space[address], settings):
                settings[address] = value
        key = json.dumps(settings, sort_keys=True)
        if key not in seen:
            seen.add(key)
            yield settings


def encoded(choice: Any) -> str | int | float | bool | None:
    """Return a choice as Optuna stores it: lists as text."""
    if choice is None or isinstance(choice, str | int | float | bool):
        return choice
    return json.dumps(choice)


def _points(span: Range) -> list[Any]:
    if span.choices is not None:
        return list(span.choices)
    assert span.low is not None
    assert span.high is not None
    step = int(span.step or 1) if span.whole else span.step or 1
    steps = int((span.high - span.low) / step + 1e-9)
    return [span.low + step * number for number in range(steps + 1)]


def _required(address: str, space: Mapping[str, Range]) -> dict[str, Any]:
    """Return settings under which ``address`` is searched."""
    settings: dict[str, Any] = {}
    for other, wanted in space[address].when.items():
        settings |= _required(other, space)
        settings[other] = _allowed(wanted)[0]
    return settings


def _allowed(wanted: Any) -> list[Any]:
    return list(wanted) if isinstance(wanted, list | tuple) else [wanted]


def _tuning(experiment: Experiment) -> Tuning:
    if experiment.tuning is None:
        raise InputError(
            f"experiment '{experiment.name}' has no 'tuning' section, so there is nothing to "
            f"search; add one with a space, such as training.lr: {{low: 1e-5, high: 1e-2, log: on}}"
        )
    return experiment.tuning
