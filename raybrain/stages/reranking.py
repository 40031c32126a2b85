"""The brain's choice among the samples of each test image, a row of its own in the table."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from raybrain import cluster, diffusion, outputs, store
from raybrain.decoders import prepare
from raybrain.reranking import fit_encoding, rerank
from raybrain.stages.drawing import SYSTEM, Sources
from raybrain.stages.fitting import image_rows

if TYPE_CHECKING:
    from raybrain.config import Experiment
    from raybrain.store import Block, SubjectStore


def chosen_samples(experiment: Experiment, *, test: SubjectStore) -> np.ndarray:
    """Return for each reconstructed image the number of the sample that its brain response fits.

    A linear encoding model from VAE latents to the voxels of all decoded ROIs is fitted on training
    and validation images; it predicts the response to every sample, and the sample whose prediction
    correlates best with the measured response is chosen. The images seen are not looked at.

    Parameters
    ----------
    experiment : Experiment
    test : SubjectStore
        The test trials.

    Returns
    -------
    ndarray of int, shape (image,)
        In the order of the reconstructions.
    """
    sources = Sources.of(experiment)
    drawn = outputs.reconstructions(experiment).folder
    image_ids = store.row_ids(drawn)
    choose = functools.partial(
        _chosen,
        sources,
        rois={roi for _, decode in outputs.targets(experiment) for roi in decode.rois},
        test=test,
        image_ids=image_ids,
        candidates=_latents_of_samples(experiment, folder=drawn, images=len(image_ids)),
    )
    return cluster.on_worker(choose, workers=experiment.resources.tasks, description="rerank").get()


def _chosen(
    sources: Sources,
    *,
    rois: set[str],
    test: SubjectStore,
    image_ids: list[str],
    candidates: np.ndarray,
) -> np.ndarray:
    training = store.open_store(sources.stimuli, splits="training")
    mask = test.mask(rois)
    examples = prepare(
        training.betas(voxels=mask),
        session=training.trials["session"].to_numpy(),
        image_id=image_rows(training),
    )
    shown = training.images.index[examples.image_id].tolist()
    latents = store.read_rows(sources.features, "latents", image_ids=shown)
    model = fit_encoding(
        latents.reshape(len(latents), -1), responses=examples.betas[:], count=examples.count
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


def _latents_of_samples(experiment: Experiment, *, folder: str, images: int) -> np.ndarray:
    """Return (image, sample, feature): the system's reconstructions through the VAE's encoder."""
    encoded = cluster.draw_units(
        SampleEncoder,
        store.blocks(images, size=store.IMAGES_PER_CHUNK),
        worker_arguments={"experiment": experiment, "folder": folder},
        workers=experiment.resources.generate,
        description="encode samples",
        size=lambda block: block.stop - block.start,
    )
    parts = dict(encoded)
    return np.concatenate([parts[start] for start in sorted(parts)])


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
        self.generator = diffusion.load_generator(experiment.generator)
        self.settings = experiment.features
        self.folder = folder
        self.image_ids = store.row_ids(folder)

    def __call__(self, block: Block) -> tuple[int, np.ndarray]:
        """Return where the block starts and its latents (image, sample, feature)."""
        image_ids = self.image_ids[block.start : block.stop]
        drawn = store.read_rows(self.folder, SYSTEM, image_ids=image_ids)
        images, samples = drawn.shape[:2]
        latents = diffusion.encode_images(
            self.generator,
            images=drawn.reshape(images * samples, *drawn.shape[2:]),
            resolution=self.settings.resolution,
            batch_size=self.settings.batch_size,
        )
        return block.start, latents.reshape(images, samples, -1)
