"""``tune`` over how pictures are drawn: candidates draw validation images and are scored on them.

Decoders are not searched at the same time: every candidate draws from the same predictions, made by
decoders that did not see the validation images in fitting. Test trials stay closed.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from raybrain import cluster, diffusion, evaluation, outputs, places, store
from raybrain.config import (
    TARGET_OF,
    ClosedForm,
    InputError,
    Reconstruct,
    changes_drawing,
    letters,
)
from raybrain.decoders import load_decoder
from raybrain.stages.drawing import LAYERS, layer_spread, whole_prompts
from raybrain.stages.fitting_data import DECODER, PRIOR, Data, image_rows
from raybrain.stages.fitting_ridge import fit_ridge_of

if TYPE_CHECKING:
    from raybrain.cluster import Candidate, Shared
    from raybrain.config import Decode, Experiment, Generator
    from raybrain.store import SubjectStore

DRAWN = "drawn/"
"""Names of objectives that are scores of drawn validation images begin with this."""
RESAMPLES = 100
"""Candidates are compared by their means; intervals and p values are not looked at."""


def searches_drawing(experiment: Experiment) -> bool:
    """Return whether the space is about drawing, or raise where it is about both.

    Raises
    ------
    InputError
        If it mixes drawing with decoding, if the objectives are not those of drawing, or if
        candidates that are drawn once should be stopped early.
    """
    tuning = experiment.tuning
    assert tuning is not None
    drawn = [address for address in tuning.space if changes_drawing(address)]
    wanted = [one.metric for one in tuning.objectives]
    if not drawn:
        named = [metric for metric in wanted if metric.startswith(DRAWN)]
        if named:
            raise InputError(
                f"tuning.objectives names '{named[0]}', but nothing in the space changes what is "
                f"drawn; search reconstruct.strength, reconstruct.guidance or the like"
            )
        return False
    others = [address for address in tuning.space if address not in drawn]
    if others:
        raise InputError(
            f"tuning.space has '{drawn[0]}', which is about drawing, and '{others[0]}', which is "
            f"about decoding; search the decoders first, then drawing with the best of them"
        )
    known = [DRAWN + metric.name for metric in _protocol(experiment).metrics]
    for metric in wanted:
        if metric not in known:
            raise InputError(
                f"tuning.objectives names '{metric}', but pictures are scored by "
                f"{', '.join(known)}; name one of these, with its direction"
            )
    if tuning.pruner != "none":
        raise InputError(
            "candidates that draw are scored once, so none can be stopped early; write "
            "tuning.pruner: none"
        )
    return True


@dataclass(frozen=True)
class Drawn:
    """What all candidates share, in the object store."""

    image_ids: tuple[str, ...]
    seen: np.ndarray
    """(image, y, x, rgb) uint8."""
    mean: np.ndarray
    """(image, 1, y, x, rgb) the mean training image, which scores are read beside."""
    values: Mapping[str, np.ndarray]
    """Target -> (image, ...) what would be drawn from without a prior."""
    estimates: Mapping[str, np.ndarray]
    """Target -> (image, ...) least-squares predictions, which a prior starts from."""
    priors: Mapping[str, str]
    """Target -> folder of its prior."""
    spread: diffusion.Spread | None
    """Of features of inner layers over the training images, where these are decoded."""


@dataclass(frozen=True)
class Decoded:
    """One target with what ``train`` made of it; put together by the driver."""

    data: Data
    folder: str

    @classmethod
    def each(cls, experiment: Experiment) -> list[Decoded]:
        """Return all targets of an experiment."""
        return [
            cls(Data.of(experiment, target, decode), outputs.decoder(experiment, target).folder)
            for target, decode in outputs.targets(experiment)
        ]


def drawn_data(decoded: Sequence[Decoded], *, images: int) -> Drawn:
    """Return the validation images that candidates draw and what is decoded of them.

    Ridge is fitted again without them, for ``train`` fits it to all training trials; networks and
    priors, which only stopped early by them, are those that ``train`` made.
    """
    opened = decoded[0].data.opened
    held_out = opened.trials["split"] != "train"
    ids = sorted(set(opened.trials["image_id"][held_out]))
    if len(ids) < 2:
        raise InputError(
            "a search over drawing needs two or more validation images; give the split a "
            "validation share above 0"
        )
    count = min(images, len(ids))
    chosen = [ids[k] for k in np.linspace(0, len(ids) - 1, count).astype(int)]
    validation = replace(opened, trials=opened.trials[opened.trials["image_id"].isin(chosen)])
    fitted_on = replace(opened, trials=opened.trials[~held_out])
    training_ids = sorted(set(fitted_on.trials["image_id"]))
    values, estimates, priors = {}, {}, {}
    for one in decoded:
        data = replace(one.data, opened=fitted_on)
        values[data.target], estimates[data.target] = _predicted(
            data, validation=validation, folder=one.folder, training_ids=training_ids
        )
        if data.decode.prior is not None:
            priors[data.target] = f"{one.folder}/{PRIOR}"
    return Drawn(
        image_ids=tuple(chosen),
        seen=opened.pixels(chosen),
        mean=evaluation.mean_image(opened.pixels(training_ids), images=count),
        values=values,
        estimates=estimates,
        priors=priors,
        spread=layer_spread(decoded[0].data.features, image_ids=training_ids)
        if LAYERS in values
        else None,
    )


def _predicted(
    data: Data, *, validation: SubjectStore, folder: str, training_ids: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return values and estimates (image, ...) of the validation images, ascending by id."""
    if isinstance(data.decode.decoder, ClosedForm):
        decoder = fit_ridge_of(data, section=data.decode.decoder)
    else:
        with places.reading(f"{folder}/{DECODER}") as saved:
            decoder = load_decoder(saved)
    predicted = decoder.predict(
        validation.betas(voxels=validation.mask(data.decode.rois)),
        session=validation.trials["session"].to_numpy(),
        image_id=image_rows(validation),
    )
    order = np.argsort(validation.images.index[predicted.image_id].to_numpy())
    shape = store.row_shape(data.features, data.target)

    def whole(rows: np.ndarray) -> np.ndarray:
        rows = rows[order].reshape(len(order), -1, *shape[1:])
        if data.target == "prompt_embeds":
            return whole_prompts(rows, features=data.features, training_ids=training_ids)
        return rows

    return whole(predicted.values), whole(predicted.estimates)


def draw_candidate(
    candidate: Candidate, *, experiment: Experiment, data: Shared[Drawn]
) -> dict[str, float]:
    """Draw the validation images once with a candidate's settings and return their scores.

    Returns
    -------
    dict
        ``drawn/<metric>`` for every metric of the protocol, the mean over images.
    """
    tried = experiment.with_(candidate.settings, source="tuning.space")
    drawn = data.get()
    images = _draw(tried, drawn, seed=candidate.seed)
    protocol = _protocol(tried)
    table = evaluation.score_rows(
        drawn.seen,
        {evaluation.MEAN_IMAGE: drawn.mean, evaluation.SYSTEM: images[:, None]},
        protocol=protocol,
        image_ids=drawn.image_ids,
        bootstrap_resamples=RESAMPLES,
        permutations=RESAMPLES,
        seed=tried.seed,
        weights=evaluation.weights_folder(tried.evaluate.weights),
    )
    scores = {
        DRAWN + metric.name: table.score(row=evaluation.SYSTEM, metric=metric.name).value
        for metric in protocol.metrics
    }
    cluster.report({"epoch": 1, **scores})
    return scores


def _draw(tried: Experiment, drawn: Drawn, *, seed: int) -> np.ndarray:
    settings = tried.reconstruct
    decodes = dict(outputs.targets(tried))
    values = {
        target: _through_prior(drawn, target, decodes[target], seed=seed)
        if target in drawn.priors
        else drawn.values[target]
        for target in (TARGET_OF[letter] for letter in letters(settings.mode))
    }
    worker = _worker(tried.generator, seed=seed, threads=max(1, int(tried.resources.tune.cpus)))
    # As many rows at once as a unit of the system has.
    size = settings.images_per_unit * settings.samples
    layers = None
    if drawn.spread is not None:
        layers = diffusion.LayerTargets(
            drawn.values[LAYERS], spread=drawn.spread, features=tried.features
        )
    parts = []
    for block in store.blocks(len(drawn.image_ids), size=size):
        rows = slice(block.start, block.stop)
        unit = diffusion.DrawingUnit(
            image_ids=drawn.image_ids[rows],
            samples=(0,),
            **dict.fromkeys(TARGET_OF.values()) | {name: v[rows] for name, v in values.items()},
            image_features=None if layers is None else layers.rows(rows),
            settings=settings,
        )
        parts.append(worker(unit).images[:, 0])
    return np.concatenate(parts)


def _through_prior(drawn: Drawn, target: str, decode: Decode, *, seed: int) -> np.ndarray:
    from raybrain.decoders.prior import load_prior  # imports torch

    assert decode.prior is not None
    estimates = drawn.estimates[target]
    with places.reading(drawn.priors[target]) as saved:
        prior = replace(load_prior(saved), section=decode.prior)
    seeds = [
        diffusion.noise_seed(seed=seed, image_id=image_id, sample=-1)
        for image_id in drawn.image_ids
    ]
    values = prior.draw(estimates.reshape(len(estimates), -1), seeds=seeds)
    return values.reshape(estimates.shape)


# A worker process tries many candidates; loading takes longer than drawing a few images.
@functools.lru_cache(maxsize=1)
def _worker(settings: Generator, *, seed: int, threads: int) -> diffusion.DrawingWorker:
    return diffusion.DrawingWorker(
        generator=settings, reconstruct=Reconstruct(), seed=seed, threads=threads
    )


def _protocol(experiment: Experiment) -> Any:
    return evaluation.protocol_named(experiment.evaluate.protocol)
