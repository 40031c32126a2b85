"""``predict``: the decoders meet the test trials."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raybrain import outputs, store
from raybrain.config import InputError
from raybrain.decoders import load_decoder
from raybrain.stages import Made
from raybrain.stages.fitting import DECODER, image_rows

if TYPE_CHECKING:
    from raybrain.config import Experiment
    from raybrain.outputs import Output
    from raybrain.tracking import Run

ESTIMATES = "estimates"
"""Group of the least-squares predictions, which squared errors are computed from."""


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
    for target, decode in outputs.targets(experiment):
        decoder = load_decoder(Path(outputs.decoder(experiment, target).folder) / DECODER)
        predicted = decoder.predict(
            opened.betas(voxels=opened.mask(decode.rois)),
            session=trials["session"].to_numpy(),
            image_id=rows,
        )
        shape = (len(image_ids), *target_shape(experiment, target))
        decoded[target] = predicted.values.reshape(shape)
        decoded[f"{ESTIMATES}/{target}"] = predicted.estimates.reshape(shape)
    store.create_rows(
        output.folder,
        {name: (values.shape[1:], "float32") for name, values in decoded.items()},
        image_ids=image_ids,
        rows_per_block=store.IMAGES_PER_CHUNK,
        attributes={"store": subject.seal.digest},
    )
    for name, values in decoded.items():
        for block in store.missing_blocks(output.folder, name):
            store.write_block(output.folder, name, values[block.start : block.stop], block=block)
    return Made(f"{len(trials):,} test trials -> {len(image_ids):,} images")


def target_shape(experiment: Experiment, target: str) -> tuple[int, ...]:
    """Return the shape of one image's decoded target: leading tokens only, where so set."""
    shape = store.row_shape(outputs.features(experiment).folder, target)
    if target == "prompt_embeds" and experiment.features.tokens is not None:
        return (min(experiment.features.tokens, shape[0]), *shape[1:])
    return shape
