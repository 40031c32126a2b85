"""Rows for a network that do not fit into memory, prepared on disk a few voxels at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from raybrain import store
from raybrain.decoders import Averaged, Examples, SessionScaler, above_ceiling, prepare, within
from raybrain.training import chunk_rows

if TYPE_CHECKING:
    from raybrain.config import Decode
    from raybrain.store import SubjectStore

COPIES = 4
"""Raw betas, z-scores, their means and what numpy needs on the way."""


@dataclass(frozen=True)
class TargetRows:
    """True targets (row, dimension), read from the features a slice of rows at a time."""

    truth: Callable[[np.ndarray], np.ndarray]
    """Row of an image in the store -> its target."""
    image_id: np.ndarray
    dimensions: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and dimensions."""
        return len(self.image_id), self.dimensions

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Return a slice of rows, all dimensions."""
        return self.truth(self.image_id[rows])


def prepare_on_disk(
    opened: SubjectStore,
    *,
    image_id: np.ndarray,
    train: np.ndarray,
    decode: Decode,
    mask: np.ndarray,
    dimensions: int,
    folder: str,
    memory: float,
) -> tuple[Examples, Averaged]:
    """Return training rows that lie below ``folder``, and validation rows in memory.

    They are the rows that `raybrain.decoders.prepare` makes: all its statistics belong to single
    voxels, so it is given a few voxels at a time.

    Parameters
    ----------
    opened : SubjectStore
        Training and validation trials.
    image_id, train : ndarray, shape (trial,)
        Row of each trial's image in the store, and whether it is a training trial.
    decode : Decode
    mask : ndarray of bool, shape (voxel,)
        Voxels of the target's ROIs.
    dimensions : int
        Of the target.
    folder : str
        Folder or URL that every node reaches.
    memory : float
        Gigabytes.
    """
    session = opened.trials["session"].to_numpy()
    ceiling = opened.voxels["noise_ceiling"].to_numpy()
    wanted = mask
    if decode.min_noise_ceiling > 0:
        wanted = above_ceiling(ceiling, minimum=decode.min_noise_ceiling, among=mask)
    voxels = np.flatnonzero(wanted)
    available = int(memory * 1e9)
    width = max(1, available // (COPIES * 4 * len(session)))
    rows_per_chunk = chunk_rows(4 * (len(voxels) + dimensions), memory=available)
    parts: list[Examples] = []
    validations: list[Averaged] = []
    names: list[str] = []
    for start in range(0, len(voxels), width):
        block = np.zeros_like(mask)
        block[voxels[start : start + width]] = True
        betas = opened.betas(voxels=block)
        part = prepare(
            betas[train],
            session=session[train],
            image_id=image_id[train],
            repeats=decode.repeats,
            rois={name: opened.rois[name][block] for name in decode.named_rois},
            xyz=opened.voxels[["x", "y", "z"]].to_numpy()[block],
        )
        validations.append(
            part.like(betas[~train], session=session[~train], image_id=image_id[~train])
        )
        names.append(f"betas/{start}")
        _write(folder, names[-1], part, rows_per_chunk=rows_per_chunk)
        parts.append(replace(part, betas=part.betas[:0]))
    first, scaler = parts[0], SessionScaler.join([part.scaler for part in parts])
    kept = np.zeros_like(mask)
    kept[voxels] = np.concatenate([part.voxels for part in parts])
    examples = Examples(
        betas=store.StoredRows(folder, tuple(names), (len(first.image_id), int(kept.sum()))),
        image_id=first.image_id,
        count=first.count,
        voxels=kept[mask],
        scaler=scaler,
        repeats=decode.repeats,
        rois={
            name: np.concatenate([part.rois[name] for part in parts]) for name in decode.named_rois
        },
        xyz=np.concatenate([part.xyz for part in parts if part.xyz is not None]),
        edges=within(opened.edges, kept),
    )
    validation = replace(
        validations[0], betas=np.concatenate([part.betas for part in validations], axis=1)
    )
    return examples, validation


def _write(folder: str, name: str, part: Examples, *, rows_per_chunk: int) -> None:
    rows, voxels = part.betas.shape
    store.create_rows(
        folder,
        {name: ((voxels,), "float32")},
        image_ids=[str(row) for row in part.image_id],
        rows_per_block=rows_per_chunk,
        attributes={},
    )
    for block in store.blocks(rows, size=rows_per_chunk):
        values = part.betas[block.start : block.stop]
        store.write_block(folder, name, values, block=block)
