"""``features``: targets from the generator's own encoders, one row per stimulus."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from raybrain import cluster, diffusion, outputs, plugins, store
from raybrain.config import InputError, extension
from raybrain.stages import Made

if TYPE_CHECKING:
    from raybrain.config import Experiment
    from raybrain.outputs import Output
    from raybrain.store import Block
    from raybrain.tracking import Run


def work(experiment: Experiment, output: Output, run: Run) -> Made:
    """Encode the blocks of stimuli that are missing from the features."""
    stimuli = outputs.subject_store(experiment).folder
    image_ids = store.open_store(stimuli, splits="training").images.index.tolist()
    # All tokens are kept: which ones are decoded is the decoder's affair, not the stimuli's.
    made = shapes_of(experiment, tokens=None)
    store.create_rows(
        output.folder,
        {name: (shape, "float32") for name, shape in made.items()},
        image_ids=image_ids,
        rows_per_block=store.IMAGES_PER_CHUNK,
        attributes={"generator": output.seal.inputs["the generator"]},
    )
    missing = {block for name in made for block in store.missing_blocks(output.folder, name)}
    encoded = cluster.draw_units(
        Encoder,
        sorted(missing, key=lambda block: block.start),
        worker_arguments={"experiment": experiment, "stimuli": stimuli, "folder": output.folder},
        workers=experiment.resources.generate,
        overlapping=cluster.units_in_hand(experiment.resources.generate),
        description="features",
        size=lambda block: block.stop - block.start,
        unit="stimuli",
    )
    for _ in encoded:
        pass
    described = ", ".join(
        f"{name.replace('_embeds', ' embeddings').replace('_', ' ')} {_by(shape)}"
        for name, shape in made.items()
    )
    return Made(f"{len(image_ids):,} stimuli -> {described}")


def shapes_of(experiment: Experiment, *, tokens: int | None) -> dict[str, tuple[int, ...]]:
    """Return target to the shape of one stimulus's, of all that can be made for an experiment.

    Parameters
    ----------
    experiment : Experiment
    tokens : int or None
        Leading text tokens, or all of them.
    """
    whole = experiment.features.model_copy(update={"tokens": tokens})
    shapes = diffusion.target_shapes(experiment.generator, features=whole)
    own = {name: getattr(shapes, name) for name in type(experiment.decode).model_fields}
    others = {name: other_target(name).SHAPE for name in experiment.decode.others}
    return {name: shape for name, shape in (own | others).items() if shape is not None}


Pictures: TypeAlias = Sequence[np.ndarray] | np.ndarray


class Encoder:
    """Loads the generator once and writes block after block of targets, several at a time.

    Parameters
    ----------
    experiment : Experiment
        Its generator and features sections.
    stimuli, folder : str
        The subject's store, and the features to write.
    """

    def __init__(self, *, experiment: Experiment, stimuli: str, folder: str) -> None:
        self.generator = diffusion.load_generator(experiment.generator, draws=False)
        self.settings = experiment.features
        self.others = experiment.decode.others
        self.opened = store.open_store(stimuli, splits="training")
        self.folder = folder
        self._others_alone = threading.Lock()

    def __call__(self, block: Block) -> int:
        """Write the targets of the stimuli in ``block`` and return how many there were."""
        images = self.opened.images.iloc[block.start : block.stop]
        pixels = self.opened.pixels(images.index.tolist())
        latents = diffusion.encode_images(
            self.generator,
            images=pixels,
            resolution=self.settings.resolution,
            batch_size=self.settings.batch_size,
        )
        embeds = diffusion.encode_captions(self.generator, captions=images["captions"].tolist())
        store.write_block(self.folder, "latents", latents, block=block)
        store.write_block(self.folder, "prompt_embeds", embeds, block=block)
        if self.generator.image is not None:
            seen, layers = diffusion.see_images(
                self.generator, images=pixels, features=self.settings
            )
            store.write_block(self.folder, "image_embeds", seen, block=block)
            if layers is not None:
                store.write_block(self.folder, "image_features", layers, block=block)
        for name in self.others:
            with self._others_alone:  # what other packages add need not know of threads
                found = _encoded(name, pixels=pixels, captions=images["captions"].tolist())
            store.write_block(self.folder, name, found, block=block)
        return len(images)


def other_target(name: str) -> Any:
    """Return what another package adds under a target's name: ``SHAPE`` and ``encode``.

    Raises
    ------
    InputError
        If it has none of these.
    """
    found = extension(plugins.TARGETS, name)
    shape = getattr(found, "SHAPE", None)
    sizes = isinstance(shape, tuple) and all(isinstance(n, int) and n > 0 for n in shape)
    if not (sizes and shape and callable(getattr(found, "encode", None))):
        raise InputError(
            f"the target '{name}' of {plugins.version(plugins.TARGETS, name)} has no SHAPE, a "
            f"tuple of lengths, or no encode(images, captions); mend it"
        )
    return found


def _encoded(name: str, *, pixels: Pictures, captions: list[tuple[str, ...]]) -> np.ndarray:
    target = other_target(name)
    found = np.asarray(target.encode(pixels, captions), np.float32)
    wanted = (len(pixels), *target.SHAPE)
    if found.shape != wanted or not np.isfinite(found).all():
        raise InputError(
            f"the target '{name}' of {plugins.version(plugins.TARGETS, name)} gives an array of "
            f"shape {found.shape}, where finite numbers of shape {wanted} are expected; mend it"
        )
    return found


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
