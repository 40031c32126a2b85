"""``predict``: the decoders meet the test trials."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from raybrain import outputs, store
from raybrain.config import InputError
from raybrain.stages import Made

if TYPE_CHECKING:
    from raybrain.config import Experiment
    from raybrain.outputs import Output
    from raybrain.tracking import Run


def work(experiment: Experiment, output: Output, run: Run) -> Made:
    """Write the decoded targets of every test image, its repeats averaged."""
    from raybrain.decoders import load_decoder

    subject = outputs.subject_store(experiment)
    opened = store.open_store(subject.folder, splits="test")
    run.set_tags({"opened_test_trials": "predict"})
    trials = opened.trials
    if trials.empty:
        raise InputError(
            f"{subject.folder} has no test trials; check 'split' in the catalog entry "
            f"{experiment.dataset} and that the sessions with test images are on disk"
        )
    decoded = {}
    for target, _ in outputs.targets(experiment):
        decoder = load_decoder(Path(outputs.decoder(experiment, target).folder))
        decoded[target] = decoder.predict(
            opened.betas(voxels=decoder.voxels),
            session=trials["session"].to_numpy(),
            image_id=trials["image_id"].to_numpy(),
        )
    image_ids = [str(image_id) for image_id in next(iter(decoded.values())).image_id]
    shapes = {name: target_shape(experiment, name) for name in decoded}
    store.create_rows(
        output.folder,
        {name: (shape, "float32") for name, shape in shapes.items()},
        image_ids=image_ids,
        rows_per_block=store.IMAGES_PER_CHUNK,
        attributes={"store": subject.seal.digest},
    )
    for name, predicted in decoded.items():
        values = predicted.values.reshape(len(image_ids), *shapes[name])
        for block in store.missing_blocks(output.folder, name):
            store.write_block(output.folder, name, values[block.start : block.stop], block=block)
    return Made(f"{len(trials):,} test trials -> {len(image_ids):,} images")


def target_shape(experiment: Experiment, target: str) -> tuple[int, ...]:
    """Return the shape of one image's decoded target: leading tokens only, where so set."""
    shape = store.row_shape(outputs.features(experiment).folder, target)
    if target == "prompt_embeds" and experiment.features.tokens is not None:
        return (min(experiment.features.tokens, shape[0]), *shape[1:])
    return shape
