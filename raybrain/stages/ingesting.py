"""``ingest``: one task per chunk, which is a scan session where sessions are equally long."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from raybrain import cluster, datasets, outputs, store
from raybrain.config import InputError
from raybrain.stages import Made, say

if TYPE_CHECKING:
    from raybrain.config import Experiment
    from raybrain.datasets import Recording
    from raybrain.outputs import Output
    from raybrain.store import Block
    from raybrain.tracking import Run


def work(experiment: Experiment, output: Output, run: Run) -> Made:
    """Write the chunks of betas and stimuli that are missing from the store."""
    recording = datasets.open_recording(
        outputs.dataset_entry(experiment),
        root=outputs.dataset_root(experiment),
        subject=experiment.subject,
        settings=experiment.ingest,
    )
    for finding in recording.findings:
        say("", finding)
    first = recording.read_images([recording.images["image_id"].iloc[0]])[0]
    side = min(experiment.ingest.image_size, *first.shape[:2])
    store.create_store(output.folder, recording, side=side)
    tasks = functools.partial(cluster.map_tasks, workers=experiment.resources.tasks)
    tasks(
        functools.partial(_write_betas, recording=recording, path=output.folder),
        store.missing_blocks(output.folder, "betas"),
        description="ingest betas",
    )
    tasks(
        functools.partial(_write_pixels, recording=recording, path=output.folder, side=side),
        store.missing_blocks(output.folder, "image/pixels"),
        description="ingest stimuli",
    )
    findings = [*recording.findings, *_constant_voxels(output.folder, tasks=tasks)]
    for finding in findings[len(recording.findings) :]:
        say("", finding)
    trials, voxels = len(recording.trials), len(recording.voxels.index)
    sessions = recording.trials["session"].nunique()
    return Made(
        f"{trials:,} trials x {voxels:,} voxels in {sessions} sessions, "
        f"{len(recording.images):,} stimuli",
        {"sources": dict(recording.sources), "findings": findings},
    )


def _write_betas(block: Block, *, recording: Recording, path: str) -> None:
    session_of_row = recording.trials["session"].to_numpy()
    parts = []
    for session in np.unique(session_of_row[block.start : block.stop]):
        rows = np.flatnonzero(session_of_row == session)
        betas = recording.read_session(int(session))
        if betas.shape != (len(rows), len(recording.voxels.index)):
            raise InputError(
                f"session {session} of {recording.subject} holds {betas.shape[0]} trials x "
                f"{betas.shape[1]} voxels, but its tables say {len(rows)} x "
                f"{len(recording.voxels.index)}; get its files again"
            )
        if betas.dtype.kind == "f" and not np.isfinite(betas).all():
            raise InputError(
                f"session {session} of {recording.subject} has betas that are not finite; "
                f"leave out those voxels or repair the file"
            )
        parts.append(betas[(rows >= block.start) & (rows < block.stop)])
    store.write_block(path, "betas", np.concatenate(parts), block=block)


def _constant_voxels(path: str, *, tasks: Callable[..., list[Any]]) -> list[str]:
    """Return a sentence on voxels that never vary, such as those outside the field of view."""
    extremes = tasks(
        functools.partial(store.extreme_betas, path),
        store.beta_blocks(path),
        description="check betas",
    )
    lowest = np.min([low for low, _ in extremes], axis=0)
    highest = np.max([high for _, high in extremes], axis=0)
    constant = int((lowest == highest).sum())
    if not constant:
        return []
    return [f"{constant:,} of {len(lowest):,} voxels have the same beta in every trial"]


def _write_pixels(block: Block, *, recording: Recording, path: str, side: int) -> None:
    image_ids = recording.images["image_id"].iloc[block.start : block.stop].tolist()
    pixels = [_resized(image, side=side) for image in recording.read_images(image_ids)]
    store.write_block(path, "image/pixels", np.stack(pixels), block=block)


def _resized(image: np.ndarray, *, side: int) -> np.ndarray:
    if image.shape[:2] == (side, side):
        return image
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS))
