"""``ingest``: one task per chunk, which is a scan session where sessions are equally long."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from raybrain import cluster, datasets, outputs, store
from raybrain.config import InputError, MeshGcn
from raybrain.datasets.pictures import as_square
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
    _check_rois(experiment, recording)
    _check_mesh(experiment, recording)
    tasks = functools.partial(cluster.map_tasks, workers=experiment.resources.tasks)
    side = _side(recording, most=experiment.ingest.image_size, tasks=tasks)
    store.create_store(output.folder, recording, side=side)
    tasks(
        functools.partial(_write_betas, recording=recording, path=output.folder),
        store.missing_blocks(output.folder, "betas"),
        description="ingest betas",
    )
    tasks(
        functools.partial(
            _write_pixels,
            recording=recording,
            path=output.folder,
            square=functools.partial(
                as_square,
                side=side,
                how=experiment.ingest.square,
                background=experiment.ingest.background,
            ),
        ),
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
        _check_betas(betas, name=f"session {session} of {recording.subject}")
        parts.append(betas[(rows >= block.start) & (rows < block.stop)])
    store.write_block(path, "betas", np.concatenate(parts), block=block)


def _check_betas(betas: np.ndarray, *, name: str) -> None:
    """Raise `InputError` if betas (trial, voxel) are no measurement."""
    if betas.dtype.kind == "f" and not np.isfinite(betas).all():
        raise InputError(
            f"{name} has betas that are not finite; leave out those voxels or repair the file"
        )
    silent = np.flatnonzero(~betas.any(axis=1))
    if len(silent):
        which = "every trial" if len(silent) == len(betas) else f"{len(silent)} of its trials"
        raise InputError(
            f"{name} is zero in every voxel in {which} (the first is trial {silent[0] + 1}); get "
            f"its files again, or leave those trials out of its tables"
        )
    if len(betas) > 1 and (betas == betas[0]).all():
        raise InputError(f"{name} has the same betas in all trials; get its files again")


def _check_rois(experiment: Experiment, recording: Recording) -> None:
    """Raise `InputError` if a target is to be decoded from an ROI without voxels."""
    empty = {name for name, mask in recording.rois.items() if not mask.any()}
    for target, decode in outputs.targets(experiment):
        for roi in decode.rois:
            if roi in empty:
                known = ", ".join(name for name in recording.rois if name not in empty)
                raise InputError(
                    f"'decode.{target}.rois' has {roi}, which holds no voxel of "
                    f"{recording.subject}; choose from {known}"
                )


def _check_mesh(experiment: Experiment, recording: Recording) -> None:
    """Raise `InputError` if a decoder needs neighbours on a surface and they are not known."""
    surface = recording.surface
    if surface is not None and surface.edges is not None:
        return
    for target, decode in outputs.targets(experiment):
        if isinstance(decode.decoder, MeshGcn):
            where = f"'decode.{target}.decoder' is mesh_gcn, but the voxels of {recording.subject}"
            raise InputError(
                f"{where} lie in a volume of {recording.dataset}, which has no mesh; choose "
                f"roi_graph or another decoder"
                if surface is None
                else f"{where} have no mesh here; get the surface files that 'raybrain plan' names"
            )


def _side(recording: Recording, *, most: int, tasks: Callable[..., list[Any]]) -> int:
    """Return the pixels along one side of the stored stimuli; see ``ingest.image_size``."""
    image_ids = recording.images["image_id"].tolist()
    first = min(recording.read_images(image_ids[:1])[0].shape[:2])
    if recording.read_sides is None or first >= most:
        return min(first, most)
    size = store.IMAGES_PER_CHUNK
    parts = [image_ids[start : start + size] for start in range(0, len(image_ids), size)]
    found = tasks(recording.read_sides, parts, description="look at stimuli")
    return min(max(max(sides) for sides in found), most)


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


def _write_pixels(
    block: Block,
    *,
    recording: Recording,
    path: str,
    square: Callable[[np.ndarray], np.ndarray],
) -> None:
    image_ids = recording.images["image_id"].iloc[block.start : block.stop].tolist()
    pixels = [square(image) for image in recording.read_images(image_ids)]
    store.write_block(path, "image/pixels", np.stack(pixels), block=block)
