"""``export``: reconstructions as PNG files, a file each, or all in tensors for other scripts."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import fsspec
from PIL import Image

from raybrain import cluster, outputs, places, store
from raybrain.datasets.drawn import file_name
from raybrain.stages import Made
from raybrain.stages.drawing import drawn_rows, samples_of

if TYPE_CHECKING:
    from raybrain.config import Experiment
    from raybrain.outputs import Output
    from raybrain.store import Block
    from raybrain.tracking import Run

IDS = "image_ids.txt"


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


def tensors_work(experiment: Experiment, output: Output, run: Run) -> Made:
    """Write ``<row>_<sample>.pt`` and ``image_ids.txt``, as scripts that score others' sets read.

    Each file is one tensor (image, rgb, y, x), float32 in 0..1, images in ascending order of their
    ids: for NSD those of its shared images by nsdId.
    """
    drawn = outputs.reconstructions(experiment).folder
    image_ids = sorted(store.row_ids(drawn), key=_by_number)
    files = [
        (row, sample)
        for row in drawn_rows(experiment)
        for sample in range(samples_of(experiment.reconstruct, row=row))
    ]
    cluster.map_tasks(
        functools.partial(_write_tensor, drawn=drawn, image_ids=image_ids, folder=output.folder),
        files,
        workers=experiment.resources.tasks,
        description="export tensors",
        unit="tensors",
    )
    places.write_text(f"{output.folder}/{IDS}", "".join(f"{one}\n" for one in image_ids))
    return Made(f"{len(files)} tensors of {len(image_ids):,} images")


def _by_number(image_id: str) -> tuple[int, str]:
    return (int(image_id) if image_id.isascii() and image_id.isdigit() else 0, image_id)


def _write_tensor(which: tuple[str, int], *, drawn: str, image_ids: list[str], folder: str) -> None:
    import torch

    row, sample = which
    pixels = store.read_rows(drawn, row, image_ids=image_ids)[:, sample]
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float().div_(255.0)
    with places.writing(folder) as place:
        torch.save(tensor, place / f"{row}_{sample}.pt")
