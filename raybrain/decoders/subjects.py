"""Several subjects in one network: an input layer each, one trunk; and a new subject on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raybrain import config
from raybrain.decoders.gradient import Task
from raybrain.decoders.normalisation import Floats, TargetScaler
from raybrain.decoders.trained import TrainedDecoder

if TYPE_CHECKING:
    from torch import nn

TRUNK = "trunk."
"""Names of the parameters that subjects share begin with this."""


@dataclass(frozen=True)
class SharedTask:
    """What a worker needs to fit one network to several subjects; used like a `Task`.

    Attributes
    ----------
    section : config.Backbone
    subjects : mapping of str to Task
        Each subject's own arrays, all with the same target scaler.
    """

    section: config.ResidualMLP | config.MindEye2
    subjects: Mapping[str, Task]

    @property
    def betas(self) -> Floats:
        """Rows of all subjects: the subject's number, then its betas; (row, 1 + widest)."""
        return _packed([task.betas[:] for task in self.subjects.values()])

    @property
    def validation_betas(self) -> Floats:
        """As ``betas``, of the validation images: (row, 1 + widest)."""
        return _packed([task.validation_betas for task in self.subjects.values()])

    @property
    def targets(self) -> Floats:
        """Standardised targets (row, varying dimension)."""
        return np.concatenate([task.targets[:] for task in self.subjects.values()])

    @property
    def validation_targets(self) -> Floats:
        """As ``targets``, of the validation images: (row, dimension)."""
        return np.concatenate([task.validation_targets for task in self.subjects.values()])

    @property
    def count(self) -> NDArray[np.int64]:
        """Repeats averaged in each training row, (row,)."""
        return np.concatenate([task.count for task in self.subjects.values()])

    def build(self, *, seed: int) -> nn.Module:
        """Return the untrained network.

        Parameters
        ----------
        seed : int
            Of the random weights.
        """
        import torch

        from raybrain.decoders.build import projection_of
        from raybrain.decoders.residual_mlp import SharedMLP

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return SharedMLP(
                voxels=[task.betas.shape[1] for task in self.subjects.values()],
                outputs=next(iter(self.subjects.values())).targets.shape[1],
                width=self.section.width,
                depth=self.section.depth,
                dropout=self.section.dropout,
                projection=projection_of(self.section),
            )

    def finish(self, network: nn.Module) -> dict[str, TrainedDecoder]:
        """Return an ordinary decoder for each subject, with its own layer and the shared trunk."""
        weights = network.state_dict()
        trunk = {name: value for name, value in weights.items() if name.startswith(TRUNK)}
        decoders = {}
        for number, (subject, task) in enumerate(self.subjects.items()):
            own = task.build(seed=0)
            layer = {
                f"enter.{name}": weights[f"enter.{number}.{name}"] for name in ("weight", "bias")
            }
            own.load_state_dict(layer | trunk)
            decoders[subject] = task.finish(own)
        return decoders


def _packed(betas: list[Floats]) -> Floats:
    widest = max(part.shape[1] for part in betas)
    packed = np.zeros((sum(map(len, betas)), 1 + widest), np.float32)
    start = 0
    for number, part in enumerate(betas):
        rows = packed[start : start + len(part)]
        rows[:, 0] = number
        rows[:, 1 : 1 + part.shape[1]] = part
        start += len(part)
    return packed


def shared_task(subjects: Mapping[str, Task]) -> SharedTask:
    """Return one task for several subjects, their targets standardised together.

    After the shared-subject models of MindEye2 (Scotti et al. 2024).

    Parameters
    ----------
    subjects : mapping of str to Task
        From `gradient_task`, one per subject, with the same section.

    Raises
    ------
    ValueError
        If the tasks differ in section or target dimensions.
    """
    first = next(iter(subjects.values()))
    for subject, task in subjects.items():
        if task.section != first.section or not isinstance(
            task.section, config.ResidualMLP | config.MindEye2
        ):
            raise ValueError(
                f"subjects can share a 'residual_mlp' or 'mindeye2' of one size; {subject} has "
                f"{task.section}"
            )
        if len(task.target_scaler.mean) != len(first.target_scaler.mean):
            raise ValueError(
                f"{subject} has {len(task.target_scaler.mean)} target dimensions, "
                f"others {len(first.target_scaler.mean)}"
            )
    assert isinstance(first.section, config.ResidualMLP | config.MindEye2)
    together = _pooled(list(subjects.values()))
    return SharedTask(
        section=first.section,
        subjects={name: _rescaled(task, to=together) for name, task in subjects.items()},
    )


def _pooled(tasks: list[Task]) -> TargetScaler:
    """Return the scaler of all subjects' targets, from the moments of each."""
    share = np.array([task.count.sum() for task in tasks], np.float64)
    share /= share.sum()
    means = np.stack([task.target_scaler.mean for task in tasks]).astype(np.float64)
    variances = np.stack([task.target_scaler.deviation for task in tasks]).astype(np.float64) ** 2
    mean = share @ means
    deviation = np.sqrt(share @ (variances + (means - mean) ** 2))
    varying = np.any([task.target_scaler.varying for task in tasks], axis=0)
    return TargetScaler(
        mean=mean.astype(np.float32),
        deviation=np.where(varying, deviation, 0.0).astype(np.float32),
        scale=float(np.sqrt(np.mean(deviation[varying] ** 2))),
        varying=varying,
    )


def _rescaled(task: Task, *, to: TargetScaler) -> Task:
    restore = task.target_scaler.restore
    return replace(
        task,
        targets=to.transform(restore(task.targets[:])),
        validation_targets=to.transform(restore(task.validation_targets)),
        target_scaler=to,
    )


def adapted_task(task: Task, *, trunk: TrainedDecoder) -> Task:
    """Return the task of a new subject that starts from the trunk of a fitted decoder.

    The input layer starts afresh, all else as in ``trunk``; everything is trained on. With an hour
    of data this is the way to use other subjects' many hours (Scotti et al. 2024).

    Parameters
    ----------
    task : Task
        From `gradient_task`, with the section of the trunk.
    trunk : TrainedDecoder
        Of another subject, the same target.

    Raises
    ------
    ValueError
        If the trunk is of another size.
    """
    if task.section != trunk.section:
        raise ValueError(f"the trunk is {trunk.section}, this decoder {task.section}")
    start = {name: value for name, value in trunk.parameters.items() if name.startswith(TRUNK)}
    return replace(_rescaled(task, to=trunk.targets), start=start)
