"""``export``: every reconstruction as a PNG file of its own."""

from __future__ import annotations

import functools
import re
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
    files, root = fsspec.core.url_to_fs(folder)
    files.makedirs(f"{root}/{row}", exist_ok=True)
    for image_id, samples in zip(image_ids, pictures, strict=True):
        for number, pixels in enumerate(samples):
            path = f"{root}/{row}/{file_name(image_id)}_{number}.png"
            with files.open(path, "wb") as file:
                Image.fromarray(pixels).save(file, format="PNG")
    return pictures.shape[0] * pictures.shape[1]


def file_name(image_id: str) -> str:
    """Return an image_id as the name of a file, in no other folder, and another one for each.

    An id of one's own data may be a path; what is no letter of a file name becomes ``%`` and its
    code, as in addresses.
    """
    return re.sub(r'^\.|[%/\\:*?"<>|\x00-\x1f\x7f]', lambda one: f"%{ord(one[0]):02X}", image_id)
