"""A fitted decoder: from betas as stored to predicted targets, with every statistic it needs.

The folder that `TrainedDecoder.save` writes holds ``config.json``, ``decoder.safetensors`` and, for
ridge, the weights of each block of targets in a file of its own; `raybrain.decoders.sharing` lays
the same out for others.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from raybrain import config
from raybrain.config import InputError
from raybrain.decoders.examples import Examples
from raybrain.decoders.normalisation import (
    Averaged,
    Floats,
    Integers,
    SessionScaler,
    TargetScaler,
    average_repeats,
    fit_target_scaler,
)
from raybrain.decoders.pattern_kernel import PatternKernel, voxel_weights
from raybrain.decoders.ridge import (
    ALPHAS,
    RidgeFit,
    StoredWeights,
    Weights,
    fit_factor,
    predict_linear,
    read_weights,
    warn_at_edges,
)
from raybrain.decoders.ridge_arrays import Device
from raybrain.decoders.ridge_factor import Factor, factorise, factorise_kernel
from raybrain.decoders.sharing import read_arrays, weights_name
from raybrain.decoders.wiring import Wiring

if TYPE_CHECKING:
    from torch import nn

FORMAT = 1
ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Predicted:
    """Decoded targets.

    Attributes
    ----------
    image_id : ndarray of int64, shape (row,)
    values : ndarray of float32, shape (row, dimension)
        To draw from: each dimension about its training mean with the standard deviation of the
        training targets, if the decoder rescales; otherwise the estimates.
    estimates : ndarray of float32, shape (row, dimension)
        Least-squares predictions: score these with squared errors and R².
    count : ndarray of int64, shape (row,)
        Repeats averaged in a row.
    """

    image_id: NDArray[np.int64]
    values: Floats
    estimates: Floats
    count: NDArray[np.int64]


@dataclass(frozen=True)
class TrainedDecoder:
    """Predicts targets from the betas of the voxels it was prepared with.

    Attributes
    ----------
    section : config section
        ``decode.<target>.decoder`` of the experiment.
    voxels : ndarray of bool, shape (voxel,)
        Which of the given voxels are used.
    scaler : SessionScaler
        Of the voxels that are used.
    targets : TargetScaler
    gain : ndarray of float32, shape (dimension,)
        Standard deviation of the training targets over that of predictions for images that were
        held out of the fit.
    held_out_r2 : ndarray of float32, shape (dimension,)
        R² on those images; 0 for constant dimensions.
    parameters : mapping of str to ndarray of any shape
        By name: of the network, or the centre and penalties of ridge, and of a kernel its training
        patterns.
    blocks : tuple of Weights, shape (voxel, target) or (training row, target) each
        Weights of consecutive targets, linear in betas or rows of a kernel; ridge only.
    wiring : mapping of str to ndarray of any shape
        Order, nodes and graph of the voxels, as far as the network has any.
    """

    section: config.ClosedForm | config.NetworkDecoder
    voxels: NDArray[np.bool_]
    scaler: SessionScaler
    targets: TargetScaler
    gain: Floats
    held_out_r2: Floats
    parameters: Mapping[str, NDArray]
    blocks: tuple[Weights, ...] = ()
    wiring: Wiring = field(default_factory=dict)

    def predict(
        self,
        betas: NDArray,
        *,
        session: Integers,
        image_id: Integers,
        average: bool = True,
    ) -> Predicted:
        """Return the target decoded from each image's mean response, or from each trial.

        Parameters
        ----------
        betas : ndarray, shape (trial, voxel)
            The same voxels, in the same unit, as the decoder was prepared with.
        session, image_id : ndarray of int, shape (trial,)
            A session that was not seen in training is z-scored with pooled training statistics.
        average : bool
            Whether to average the repeats of an image (then rows are in ascending image order).

        Raises
        ------
        ValueError
            If there are other voxels than the decoder was prepared with.
        """
        if betas.ndim != 2 or betas.shape[1] != len(self.voxels):
            raise ValueError(
                f"betas should be (trial, {len(self.voxels)}), found {betas.shape}; "
                f"give the voxels of the ROIs the decoder was trained on"
            )
        standard = self.scaler.transform(betas[:, self.voxels], session=session)
        if average:
            rows = average_repeats(standard, image_id=image_id)
        else:
            ones = np.ones(len(standard), np.int64)
            rows = Averaged(betas=standard, image_id=np.asarray(image_id, np.int64), count=ones)
        estimates = self._estimate(rows.betas)
        values = estimates
        if self.section.rescale:
            values = self.targets.mean + self.gain * (estimates - self.targets.mean)
        return Predicted(
            image_id=rows.image_id, values=values, estimates=estimates, count=rows.count
        )

    def _estimate(self, standard: Floats) -> Floats:
        if isinstance(self.section, config.ClosedForm):
            return predict_linear(
                self._regressors(standard),
                centre=self.parameters["centre"],
                blocks=self.blocks,
                mean=self.targets.mean,
            )
        return self.targets.restore(predict_rows(self.network(), standard))

    def _regressors(self, standard: Floats) -> Floats:
        if not isinstance(self.section, config.KernelRidge):
            return standard
        kernel = PatternKernel.from_arrays(self.parameters, width=self.section.width)
        return kernel.rows(standard)

    def network(self) -> nn.Module:
        """Return the trained network in evaluation mode.

        Raises
        ------
        ValueError
            If the decoder is not a network.
        """
        import torch

        from raybrain.decoders.build import build_network

        if isinstance(self.section, config.ClosedForm):
            raise ValueError(f"'{self.section.kind}' is not a network; use predict")
        network = build_network(
            self.section,
            voxels=int(self.voxels.sum()),
            outputs=int(self.targets.varying.sum()),
            wiring=self.wiring,
            seed=0,
        )
        network.load_state_dict(
            {name: torch.from_numpy(np.array(value)) for name, value in self.parameters.items()}
        )
        return network.eval()

    def save(self, folder: str | Path) -> Path:
        """Write the decoder to ``folder`` and return it; a killed write leaves nothing there."""
        from safetensors.numpy import save_file

        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            save_file(
                {name: np.ascontiguousarray(array) for name, array in self.arrays().items()},
                part / "decoder.safetensors",
            )
            for number, block in enumerate(self.blocks):
                _save_weights(block, path=part / f"weights_{number:04}.safetensors")
            (part / "config.json").write_text(json.dumps(self.header(), indent=2) + "\n")
            part.chmod(0o755)
            if folder.exists():
                shutil.rmtree(folder)
            part.replace(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return folder

    def header(self) -> dict[str, Any]:
        """Return what is no array, as ``config.json`` has it."""
        return {
            "format": FORMAT,
            "decoder": self.section.model_dump(mode="json"),
            "target_scale": self.targets.scale,
            "voxels": int(self.voxels.sum()),
            "dimensions": len(self.targets.mean),
            "blocks": [_targets(block) for block in self.blocks],
        }

    def arrays(self) -> dict[str, NDArray]:
        """Return every array but the linear weights, by name, in the shapes of the attributes."""
        return {
            "voxels": self.voxels,
            "scaler.session": self.scaler.session,
            "scaler.mean": self.scaler.mean,
            "scaler.scale": self.scaler.scale,
            "scaler.pooled_mean": self.scaler.pooled_mean,
            "scaler.pooled_scale": self.scaler.pooled_scale,
            "targets.mean": self.targets.mean,
            "targets.deviation": self.targets.deviation,
            "targets.varying": self.targets.varying,
            "gain": self.gain,
            "held_out_r2": self.held_out_r2,
            **{f"parameters.{name}": array for name, array in self.parameters.items()},
            **{f"wiring.{name}": array for name, array in self.wiring.items()},
        }


def _targets(weights: Weights) -> int:
    return weights.targets if isinstance(weights, StoredWeights) else weights.shape[1]


def _save_weights(weights: Weights, *, path: Path) -> None:
    from safetensors.numpy import save_file

    if isinstance(weights, StoredWeights) and weights.name == StoredWeights.name:
        shutil.copyfile(weights.path, path)
    else:
        save_file({"weights": np.ascontiguousarray(read_weights(weights))}, path)


def load_decoder(folder: str | Path) -> TrainedDecoder:
    """Return a decoder that was saved or exported; linear weights stay on disk until used.

    Raises
    ------
    InputError
        If there is no decoder, or another version of the package wrote it.
    """
    from safetensors.numpy import load_file

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise InputError(f"there is no decoder in {folder}; train it first: raybrain train ...")
    header: dict[str, Any] = json.loads((folder / "config.json").read_text())
    if header["format"] != FORMAT:
        raise InputError(
            f"the decoder in {folder} has format {header['format']}, this version reads {FORMAT}; "
            f"train it again"
        )
    if (folder / "decoder.safetensors").is_file():
        arrays = load_file(folder / "decoder.safetensors")
        blocks = {
            number: StoredWeights(
                path=str(folder / f"weights_{number:04}.safetensors"), targets=targets
            )
            for number, targets in enumerate(header["blocks"])
        }
    else:
        arrays, files = _shared(folder)
        names = {number: weights_name(number) for number in range(len(header["blocks"]))}
        blocks = {
            number: StoredWeights(
                path=str(files[name]), targets=header["blocks"][number], name=name
            )
            for number, name in names.items()
        }
    return TrainedDecoder(
        section=TypeAdapter(config.Decoder).validate_python(header["decoder"]),
        voxels=arrays["voxels"],
        scaler=SessionScaler(
            session=arrays["scaler.session"],
            mean=arrays["scaler.mean"],
            scale=arrays["scaler.scale"],
            pooled_mean=arrays["scaler.pooled_mean"],
            pooled_scale=arrays["scaler.pooled_scale"],
        ),
        targets=TargetScaler(
            mean=arrays["targets.mean"],
            deviation=arrays["targets.deviation"],
            scale=header["target_scale"],
            varying=arrays["targets.varying"],
        ),
        gain=arrays["gain"],
        held_out_r2=arrays["held_out_r2"],
        parameters=_within(arrays, "parameters."),
        wiring=_within(arrays, "wiring."),
        blocks=tuple(blocks.values()),
    )


def _shared(folder: Path) -> tuple[dict[str, NDArray], dict[str, Path]]:
    try:
        return read_arrays(folder)
    except FileNotFoundError as error:
        raise InputError(
            f"the decoder in {folder} lacks a file ({error}); export or fetch it again"
        ) from None


def _within(arrays: Mapping[str, NDArray], prefix: str) -> dict[str, NDArray]:
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def train_ridge(
    examples: Examples, *, targets: NDArray, section: config.ClosedForm, device: Device = None
) -> TrainedDecoder:
    """Return a ridge decoder, each dimension at the penalty with the least held-out error.

    Warns when more than 5 % of the targets choose an end of the grid of penalties.

    Parameters
    ----------
    examples : Examples
        From `prepare`, given training and validation trials.
    targets : ndarray, shape (row, dimension)
        True targets of ``examples.image_id``.
    section : config.Ridge or config.KernelRidge
    device : str, optional
        Where torch computes, such as ``cuda``; NumPy does on the CPU when not given.
    """
    if len(np.unique(examples.image_id)) < len(examples.image_id):
        # The repeats of an image must be left out together; their weighted mean gives the same fit.
        averaged = average_repeats(examples.betas[:], image_id=examples.image_id)
        targets = targets[np.unique(examples.image_id, return_index=True)[1]]
        examples = replace(
            examples,
            betas=averaged.betas,
            image_id=averaged.image_id,
            count=averaged.count,
            repeats="average",
        )
    regressors = Regressors.of(examples, section=section, device=device)
    decoder = decoder_from_ridge(
        fit_factor(regressors.factor, targets=targets, alphas=penalties_of(section)),
        examples=examples,
        targets=fit_target_scaler(targets, count=examples.count),
        section=section,
        kernel=regressors.kernel,
    )
    warn_of_penalties(decoder)
    return decoder


def penalties_of(section: config.ClosedForm) -> tuple[float, ...]:
    """Return the grid of penalties of a decoder, in units of the mean eigenvalue."""
    return section.alphas or ALPHAS


def warn_of_penalties(decoder: TrainedDecoder) -> None:
    """Warn when the grid of penalties that a closed form chose from was too short.

    The smallest is no end of a kernel's grid: where patterns are alike to few others, the kernel
    itself shrinks.
    """
    assert isinstance(decoder.section, config.ClosedForm)
    warn_at_edges(
        decoder.parameters["alpha"],
        alphas=penalties_of(decoder.section),
        smallest=isinstance(decoder.section, config.Ridge),
    )


@dataclass(frozen=True)
class Regressors:
    """What ridge predicts from, the betas themselves or rows of a kernel, and their factor."""

    factor: Factor
    kernel: PatternKernel | None

    @classmethod
    def of(
        cls, examples: Examples, *, section: config.ClosedForm, device: Device = None
    ) -> Regressors:
        """Return those that a decoder's section asks for.

        Parameters
        ----------
        examples : Examples
            With ``rois`` and ``ceiling`` as far as a kernel's section uses them.
        section : config.Ridge or config.KernelRidge
        device : str, optional
            Where torch computes and the factor stays; NumPy does on the CPU when not given.
        """
        betas = examples.betas[:]
        if not isinstance(section, config.KernelRidge):
            return cls(factorise(betas, count=examples.count, device=device), None)
        kernel = PatternKernel.fit(
            betas,
            count=examples.count,
            weight=voxel_weights(examples, section=section),
            width=section.width,
        )
        among = kernel.rows(betas, device=device)
        return cls(factorise_kernel(among, count=examples.count, device=device), kernel)

    def on(self, device: Device) -> Regressors:
        """Return them with the factor on a device; see `Factor.on`."""
        return replace(self, factor=self.factor.on(device))

    def rows(self, betas: Floats) -> Floats:
        """Return what other z-scored betas (row, voxel) are predicted from.

        Parameters
        ----------
        betas : ndarray of float32, shape (row, voxel)
            Z-scores of the voxels that the examples have.

        Returns
        -------
        ndarray of float32, shape (row, voxel) or (row, training row)
            The betas themselves, or their kernel with the training rows.
        """
        return betas if self.kernel is None else self.kernel.rows(betas)


def wants_ceiling(section: config.Decoder) -> bool:
    """Return whether a decoder is fitted on `Examples.ceiling`."""
    return isinstance(section, config.KernelRidge) and section.ceiling_power > 0


def decoder_from_ridge(
    fit: RidgeFit,
    *,
    examples: Examples,
    targets: TargetScaler,
    section: config.ClosedForm,
    kernel: PatternKernel | None = None,
) -> TrainedDecoder:
    """Return the decoder of a ridge fit whose blocks may have been solved elsewhere."""
    kept = {} if kernel is None else kernel.arrays()
    return TrainedDecoder(
        section=section,
        voxels=examples.voxels,
        scaler=examples.scaler,
        targets=targets,
        gain=fit.gain,
        held_out_r2=fit.held_out_r2,
        parameters={"centre": fit.centre, "alpha": fit.alpha, **kept},
        blocks=fit.blocks,
    )


def predict_rows(network: nn.Module, standard: Floats) -> Floats:
    """Return what ``network`` predicts for z-scored betas: standardised targets (row, varying).

    Parameters
    ----------
    network : nn.Module
        Put into evaluation mode; it computes on the device where it lies.
    standard : ndarray of float32, shape (row, voxel)
        Z-scores of the voxels that the network is for.
    """
    import torch

    network.eval()
    device = next(network.parameters()).device
    parts = []
    with torch.inference_mode():
        for start in range(0, len(standard), ROWS_AT_ONCE):
            rows = torch.from_numpy(standard[start : start + ROWS_AT_ONCE]).to(device)
            parts.append(network(rows).float().cpu().numpy())
    return np.concatenate(parts)
