"""``export``: every reconstruction as a PNG file of its own."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import fsspec
from PIL import Image

from raybrain import cluster, outputs, store
from raybrain.stages import Made
from raybrain.stages.drawing import drawn_rows

if TYPE_CHECKING:
    from raybrain.config import Experiment
    from raybrain.outputs import Output
    from raybrain.store import Block
    from raybrain.tracking import Run


def work(experiment: Experiment, output: Output, run: Run) -> Made:
    """Write ``<row>/<image_id>_<sample>.png`` for every row of the reconstructions."""
    drawn = outputs.reconstructions(experiment).folder
    images = len(store.row_ids(drawn))
    written = 0
    for row in drawn_rows(experiment):
        written += sum(
            cluster.map_tasks(
                functools.partial(_write, drawn=drawn, row=row, folder=output.folder),
                store.blocks(images, size=store.IMAGES_PER_CHUNK),
                workers=experiment.resources.tasks,
                description=f"export {row}",
            )
        )
    return Made(f"{written:,} PNG files")


def _write(block: Block, *, drawn: str, row: str, folder: str) -> int:
    image_ids = store.row_ids(drawn)[block.start : block.stop]
    pictures = store.read_rows(drawn, row, image_ids=image_ids)
    for image_id, samples in zip(image_ids, pictures, strict=True):
        name = image_id.replace("/", "_")  # an id of one's own data may be a path
        for number, pixels in enumerate(samples):
            with fsspec.open(f"{folder}/{row}/{name}_{number}.png", "wb", auto_mkdir=True) as file:
                Image.fromarray(pixels).save(file, format="PNG")
    return pictures.shape[0] * pictures.shape[1]
