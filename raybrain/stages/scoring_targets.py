"""Scores of decoded targets, before any image is drawn from them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from raybrain import evaluation, outputs, store
from raybrain.config import TARGET_OF, letters
from raybrain.decoders import noise_ceiling
from raybrain.stages.predicting import ESTIMATES, RIDGE, TRIALS

if TYPE_CHECKING:
    from raybrain.config import Experiment
    from raybrain.evaluation import CategoryScore, LatentScores
    from raybrain.stages.drawing import Sources

SINGLE = " single trials"


def decoded_scores(
    sources: Sources,
    *,
    image_ids: list[str],
    training_ids: list[str],
    resamples: int,
    seed: int,
) -> dict[str, LatentScores]:
    """Return the scores of every decoded target beside its training mean, by name.

    From the mean over an image's repeats, and from single trials where there are repeats; then the
    first stand beside the share of their variance that repeats agree on.
    """
    features, predictions = sources.features, sources.predictions
    trials = f"{predictions}/{TRIALS}"
    trial_ids = store.row_ids(trials)
    shown, image_of_trial = np.unique(trial_ids, return_inverse=True)
    repeated = len(trial_ids) > len(shown)
    scores = partial(evaluation.latent_scores, resamples=resamples, seed=seed)
    found = {}
    for target in sources.targets:
        predicted = store.read_rows(predictions, f"{ESTIMATES}/{target}", image_ids=image_ids)
        width = predicted.shape[1]
        beside = f"{RIDGE}/{target}"
        training = store.read_rows(features, target, image_ids=training_ids)[:, :width]
        mean = training.mean(axis=0)
        single = store.read_rows(trials, target)
        found[target] = scores(
            true=store.read_rows(features, target, image_ids=image_ids)[:, :width],
            predicted=predicted,
            training_mean=mean,
            ridge=store.read_rows(predictions, beside, image_ids=image_ids)
            if store.has_rows(predictions, beside)
            else None,
            ceiling=noise_ceiling(single.reshape(len(single), -1), image_id=image_of_trial)
            if repeated
            else None,
        )
        if repeated:
            found[f"{target}{SINGLE}"] = scores(
                true=store.read_rows(features, target, image_ids=trial_ids)[:, :width],
                predicted=single,
                training_mean=mean,
            )
    return found


def retrieval_scores(sources: Sources, *, image_ids: list[str]) -> dict[str, float]:
    """Return top-1 retrieval by every decoded target, both ways, raw and centred."""
    features, predictions = sources.features, sources.predictions
    pool = min(evaluation.POOL, len(image_ids))
    found = {}
    for target in sources.targets:
        predicted = store.read_rows(predictions, f"{ESTIMATES}/{target}", image_ids=image_ids)
        true = store.read_rows(features, target, image_ids=image_ids)[:, : predicted.shape[1]]
        for centred in (False, True):
            score = evaluation.retrieval(predicted=predicted, true=true, pool=pool, centred=centred)
            how = "centred" if centred else "raw"
            name = f"{target}.retrieval_of_{pool}"
            found[f"{name}.brain_to_image.{how}"] = float(score.brain_to_image.mean())
            found[f"{name}.image_to_brain.{how}"] = float(score.image_to_brain.mean())
    return found


def category_scores(sources: Sources, *, resamples: int, seed: int) -> dict[str, CategoryScore]:
    """Return how well single test trials tell the categories apart, by target."""
    trials = f"{sources.predictions}/{TRIALS}"
    group = store.open_store(sources.stimuli, splits="test").images["group"]
    shown = group[store.row_ids(trials)].to_numpy()
    categories, first = np.unique(group.to_numpy(), return_index=True)
    found = {}
    for target in sources.targets:
        predicted = store.read_rows(trials, target)
        # Every image of a category has the category's own picture and caption.
        prototypes = store.read_rows(
            sources.features, target, image_ids=group.index[first].tolist()
        )
        found[target] = evaluation.category_accuracy(
            predicted=predicted,
            prototypes=prototypes[:, : predicted.shape[1]],
            truth=np.searchsorted(categories, shown),
            resamples=resamples,
            seed=seed,
        )
    return found


def retrieved_images(sources: Sources, *, target: str, image_ids: list[str]) -> np.ndarray:
    """Return (image, rank) positions among the test images, by nearness to what was decoded.

    By centred cosine, as the centred scores of `retrieval_scores`.
    """
    predicted = store.read_rows(sources.predictions, f"{ESTIMATES}/{target}", image_ids=image_ids)
    true = store.read_rows(sources.features, target, image_ids=image_ids)
    return evaluation.nearest_first(predicted=predicted, true=true, centred=True)


def nearest_by(experiment: Experiment) -> tuple[str, ...]:
    """Return the targets that say which training image is nearest.

    The image embedding alone where the system draws from it, for it tells best; else all of them.
    """
    if "e" in letters(experiment.reconstruct.mode):
        return ("image_embeds",)
    decoded = dict(outputs.targets(experiment))
    return tuple(target for target in TARGET_OF.values() if target in decoded)


def nearest_training(
    sources: Sources, *, training_ids: list[str], targets: tuple[str, ...]
) -> np.ndarray:
    """Return (image,) the training images whose targets are nearest to what was decoded."""
    predicted, library = [], []
    for target in targets:
        values = store.read_rows(sources.predictions, target)
        truth = store.read_rows(sources.features, target, image_ids=training_ids)
        predicted.append(values.reshape(len(values), -1))
        library.append(truth[:, : values.shape[1]].reshape(len(truth), -1))
    return evaluation.nearest_training(
        predicted=np.concatenate(predicted, axis=1), training=np.concatenate(library, axis=1)
    )


def decoded_text(latents: dict[str, LatentScores], *, retrieved: dict[str, float]) -> str:
    """Return the scores of decoded targets for a console."""
    lines = [
        f"{'decoded target':<28}{'MSE':>9}{'of ridge':>9}{'of mean':>9}{'R²':>8}{'≤':>7}{'r':>7}"
        f"{'two-way':>9}{'chance':>8}{'n':>6}"
    ]
    for target, scores in latents.items():
        numbers = scores.summary()
        ridge, most = (
            f"{numbers[name]:.{digits}f}" if name in numbers else "–"  # noqa: RUF001
            for name, digits in (("mse_of_ridge", 4), ("r2_ceiling_mean", 3))
        )
        lines.append(
            f"{target:<28}{numbers['mse']:>9.4f}{ridge:>9}{numbers['mse_of_mean']:>9.4f}"
            f"{numbers['r2_mean']:>8.3f}{most:>7}{numbers['pearson_mean']:>7.3f}"
            f"{numbers['two_way']:>9.1%}{'50%':>8}{scores.n:>6}"
        )
    if any(scores.ceiling is not None for scores in latents.values()):
        lines.append("≤: share of the predictions' variance that repeats of an image agree on")
    targets = dict.fromkeys(name.split(".")[0] for name in retrieved)
    for target in targets:
        pool = next(name for name in retrieved if name.startswith(target)).split(".")[1]
        both = (
            f"{way.replace('_to_', ' to ')} {retrieved[f'{target}.{pool}.{way}.raw']:.1%} "
            f"(centred {retrieved[f'{target}.{pool}.{way}.centred']:.1%})"
            for way in ("brain_to_image", "image_to_brain")
        )
        candidates = int(pool.rpartition("_")[2])
        chance = f"chance {1 / candidates:.1%}"
        lines.append(f"retrieval by {target} among {candidates}: {', '.join(both)}; {chance}")
    return "\n".join(lines)
