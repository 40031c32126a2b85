"""Decoded targets of many runs: each decoder once, beside ridge and beside the mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from raybrain import outputs
from raybrain.evaluation import (
    ERROR,
    ERROR_OF_MEAN,
    ERROR_OF_RIDGE,
    Grid,
    bootstrap,
    mean_of_few,
    sign_flip_p,
)

if TYPE_CHECKING:
    from raybrain.stages.contrasting import Finished


@dataclass(frozen=True)
class Decoded:
    """One decoder of one subject, or the mean over subjects."""

    dataset: str
    target: str
    decoder: str
    """Its kind; its ROIs too where decoders of one kind differ in them."""
    subject: str
    mse: float
    half: float
    """Half the 95 % interval: over images, or over subjects."""
    mse_of_mean: float
    mse_of_ridge: float
    """NaN where no ridge was fitted beside it."""
    r: float
    """Mean over dimensions of Pearson's r over images."""
    r2: float
    two_way: float
    gain_on_mean: float
    """How much less its squared error is than that of the training mean, and its 95 % interval."""
    gain_on_mean_low: float
    gain_on_mean_high: float
    gain_on_ridge: float
    """The same, than that of ridge on the same voxels."""
    gain_on_ridge_low: float
    gain_on_ridge_high: float
    p_on_ridge: float
    """By random signs of the images' differences; not corrected."""
    n: int


def decoded_lines(finished: Sequence[Finished]) -> list[Decoded]:
    """Return what every decoder of the runs scores, those that runs share once."""
    found: dict[tuple[str, ...], Decoded] = {}
    for one in finished:
        experiment = one.experiment
        for target, decode in outputs.targets(experiment):
            if f"{target}/{ERROR}" not in one.errors:
                continue
            output = outputs.decoder(experiment, target)
            key = (one.scored.dataset, target, one.scored.subject, output.seal.digest)
            tokens = experiment.features.tokens if target == "prompt_embeds" else None
            told = f", {tokens} tokens" if tokens else ""
            name = f"{decode.decoder.kind} ({'+'.join(decode.rois)}{told})"
            if key not in found:
                found[key] = _line(one, target, name)
    lines = _distinct(list(found.values()))
    order = list(dict.fromkeys((line.dataset, line.target, line.decoder) for line in lines))
    return [
        line
        for place in order
        for line in _with_mean(
            [one for one in lines if (one.dataset, one.target, one.decoder) == place]
        )
    ]


def _line(one: Finished, target: str, name: str) -> Decoded:
    numbers = one.decoded[target]
    error = one.errors[f"{target}/{ERROR}"]
    than_mean = one.errors[f"{target}/{ERROR_OF_MEAN}"] - error
    ridge = one.errors.get(f"{target}/{ERROR_OF_RIDGE}")
    than_ridge = np.full(len(error), np.nan) if ridge is None else ridge - error
    resamples = one.experiment.evaluate.bootstrap
    seed = one.experiment.seed
    gains = np.stack([than_mean, than_ridge], axis=1)
    interval = bootstrap(gains, resamples=resamples, seed=seed)
    p = np.nan if ridge is None else sign_flip_p(gains[:, 1:], flips=resamples, seed=seed)[0]
    return Decoded(
        dataset=one.scored.dataset,
        target=target,
        decoder=name,
        subject=one.scored.subject,
        mse=numbers["mse"],
        half=(numbers["mse_high"] - numbers["mse_low"]) / 2,
        mse_of_mean=numbers["mse_of_mean"],
        mse_of_ridge=numbers.get("mse_of_ridge", np.nan),
        r=numbers.get("pearson_mean", np.nan),
        r2=numbers.get("r2_mean", np.nan),
        two_way=numbers["two_way"],
        gain_on_mean=float(than_mean.mean()),
        gain_on_mean_low=float(interval.low[0]),
        gain_on_mean_high=float(interval.high[0]),
        gain_on_ridge=float(than_ridge.mean()),
        gain_on_ridge_low=float(interval.low[1]),
        gain_on_ridge_high=float(interval.high[1]),
        p_on_ridge=float(p),
        n=len(error),
    )


def _distinct(lines: Sequence[Decoded]) -> list[Decoded]:
    """Return the lines with names no longer than tells them apart."""
    kinds: dict[tuple[str, str, str], set[str]] = {}
    for line in lines:
        kind = line.decoder.split(" ")[0]
        kinds.setdefault((line.dataset, line.target, kind), set()).add(line.decoder)
    seen: dict[tuple[str, str, str, str], int] = {}
    named = []
    for line in lines:
        kind = line.decoder.split(" ")[0]
        name = kind if len(kinds[line.dataset, line.target, kind]) == 1 else line.decoder
        place = (line.dataset, line.target, line.subject, name)
        seen[place] = seen.get(place, 0) + 1
        number = f" #{seen[place]}" if seen[place] > 1 else ""
        named.append(replace(line, decoder=f"{name}{number}"))
    return named


def _with_mean(lines: list[Decoded]) -> list[Decoded]:
    """Return the lines of several subjects with their mean behind them."""
    if len(lines) < 2:
        return lines

    def mean(name: str) -> float:
        return float(np.mean([getattr(line, name) for line in lines]))

    values = {name: _over(lines, name) for name in ("mse", "gain_on_mean", "gain_on_ridge")}
    whole = Decoded(
        dataset=lines[0].dataset,
        target=lines[0].target,
        decoder=lines[0].decoder,
        subject=f"mean of {len(lines)}",
        mse=values["mse"][0],
        half=(values["mse"][2] - values["mse"][1]) / 2,
        **{name: mean(name) for name in ("mse_of_mean", "mse_of_ridge", "r", "r2", "two_way")},
        gain_on_mean=values["gain_on_mean"][0],
        gain_on_mean_low=values["gain_on_mean"][1],
        gain_on_mean_high=values["gain_on_mean"][2],
        gain_on_ridge=values["gain_on_ridge"][0],
        gain_on_ridge_low=values["gain_on_ridge"][1],
        gain_on_ridge_high=values["gain_on_ridge"][2],
        p_on_ridge=np.nan,
        n=len(lines),
    )
    return [*lines, whole]


def _over(lines: Sequence[Decoded], name: str) -> tuple[float, float, float]:
    found = mean_of_few(np.array([getattr(line, name) for line in lines]))
    return found.value, found.low, found.high


def decoded_grid(lines: Sequence[Decoded]) -> Grid:
    """Return the table of decoded targets: squared error beside the mean's and ridge's."""
    rows = [
        (
            (line.dataset, line.target, line.decoder, line.subject),
            (
                f"{line.mse:.4f} ± {line.half:.4f}",
                f"{line.mse_of_mean:.4f}",
                _or_dash(line.mse_of_ridge, ".4f"),
                _interval(line.gain_on_ridge, line.gain_on_ridge_low, line.gain_on_ridge_high),
                _or_dash(line.r, ".3f"),
                _or_dash(line.r2, ".3f"),
                f"{line.two_way:.1%}",
            ),
        )
        for line in lines
    ]
    return Grid(
        "Decoded targets: squared error on test images, before any image is drawn",
        ("dataset", "target", "decoder", "subject"),
        ("MSE", "of mean", "of ridge", "gain on ridge", "r", "R²", "two-way"),
        tuple(rows),
        (
            "Of mean: what predicting the training mean scores. Of ridge: ridge on the same "
            "voxels with a penalty per dimension chosen by leave-one-out. Gain on ridge: paired "
            "over images, 95 % interval, positive where the decoder errs less. Chance of two-way "
            "is 50 %, of r 0.",
        ),
    )


def _or_dash(value: float, form: str) -> str:
    return format(value, form) if np.isfinite(value) else "–"  # noqa: RUF001


def _interval(value: float, low: float, high: float) -> str:
    if not np.isfinite(value):
        return _or_dash(value, "")
    ends = f" [{low:+.4f}, {high:+.4f}]" if np.isfinite(low) else ""
    return f"{value:+.4f}{ends}"
