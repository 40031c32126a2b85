"""``predict``: the decoders meet the test trials."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raybrain import cluster, outputs, places, store
from raybrain.config import InputError
from raybrain.decoders import MESH, load_decoder, within
from raybrain.diffusion import noise_seed
from raybrain.stages import Made
from raybrain.stages.fitting_data import DECODER, PRIOR, REFERENCE, image_rows

if TYPE_CHECKING:
    from raybrain.config import Experiment
    from raybrain.decoders import Predicted, TrainedDecoder
    from raybrain.outputs import Output
    from raybrain.store import SubjectStore
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
    image_ids = opened.shown
    decodings = [
        _Decoding(
            target=target,
            rois=decode.rois,
            shape=target_shape(experiment, target),
            folders=_decoders(outputs.decoder(experiment, target).folder),
            seed=experiment.seed,
        )
        for target, decode in outputs.targets(experiment)
    ]
    of_images = {name: one.shape for one in decodings for name in one.names}
    of_trials = {one.target: one.shape for one in decodings}
    for folder, ids, shapes, dimension in (
        (output.folder, image_ids, of_images, "image"),
        (f"{output.folder}/{TRIALS}", trials["image_id"].tolist(), of_trials, "trial"),
    ):
        store.create_rows(
            folder,
            {name: (shape, "float32") for name, shape in shapes.items()},
            image_ids=ids,
            rows_per_block=store.IMAGES_PER_CHUNK,
            attributes={"store": subject.seal.digest},
            dimension=dimension,
        )
    cluster.map_tasks(
        functools.partial(_decode, opened=opened, folder=output.folder),
        decodings,
        workers=experiment.resources.tasks,
        description="predict",
        unit="targets",
    )
    return Made(f"{len(trials):,} test trials -> {len(image_ids):,} images")


@dataclass(frozen=True)
class _Decoding:
    """A target to decode, on whatever node."""

    target: str
    rois: tuple[str, ...]
    shape: tuple[int, ...]
    folders: Mapping[str, str]
    """`DECODER`, `REFERENCE` where ridge was fitted beside a network, `PRIOR` -> its folder."""
    seed: int
    """Of what a prior draws."""

    @property
    def names(self) -> list[str]:
        """Names of what is predicted of images."""
        groups = [ESTIMATES, RIDGE] if REFERENCE in self.folders else [ESTIMATES]
        return [self.target, *(f"{group}/{self.target}" for group in groups)]


def _decoders(folder: str) -> dict[str, str]:
    found = {name: f"{folder}/{name}" for name in (DECODER, REFERENCE, PRIOR)}
    return {name: place for name, place in found.items() if places.exists(place)}


def _decode(decoding: _Decoding, *, opened: SubjectStore, folder: str) -> None:
    """Write the predictions of one target."""
    betas = opened.betas(voxels=opened.mask(decoding.rois))
    told: dict[str, Any] = {
        "session": opened.trials["session"].to_numpy(),
        "image_id": image_rows(opened),
    }
    target, write = decoding.target, functools.partial(_write, shape=decoding.shape)
    with places.reading(decoding.folders[DECODER]) as saved:
        decoder = load_decoder(saved)
        _check_mesh(decoder, decoding, opened=opened)
        predicted = decoder.predict(betas, **told)
        single = decoder.predict(betas, **told, average=False)
    values = predicted.values
    if PRIOR in decoding.folders:
        values = _drawn_from_prior(decoding, predicted, opened=opened)
    write(folder, target, values)
    write(folder, f"{ESTIMATES}/{target}", predicted.estimates)
    write(f"{folder}/{TRIALS}", target, single.estimates)
    if REFERENCE in decoding.folders:
        with places.reading(decoding.folders[REFERENCE]) as saved:
            ridge = load_decoder(saved).predict(betas, **told)
        write(folder, f"{RIDGE}/{target}", ridge.estimates)


def _check_mesh(decoder: TrainedDecoder, decoding: _Decoding, *, opened: SubjectStore) -> None:
    """Raise `InputError` if a decoder was fitted on neighbours that are not the store's."""
    trained = decoder.wiring.get(MESH)
    if trained is None:
        return
    found = within(within(opened.edges, opened.mask(decoding.rois)), decoder.voxels)
    if found is None or not np.array_equal(found, trained):
        raise InputError(
            f"the decoder of {decoding.target} knows other neighbours than the store at "
            f"{opened.group.store_path} has, so its voxels are others or in another order; train "
            f"it again"
        )


def _drawn_from_prior(
    decoding: _Decoding, predicted: Predicted, *, opened: SubjectStore
) -> np.ndarray:
    from raybrain.decoders.prior import load_prior  # imports torch

    ids = opened.images.index[predicted.image_id].tolist()
    seeds = [noise_seed(seed=decoding.seed, image_id=image_id, sample=-1) for image_id in ids]
    with places.reading(decoding.folders[PRIOR]) as saved:
        return load_prior(saved).draw(predicted.estimates, seeds=seeds)


def _write(folder: str, name: str, values: np.ndarray, *, shape: tuple[int, ...]) -> None:
    rows = values.reshape(len(values), *shape)
    for block in store.missing_blocks(folder, name):
        store.write_block(folder, name, rows[block.start : block.stop], block=block)


def target_shape(experiment: Experiment, target: str) -> tuple[int, ...]:
    """Return the shape of one image's decoded target: leading tokens only, where so set."""
    shape = store.row_shape(outputs.features(experiment).folder, target)
    if target == "prompt_embeds" and experiment.features.tokens is not None:
        return (min(experiment.features.tokens, shape[0]), *shape[1:])
    return shape
