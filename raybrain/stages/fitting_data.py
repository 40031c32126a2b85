"""What a decoder is fitted on: one target of one subject, before anything is done with it."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from raybrain import cluster, outputs, store
from raybrain.config import Ridge

if TYPE_CHECKING:
    from collections.abc import Callable

    from raybrain.cluster import Shared
    from raybrain.config import Decode, Experiment
    from raybrain.store import SubjectStore


Value = TypeVar("Value")

DECODER = "decoder"
"""Folder of the fitted decoder within the stage's output."""
OTHERS = "others"
"""Folder of the decoders of the other subjects that trained with this one."""
PRIOR = "prior"
"""Folder of the diffusion prior that follows the decoder."""
REFERENCE = "reference"
"""Folder of ridge on the same voxels, beside a network."""


@dataclass(frozen=True)
class Data:
    """One target of one subject, before anything is fitted; may be sent to any node."""

    experiment: Experiment
    target: str
    decode: Decode
    opened: SubjectStore
    """Training and validation trials."""
    features: str
    """The store of targets."""

    @classmethod
    def of(cls, experiment: Experiment, target: str, decode: Decode) -> Data:
        """Return the data of one target of an experiment."""
        folder = outputs.subject_store(experiment).folder
        opened = store.open_store(folder, splits="training")
        if decode.sessions is not None:
            session = opened.trials["session"]
            first = np.unique(session)[: decode.sessions]
            opened = replace(opened, trials=opened.trials[session.isin(first)])
        if decode.training is not None:
            experiment = experiment.model_copy(update={"training": decode.training})
        return cls(experiment, target, decode, opened, outputs.features(experiment).folder)

    @property
    def mask(self) -> np.ndarray:
        """(voxel,) those of the target's ROIs."""
        return self.opened.mask(self.decode.rois)

    @property
    def session(self) -> np.ndarray:
        """(trial,) scan sessions."""
        return self.opened.trials["session"].to_numpy()

    def truth(self, rows: np.ndarray) -> np.ndarray:
        """Return the targets of images given by row of the store, or for the control others'."""
        return self.true_targets(self.dealt(rows))

    @property
    def true_targets(self) -> Callable[[np.ndarray], np.ndarray]:
        """Rows of the store -> `targets_of` them."""
        return functools.partial(
            targets_of,
            features=self.features,
            target=self.target,
            tokens=self.experiment.features.tokens,
            opened=self.opened,
        )

    def dealt(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows themselves, or for the control in an order that means nothing."""
        if not self.decode.shuffled:
            return rows
        return np.random.default_rng(self.experiment.seed).permutation(rows)

    @property
    def gigabytes(self) -> float:
        """Memory of the raw betas and the targets of all trials."""
        trials = len(self.opened.trials)
        return 4e-9 * trials * (int(self.mask.sum()) + self.dimensions)

    @property
    def dimensions(self) -> int:
        """Of the target."""
        return self.truth(image_rows(self.opened)[:1]).shape[1]

    @property
    def exceeds_memory(self) -> bool:
        """Whether betas and targets are to be streamed."""
        return self.gigabytes > self.experiment.training.memory

    @property
    def wants_reference(self) -> bool:
        """Whether ridge is fitted beside the decoder; ridge always holds its data."""
        other = not isinstance(self.decode.decoder, Ridge)
        return other and self.decode.reference and not self.exceeds_memory


def targets_of(
    rows: np.ndarray, *, features: str, target: str, tokens: int | None, opened: SubjectStore
) -> np.ndarray:
    """Return the true targets (image, dimension) float32 of images given by row of the store.

    Parameters
    ----------
    rows : ndarray of int, shape (image,)
    features : str
        The store of targets.
    target : str
    tokens : int or None
        Leading tokens of the prompt embeddings; all when None.
    opened : SubjectStore
    """
    image_ids = opened.images.index.to_numpy()[rows].tolist()
    values = store.read_rows(features, target, image_ids=image_ids)
    if target == "prompt_embeds" and tokens is not None:
        values = values[:, :tokens]
    return values.reshape(len(values), -1)


def image_rows(opened: SubjectStore) -> np.ndarray:
    """Return for each visible trial the row of its image in the store."""
    return opened.images.loc[opened.trials["image_id"], "row"].to_numpy()


def on_worker(make: Callable[[], Value], data: Data, *, description: str) -> Shared[Value]:
    """Do with a target's data on a worker what the driver's node need not have the memory for."""
    return cluster.on_worker(
        make,
        workers=data.experiment.resources.tasks,
        description=f"{description} {data.target}",
    )
