"""The brain's choice among the samples of each test image, a row of its own in the table."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from raybrain import cluster, diffusion, outputs, store
from raybrain.decoders import prepare
from raybrain.reranking import fit_encoding, nearest_sample, rerank, side_by_side
from raybrain.stages.drawing import SYSTEM, Sources, training_images
from raybrain.stages.fitting_data import image_rows

if TYPE_CHECKING:
    from raybrain.config import Experiment
    from raybrain.store import Block, SubjectStore


def chosen_samples(experiment: Experiment, *, test: SubjectStore) -> dict[str, np.ndarray]:
    """Return for each reconstructed image the number of the sample that the brain prefers.

    ``encoding``: a linear encoding model from VAE latents, and image embeddings where they are
    decoded, to the voxels of all decoded ROIs is fitted on training and validation images; it
    predicts the response to every sample, and the sample whose prediction correlates best with the
    measured response is chosen. ``embedding``: the sample whose image embedding is nearest the
    decoded one is chosen. The images seen are not looked at.

    Parameters
    ----------
    experiment : Experiment
    test : SubjectStore
        The test trials.

    Returns
    -------
    dict of str to ndarray of int, shape (image,)
        By the names in ``evaluate.rerank``; images in the order of the reconstructions.
    """
    sources = Sources.of(experiment)
    drawn = outputs.reconstructions(experiment).folder
    image_ids = store.row_ids(drawn)
    samples = _encoded_samples(experiment, folder=drawn, images=len(image_ids))
    choices = {
        "encoding": functools.partial(
            _by_encoding,
            sources,
            rois={roi for _, decode in outputs.targets(experiment) for roi in decode.rois},
            test=test,
            image_ids=image_ids,
            samples=samples,
        ),
        "embedding": functools.partial(
            _by_embedding, sources, image_ids=image_ids, samples=samples
        ),
    }
    return {
        name: cluster.on_worker(
            choices[name], workers=experiment.resources.tasks, description=f"rerank by {name}"
        ).get()
        for name in experiment.evaluate.rerank
    }


def _by_embedding(
    sources: Sources, *, image_ids: list[str], samples: dict[str, np.ndarray]
) -> np.ndarray:
    training_ids = training_images(sources.stimuli)
    return nearest_sample(
        samples["image_embeds"],
        decoded=store.read_rows(sources.predictions, "image_embeds", image_ids=image_ids),
        training=store.read_rows(sources.features, "image_embeds", image_ids=training_ids),
    )


def _by_encoding(
    sources: Sources,
    *,
    rois: set[str],
    test: SubjectStore,
    image_ids: list[str],
    samples: dict[str, np.ndarray],
) -> np.ndarray:
    training = store.open_store(sources.stimuli, splits="training")
    mask = test.mask(rois)
    examples = prepare(
        training.betas(voxels=mask),
        session=training.trials["session"].to_numpy(),
        image_id=image_rows(training),
    )
    shown = training.images.index[examples.image_id].tolist()
    seen = {kind: store.read_rows(sources.features, kind, image_ids=shown) for kind in samples}
    features, candidates = side_by_side(seen, samples)
    model = fit_encoding(
        features, responses=examples.betas[:], count=examples.count, device=cluster.gpu()
    )
    measured = examples.like(
        test.betas(voxels=mask),
        session=test.trials["session"].to_numpy(),
        image_id=image_rows(test),
    )
    position = {row: place for place, row in enumerate(measured.image_id.tolist())}
    rows = test.images.loc[image_ids, "row"]
    return rerank(
        model,
        candidates=candidates,
        responses=measured.betas[[position[row] for row in rows]],
    ).chosen


def _encoded_samples(experiment: Experiment, *, folder: str, images: int) -> dict[str, np.ndarray]:
    """Return target to (image, sample, ...): the system's reconstructions, encoded again."""
    encoded = cluster.draw_units(
        SampleEncoder,
        store.blocks(images, size=store.IMAGES_PER_CHUNK),
        worker_arguments={"experiment": experiment, "folder": folder},
        workers=experiment.resources.generate,
        overlapping=cluster.units_in_hand(experiment.resources.generate),
        description="encode samples",
        size=lambda block: block.stop - block.start,
    )
    parts = dict(encoded)
    ordered = [parts[start] for start in sorted(parts)]
    return {kind: np.concatenate([part[kind] for part in ordered]) for kind in ordered[0]}


class SampleEncoder:
    """Loads the generator once and encodes block after block of reconstructions.

    Parameters
    ----------
    experiment : Experiment
        Its generator and features sections.
    folder : str
        The reconstructions.
    """

    def __init__(self, *, experiment: Experiment, folder: str) -> None:
        self.generator = diffusion.load_generator(experiment.generator, draws=False)
        self.settings = experiment.features
        self.latents = "encoding" in experiment.evaluate.rerank
        self.embeds = experiment.decode.image_embeds is not None
        self.folder = folder
        self.image_ids = store.row_ids(folder)

    def __call__(self, block: Block) -> tuple[int, dict[str, np.ndarray]]:
        """Return where the block starts and its targets (image, sample, ...) by name."""
        image_ids = self.image_ids[block.start : block.stop]
        drawn = store.read_rows(self.folder, SYSTEM, image_ids=image_ids)
        images, samples = drawn.shape[:2]
        flat = drawn.reshape(images * samples, *drawn.shape[2:])
        size = self.settings.batch_size
        found = {}
        if self.latents:
            found["latents"] = diffusion.encode_images(
                self.generator,
                images=flat,
                resolution=self.settings.resolution,
                batch_size=size,
            )
        if self.embeds:
            found["image_embeds"] = diffusion.embed_images(
                self.generator, images=flat, batch_size=size
            )
        return block.start, {
            kind: values.reshape(images, samples, *values.shape[1:])
            for kind, values in found.items()
        }
