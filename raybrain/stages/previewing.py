"""What a network decodes while it learns: latents of a few validation images, as pictures.

The worker that trains keeps what it predicts after epochs 1, 2, 4, 8 and so on and after the last;
when it is done, a generator turns them into pictures. So training waits for nothing.
"""

from __future__ import annotations

import functools
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from raybrain import cluster, diffusion, places, report
from raybrain.decoders import Task, predict_rows

if TYPE_CHECKING:
    from raybrain.config import Experiment, Generator
    from raybrain.store import SubjectStore
    from raybrain.tracking import Run

FOLDER = "previews"
SHARE = 3
"""One validation image for so many test images of ``tracking.pictures``."""


def count(experiment: Experiment) -> int:
    """Return how many validation images are followed, at least one where any are shown."""
    return -(-experiment.tracking.pictures // SHARE)


def is_look(epoch: int, *, last: bool) -> bool:
    """Return whether what is predicted after this epoch is kept."""
    return last or epoch & (epoch - 1) == 0


def keep(network: Any, task: Any, *, epoch: int, folder: str, images: int) -> None:
    """Write the targets (image, dimension) that a network predicts of the first validation rows.

    Of the averaged weights it is the network itself that is shown. Only for one subject's targets.
    """
    if not isinstance(task, Task) or not images:
        return
    was_training = network.training
    rows = predict_rows(network, task.validation_betas[:images])
    network.train(was_training)
    content = io.BytesIO()
    np.save(content, task.target_scaler.restore(rows).astype(np.float16))
    places.write_bytes(f"{folder}/{epoch:05d}.npy", content.getvalue())


def show(
    experiment: Experiment,
    run: Run,
    *,
    folder: str,
    opened: SubjectStore,
    shape: tuple[int, ...],
) -> None:
    """Show what was kept beside what was seen, the epoch as the step, and remove it.

    Parameters
    ----------
    experiment : Experiment
    run : Run
        The run that trained.
    folder : str
        From `keep`.
    opened : SubjectStore
        Whose validation images were predicted.
    shape : tuple of int
        Of one image's latents.
    """
    names = places.names(folder)
    if not names:
        return
    held_out = opened.trials[opened.trials["split"] == "validation"]
    rows = np.unique(opened.images.loc[held_out["image_id"], "row"].to_numpy())
    ids = opened.images.index.to_numpy()[rows[: count(experiment)]].tolist()
    (drawn,) = cluster.map_tasks(
        functools.partial(_pictures, folder=folder, shape=shape),
        [experiment.generator],
        workers=experiment.resources.generate,
        description="preview",
    )
    seen = opened.pixels(ids)
    for name, pictures in zip(names, drawn, strict=True):
        for image_id, truth, picture in zip(ids, seen, pictures, strict=False):
            both = {"seen": truth, "its latents": picture}
            run.log_image(
                report.side_by_side(both), f"validation/{image_id}", step=int(name.split(".")[0])
            )
    places.remove(folder)


def _pictures(settings: Generator, *, folder: str, shape: tuple[int, ...]) -> list[np.ndarray]:
    generator = diffusion.load_generator(settings, draws=False)
    found = []
    for name in places.names(folder):
        latents = np.load(io.BytesIO(places.read_bytes(f"{folder}/{name}")))
        latents = latents.astype(np.float32).reshape(len(latents), *shape)
        found.append(diffusion.decode_latents(generator, latents=latents))
    return found
