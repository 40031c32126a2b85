"""How much data an experiment is about: counted in its store, or as its catalog entry expects."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raybrain import outputs, seal, store
from raybrain.config import InputError
from raybrain.stages import drawing, encoding

if TYPE_CHECKING:
    from raybrain.catalog import CatalogEntry
    from raybrain.config import Decode, Experiment, Simulation

FLOAT = 4
"""Bytes of a target's number, and of a beta in memory."""
BETA = 2
"""Bytes of a beta in a store, at the least."""
PICTURE = 0.5
"""Share of a picture's bytes that compression leaves, about."""


@dataclass(frozen=True)
class Extent:
    """Counts of one subject; what is not known before ingest is None."""

    trials: int
    images: int | None = None
    training_images: int | None = None
    """Those of validation among them."""
    test_images: int | None = None
    validation_images: int | None = None
    voxels: int | None = None
    """Of all ROIs of the catalog entry together."""
    rois: dict[tuple[str, ...], int] | None = None
    """Voxels of each target's ROIs together."""


def extent_of(experiment: Experiment) -> Extent | None:
    """Return how much data the experiment's own subject has, None where nothing tells."""
    output = outputs.subject_store(experiment)
    if seal.status(output.folder, wanted=output.seal).state == "sealed":
        rois = {decode.rois for _, decode in outputs.targets(experiment)}
        return _counted(output.folder, tuple(sorted(rois)))
    if experiment.simulation is not None:
        return _simulated(experiment.simulation)
    return _expected(outputs.dataset_entry(experiment), experiment)


def gigabytes(experiment: Experiment, decode: Decode, *, dimensions: int) -> float | None:
    """Return the memory of raw betas and targets of all training trials of one target."""
    extent = extent_of(experiment)
    if extent is None or extent.rois is None or extent.rois.get(decode.rois) is None:
        return None
    return 1e-9 * FLOAT * extent.trials * (extent.rois[decode.rois] + dimensions)


def check_together(experiment: Experiment, sizes: Sequence[float]) -> None:
    """Raise `InputError` if subjects of so many gigabytes cannot be held together."""
    if sum(sizes) > experiment.training.memory:
        raise InputError(
            f"{sum(sizes):.1f} GB of {len(sizes)} subjects exceed training.memory="
            f"{experiment.training.memory:g}; raise it, or name fewer 'subjects'"
        )


def planned_bytes(experiment: Experiment, stage: str) -> int:
    """Return about how many bytes a stage writes, 0 where nothing tells; rather too few."""
    from raybrain import diffusion

    extent = extent_of(experiment)
    if extent is None:
        return 0
    images, tests = extent.images or 0, extent.test_images or 0
    if stage == "simulate" and experiment.simulation is not None:
        side = experiment.simulation.image_size
        return extent.trials * (extent.voxels or 0) * BETA + int(PICTURE * images * side**2 * 3)
    if stage == "ingest":
        return extent.trials * (extent.voxels or 0) * BETA
    if stage not in ("features", "reconstruct"):
        return 0
    if stage == "features":
        shapes = encoding.shapes_of(experiment, tokens=None)
        return FLOAT * images * sum(math.prod(shape) for shape in shapes.values())
    settings = experiment.reconstruct
    side = diffusion.drawn_pixels(
        experiment.generator, features=experiment.features, reconstruct=settings
    )
    samples = [drawing.samples_of(settings, row=row) for row in drawing.drawn_rows(experiment)]
    drawn = tests * sum(samples)
    return int(PICTURE * drawn * side**2 * 3)


@functools.lru_cache(maxsize=16)
def _counted(folder: str, rois: tuple[tuple[str, ...], ...]) -> Extent:
    # A sealed store never changes, so it is counted once.
    training = store.open_store(folder, splits="training")
    split = training.trials["split"]
    validation = training.trials["image_id"][split == "validation"]
    # The test trials stay closed: what is left of the images is theirs.
    tests = len(training.images) - training.trials["image_id"].nunique()
    return Extent(
        trials=len(training.trials),
        images=len(training.images),
        training_images=int(training.trials["image_id"].nunique()),
        test_images=tests,
        validation_images=int(validation.nunique()),
        voxels=len(training.voxels),
        rois={names: int(training.mask(names).sum()) for names in rois},
    )


@functools.lru_cache(maxsize=16)
def _simulated(settings: Simulation) -> Extent:
    from raybrain.simulation.schedule import choose_images

    chosen = choose_images(settings)
    images, tests = len(chosen.emoji), int(chosen.shared.sum())
    return Extent(
        trials=images * settings.repeats,
        images=images,
        training_images=images - tests,
        test_images=tests,
        voxels=settings.early_voxels + settings.ventral_voxels,
    )


def _expected(entry: CatalogEntry, experiment: Experiment) -> Extent | None:
    sessions = entry.expected("sessions", experiment.subject)
    per_session = entry.expected("trials_per_session")
    if sessions is None or per_session is None:
        return None
    sessions = min(sessions, experiment.ingest.sessions or sessions)
    published = {(name,): roi.published.get(experiment.subject) for name, roi in entry.rois.items()}
    return Extent(
        trials=sessions * per_session,
        rois={names: count for names, count in published.items() if count is not None},
    )
