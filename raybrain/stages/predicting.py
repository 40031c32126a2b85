"""``predict``: the decoders meet the test trials."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from raybrain import outputs, places, store
from raybrain.config import InputError
from raybrain.decoders import load_decoder
from raybrain.stages import Made
from raybrain.stages.fitting import DECODER, REFERENCE, image_rows

if TYPE_CHECKING:
    from raybrain.config import Experiment
    from raybrain.outputs import Output
    from raybrain.tracking import Run

ESTIMATES = "estimates"
"""Group of the least-squares predictions, which squared errors are computed from."""

RIDGE = "ridge"
"""Group of the predictions of ridge on the same voxels, where it was fitted beside a network."""

TRIALS = "trials"
"""Group of the least-squares predictions of single trials, in order of acquisition."""


def work(experiment: Experiment, output: Output, run: Run) -> Made:
    """Write the decoded targets of every test image, its repeats averaged."""
    subject = outputs.subject_store(experiment)
    opened = store.open_store(subject.folder, splits="test")
    run.set_tags({"opened_test_trials": "predict"})
    trials = opened.trials
    if trials.empty:
        raise InputError(
            f"{subject.folder} has no test trials; check 'split' in the catalog entry "
            f"{experiment.dataset} and that the sessions with test images are on disk"
        )
    rows = image_rows(opened)
    image_ids = opened.images.index[np.unique(rows)].tolist()
    decoded: dict[str, np.ndarray] = {}
    by_trial: dict[str, np.ndarray] = {}
    for target, decode in outputs.targets(experiment):
        betas = opened.betas(voxels=opened.mask(decode.rois))
        told: dict[str, Any] = {"session": trials["session"].to_numpy(), "image_id": rows}
        folder = outputs.decoder(experiment, target).folder
        with places.reading(f"{folder}/{DECODER}") as saved:
            decoder = load_decoder(saved)
            predicted = decoder.predict(betas, **told)
            single = decoder.predict(betas, **told, average=False)
        shape = target_shape(experiment, target)
        decoded[target] = predicted.values.reshape(len(image_ids), *shape)
        decoded[f"{ESTIMATES}/{target}"] = predicted.estimates.reshape(len(image_ids), *shape)
        by_trial[target] = single.estimates.reshape(len(rows), *shape)
        if places.exists(f"{folder}/{REFERENCE}"):
            with places.reading(f"{folder}/{REFERENCE}") as saved:
                ridge = load_decoder(saved).predict(betas, **told)
            decoded[f"{RIDGE}/{target}"] = ridge.estimates.reshape(len(image_ids), *shape)
    attributes = {"store": subject.seal.digest}
    _write(output.folder, decoded, image_ids=image_ids, attributes=attributes)
    trial_ids = trials["image_id"].tolist()
    _write(f"{output.folder}/{TRIALS}", by_trial, image_ids=trial_ids, attributes=attributes)
    return Made(f"{len(trials):,} test trials -> {len(image_ids):,} images")


def _write(
    folder: str,
    arrays: dict[str, np.ndarray],
    *,
    image_ids: list[str],
    attributes: dict[str, str],
) -> None:
    store.create_rows(
        folder,
        {name: (values.shape[1:], "float32") for name, values in arrays.items()},
        image_ids=image_ids,
        rows_per_block=store.IMAGES_PER_CHUNK,
        attributes=attributes,
    )
    for name, values in arrays.items():
        for block in store.missing_blocks(folder, name):
            store.write_block(folder, name, values[block.start : block.stop], block=block)


def target_shape(experiment: Experiment, target: str) -> tuple[int, ...]:
    """Return the shape of one image's decoded target: leading tokens only, where so set."""
    shape = store.row_shape(outputs.features(experiment).folder, target)
    if target == "prompt_embeds" and experiment.features.tokens is not None:
        return (min(experiment.features.tokens, shape[0]), *shape[1:])
    return shape
