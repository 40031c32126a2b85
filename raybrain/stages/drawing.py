"""``reconstruct``: a pool of generators draws every sample of every test image."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raybrain import cluster, diffusion, evaluation, outputs, store
from raybrain.stages import Made, say

if TYPE_CHECKING:
    from raybrain.config import Experiment, Features, Reconstruct
    from raybrain.outputs import Output
    from raybrain.store import Block
    from raybrain.tracking import Run

SYSTEM = "system"
CEILING = "ceiling"
CATEGORY = "category"
Z_ONLY = "z"
E_ONLY = "e"
LAYERS = "image_features"
"""The target that gradient guidance looks at beside the embedding."""
COMPILED = "compiled"
"""Attribute of the reconstructions: whether the networks that drew them were compiled."""
SPREAD_ROWS = 256
"""Images whose features are held at once."""
OWN_MODE = frozenset({Z_ONLY, E_ONLY})
"""Rows drawn from the decoded targets in the mode that they are named after, whatever the system's
is."""


@dataclass(frozen=True)
class Unit:
    """Images of one row of the table that share batches and one file; fixed by the plan."""

    row: str
    block: Block


@dataclass(frozen=True)
class Sources:
    """Where a drawing comes from; found by the driver, as nodes may lack the dataset's entry."""

    stimuli: str
    """The subject's store."""
    features: str
    predictions: str
    targets: tuple[str, ...]

    @classmethod
    def of(cls, experiment: Experiment) -> Sources:
        """Return the stores of an experiment."""
        return cls(
            stimuli=outputs.subject_store(experiment).folder,
            features=outputs.features(experiment).folder,
            predictions=outputs.predictions(experiment).folder,
            targets=tuple(target for target, _ in outputs.targets(experiment)),
        )


@dataclass(frozen=True)
class Targets:
    """What a unit is drawn from."""

    latents: np.ndarray | None
    """(image, channel, y, x) float32."""
    prompt_embeds: np.ndarray | None
    """(image, token, width) float32, all tokens."""
    image_embeds: np.ndarray | None
    """(image, ...) float32."""
    image_features: diffusion.LayerTargets | None
    """What gradient guidance looks at beside the embedding, if anything."""


def work(experiment: Experiment, output: Output, run: Run) -> Made:
    """Draw the units that are missing from the reconstructions."""
    return _draw(
        experiment,
        output,
        run,
        rows=drawn_rows(experiment),
        image_ids=store.row_ids(outputs.predictions(experiment).folder),
        lineage={
            "decoders": {
                target: outputs.decoder(experiment, target).seal.digest
                for target, _ in outputs.targets(experiment)
            }
        },
    )


def ceiling_work(experiment: Experiment, output: Output, run: Run) -> Made:
    """Draw the ceiling alone, for which nothing has to be decoded."""
    opened = store.open_store(outputs.subject_store(experiment).folder, splits="test")
    run.set_tags({"opened_test_trials": "reconstruct"})
    return _draw(experiment, output, run, rows=(CEILING,), image_ids=opened.shown, lineage={})


def _draw(
    experiment: Experiment,
    output: Output,
    run: Run,
    *,
    rows: tuple[str, ...],
    image_ids: list[str],
    lineage: dict[str, object],
) -> Made:
    settings = experiment.reconstruct
    pixels = diffusion.drawn_pixels(
        experiment.generator, features=experiment.features, reconstruct=settings
    )
    total = len(image_ids) * sum(samples_of(settings, row=row) for row in rows)
    compiled = _compiled(experiment, output.folder, images=total)
    store.create_rows(
        output.folder,
        {row: ((samples_of(settings, row=row), pixels, pixels, 3), "uint8") for row in rows},
        image_ids=image_ids,
        rows_per_block={row: _images_of_unit(experiment, row=row) for row in rows},
        rows_per_chunk=1,
        attributes={**lineage, **_lineage(experiment), COMPILED: compiled},
    )
    units = [Unit(row, block) for row in rows for block in store.missing_blocks(output.folder, row)]
    if settings.guidance_interval is not None and units:
        say("reconstruct", _guided(experiment))
    if compiled and units:
        say("reconstruct", "compiles the generator first: about a minute on each node")
    left = sum(_images(unit, settings=settings) for unit in units)
    started, done = time.monotonic(), 0
    drawn = cluster.draw_units(
        Painter,
        units,
        worker_arguments={
            "experiment": _with_compiled(experiment, compiled),
            "sources": Sources.of(experiment),
            "folder": output.folder,
        },
        workers=experiment.resources.generate,
        overlapping=cluster.units_in_hand(experiment.resources.generate),
        description="reconstruct",
        size=lambda unit: _images(unit, settings=settings),
    )
    for step, images in enumerate(drawn, start=1):
        done += images
        rate = done / (time.monotonic() - started)
        run.log_metrics({"images": total - left + done, "images_per_second": rate}, step=step)
    names = " and ".join(rows) if len(rows) < 3 else f"{', '.join(rows[:-1])} and {rows[-1]}"
    samples = max(samples_of(settings, row=row) for row in rows)
    return Made(
        f"{len(image_ids):,} images, {samples} sample{'s' if samples > 1 else ''} each, of "
        f"{names}: {total:,} in all"
    )


class Painter:
    """Loads the generator once, then draws unit after unit straight into the store.

    Parameters
    ----------
    experiment : Experiment
        What to draw with and how.
    sources : Sources
        What to draw from.
    folder : str
        The reconstructions to write.
    """

    def __init__(self, *, experiment: Experiment, sources: Sources, folder: str) -> None:
        cluster.keep_freed_memory()
        self.experiment = experiment
        self.sources = sources
        self.folder = folder
        self.image_ids = store.row_ids(folder)
        self.worker = diffusion.DrawingWorker(
            generator=experiment.generator,
            reconstruct=experiment.reconstruct,
            seed=experiment.seed,
            threads=max(1, int(experiment.resources.generate.cpus)),
            rows=experiment.reconstruct.images_per_unit * experiment.reconstruct.samples,
        )

    def __call__(self, unit: Unit) -> int:
        """Draw and write one unit, and return its number of images."""
        image_ids = self.image_ids[unit.block.start : unit.block.stop]
        targets = targets_of(
            self.sources,
            row=unit.row,
            image_ids=image_ids,
            features=self.experiment.features,
        )
        drawing = self.worker(
            diffusion.DrawingUnit(
                image_ids=tuple(image_ids),
                samples=tuple(range(samples_of(self.experiment.reconstruct, row=unit.row))),
                latents=targets.latents,
                prompt_embeds=targets.prompt_embeds,
                image_embeds=targets.image_embeds,
                image_features=targets.image_features,
                settings=drawn_how(self.experiment.reconstruct, row=unit.row),
            )
        )
        store.write_block(self.folder, unit.row, drawing.images, block=unit.block)
        return _images(unit, settings=self.experiment.reconstruct)


def samples_of(settings: Reconstruct, *, row: str) -> int:
    """Return how often each image of a row is drawn: once shows what a reference gives."""
    return settings.samples if row == SYSTEM else 1


def _images_of_unit(experiment: Experiment, *, row: str) -> int:
    """Return how many images of a row share a batch.

    On a GPU batches of all rows are about equally large: small ones leave it idle, and a network
    that was compiled takes one size.
    """
    settings = experiment.reconstruct
    if not experiment.resources.generate.gpus:
        return settings.images_per_unit
    return settings.images_per_unit * (settings.samples // samples_of(settings, row=row))


def _compiled(experiment: Experiment, folder: str, *, images: int) -> bool:
    """Return whether workers compile the generator; what was begun goes on as it was begun."""
    begun = store.attributes_of(folder).get(COMPILED)
    if begun is not None:
        return bool(begun)
    workers = experiment.resources.generate
    return diffusion.pays(
        experiment.generator,
        reconstruct=experiment.reconstruct,
        images=images,
        workers=workers.max,
        on_gpu=workers.gpus > 0,
    )


def _guided(experiment: Experiment) -> str:
    """Return in which steps guidance acts: an interval may hold all of them, or none."""
    checkpoint = diffusion.find_checkpoint(experiment.generator)
    steps = diffusion.guided_steps(experiment.reconstruct, checkpoint.settings("scheduler"))
    return f"guidance acts in {sum(steps)} of {len(steps)} steps (reconstruct.guidance_interval)"


def _with_compiled(experiment: Experiment, compiled: bool) -> Experiment:
    """Return the experiment with ``generator.compile`` decided."""
    generator = experiment.generator.model_copy(update={"compile": compiled})
    return experiment.model_copy(update={"generator": generator})


def drawn_rows(experiment: Experiment) -> tuple[str, ...]:
    """Return the rows of the table that the generator draws."""
    return (SYSTEM, *experiment.reconstruct.references)


def drawn_how(settings: Reconstruct, *, row: str) -> Reconstruct:
    """Return the settings that a row is drawn with."""
    return settings.model_copy(update={"mode": row}) if row in OWN_MODE else settings


def targets_of(sources: Sources, *, row: str, image_ids: list[str], features: Features) -> Targets:
    """Return what the images of a row are drawn from.

    The system's are the decoded targets, and those of the rows in a mode of their own; the
    ceiling's the true ones, and the category's the mean latents with the mean embeddings of the
    true category, over training images. A row that is to show what one target gives is not guided
    by inner layers.
    """
    found = {
        target: _values(sources, row=row, target=target, image_ids=image_ids)
        for target in sources.targets
        if target != LAYERS or row not in OWN_MODE
    }
    if "prompt_embeds" in found:
        found["prompt_embeds"] = whole_prompts(
            found["prompt_embeds"],
            features=sources.features,
            training_ids=training_images(sources.stimuli),
        )
    layers = None
    if LAYERS in found:
        spread = _spread_of_training(sources.features, sources.stimuli)
        layers = diffusion.LayerTargets(found[LAYERS], spread=spread, features=features)
    return Targets(
        latents=found.get("latents"),
        prompt_embeds=found.get("prompt_embeds"),
        image_embeds=found.get("image_embeds"),
        image_features=layers,
    )


def layer_spread(features: str, *, image_ids: list[str]) -> diffusion.Spread:
    """Return how features of inner layers spread over images, few of which are held at once."""
    starts = range(0, len(image_ids), SPREAD_ROWS)
    return diffusion.Spread.of(
        store.read_rows(features, LAYERS, image_ids=image_ids[start : start + SPREAD_ROWS])
        for start in starts
    )


@functools.lru_cache(maxsize=4)
def _spread_of_training(features: str, stimuli: str) -> diffusion.Spread:
    # A worker draws unit after unit from the same stores, which are sealed.
    return layer_spread(features, image_ids=training_images(stimuli))


def whole_prompts(embeds: np.ndarray, *, features: str, training_ids: list[str]) -> np.ndarray:
    """Return prompts (image, token, width) with all tokens, those not decoded at their mean."""
    if embeds.shape[1] == store.row_shape(features, "prompt_embeds")[0]:
        return embeds
    mean = store.read_rows(features, "prompt_embeds", image_ids=training_ids).mean(axis=0)
    return diffusion.complete_prompt(embeds, mean=mean)


def training_images(stimuli: str) -> list[str]:
    """Return the image_ids of the training and validation trials of a store, ascending."""
    opened = store.open_store(stimuli, splits="training")
    return sorted(set(opened.trials["image_id"]))


def _values(sources: Sources, *, row: str, target: str, image_ids: list[str]) -> np.ndarray:
    features = sources.features
    if row == SYSTEM or row in OWN_MODE:
        return store.read_rows(sources.predictions, target, image_ids=image_ids)
    if row == CEILING:
        return store.read_rows(features, target, image_ids=image_ids)
    training_ids = training_images(sources.stimuli)
    truth = store.read_rows(features, target, image_ids=training_ids)
    if target == "latents":
        return np.repeat(truth.mean(axis=0, keepdims=True), len(image_ids), axis=0)
    opened = store.open_store(sources.stimuli, splits="training")
    group = opened.images["group"]
    return evaluation.category_means(
        truth, categories=group[training_ids].tolist(), wanted=group[image_ids].tolist()
    )


def _images(unit: Unit, *, settings: Reconstruct) -> int:
    return (unit.block.stop - unit.block.start) * samples_of(settings, row=unit.row)


def _lineage(experiment: Experiment) -> dict[str, object]:
    """Return where every image of this store comes from."""
    return {
        "store": outputs.subject_store(experiment).seal.digest,
        "generator": outputs.features(experiment).seal.inputs["the generator"],
        "seed": experiment.seed,
        **outputs.changes_of_generator(experiment),
        **{
            name: value
            for name, value in experiment.reconstruct.model_dump(mode="json").items()
            if value is not None or f"reconstruct.{name}" not in outputs.OPTIONAL
        },
    }
