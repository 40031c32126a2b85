"""Diffusion prior: from a decoded embedding to one that a picture could have.

A regression gives the mean of all embeddings that fit a brain response, which is shorter than any
of them and may lie where no picture does. The prior draws one of them: it learns to denoise true
embeddings given what a decoder would make of them, predicts the clean embedding, and samples with
classifier-free guidance in a few steps (Ramesh et al. 2022, sec. 2.2; Scotti et al. 2023).

What a decoder would make of a training embedding is not what it makes of one: it has seen them. So
the condition is made from the decoder's held-out R² per dimension, r: the posterior mean r x +
sqrt(r (1 - r)) n of a standardised value x behind Gaussian noise has that R² with x, and the
variance r of a least-squares prediction. This holds for every decoder, closed form or network.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raybrain import config
from raybrain.config import InputError
from raybrain.decoders.normalisation import Floats, fit_target_scaler
from raybrain.decoders.row_noise import NoisyModule

MOST_R2 = 0.999
"""A dimension decoded better than this is taken as decoded so well."""
VALIDATION_SEED = 0
"""Of the noise in evaluation: every epoch meets the same."""
ROWS_AT_ONCE = 256


class PriorNetwork(NoisyModule):
    """A transformer over condition, timestep and noisy embedding that predicts the clean one.

    Parameters
    ----------
    tokens, channels : int
        Shape of an embedding; one token for a pooled one.
    reliability : ndarray, shape (tokens * channels,)
        Held-out R² of the decoder, per dimension.
    section : config.Prior
    """

    def __init__(
        self, *, tokens: int, channels: int, reliability: NDArray, section: config.Prior
    ) -> None:
        super().__init__()
        self.shape = (tokens, channels)
        self.section = section
        width = section.width
        self.register_buffer("reliability", torch.as_tensor(reliability, dtype=torch.float32))
        kept = _scheduler(section).alphas_cumprod
        self.register_buffer("kept", kept.float(), persistent=False)
        self.condition = nn.Linear(channels, width)
        self.noisy = nn.Linear(channels, width)
        self.timestep = nn.Embedding(section.noise_steps, width)
        self.position = nn.Parameter(0.02 * torch.randn(2 * tokens + 1, width))
        self.unknown = nn.Parameter(torch.zeros(width))
        layer = nn.TransformerEncoderLayer(
            width, section.heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True,
            norm_first=True,
        )  # fmt: skip
        self.layers = nn.TransformerEncoder(layer, section.depth, enable_nested_tensor=False)
        self.clean = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, channels))

    def forward(self, embeds: Tensor) -> Tensor:
        """Return what is made of standardised embeddings (row, dimension) at random noise.

        The condition is drawn from the embeddings, the noise step and the noise at random; in
        evaluation always the same.
        """
        n = len(embeds)
        if self.training:
            uniform = self.uniform(embeds.new_empty(n, 2))
            noise, error = self.normal(embeds), self.normal(embeds)
        else:
            fixed = torch.Generator().manual_seed(VALIDATION_SEED)
            uniform = torch.rand((n, 2), generator=fixed).to(embeds)
            noise = torch.randn(embeds.shape, generator=fixed).to(embeds)
            error = torch.randn(embeds.shape, generator=fixed).to(embeds)
        r = self.reliability.clamp(0, MOST_R2)
        condition = r * embeds + (r * (1 - r)).sqrt() * error
        step = (uniform[:, 0] * self.section.noise_steps).long()
        kept = self.kept[step][:, None]
        noisy = kept.sqrt() * embeds + (1 - kept).sqrt() * noise
        known = uniform[:, 1] >= self.section.drop
        return self.denoise(noisy, step=step, condition=condition, known=known)

    def denoise(self, noisy: Tensor, *, step: Tensor, condition: Tensor, known: Tensor) -> Tensor:
        """Return clean embeddings (row, dimension), standardised.

        Parameters
        ----------
        noisy, condition : Tensor, shape (row, dimension)
        step : Tensor of int, shape (row,)
        known : Tensor of bool, shape (row,)
            Whether the condition is shown.
        """
        n, tokens = len(noisy), self.shape[0]
        told = self.condition(condition.reshape(n, *self.shape))
        told = torch.where(known[:, None, None], told, self.unknown.to(told.dtype))
        parts = [told, self.timestep(step)[:, None], self.noisy(noisy.reshape(n, *self.shape))]
        hidden = self.layers(torch.cat(parts, dim=1) + self.position)
        return self.clean(hidden[:, -tokens:]).reshape(n, -1)


def _scheduler(section: config.Prior) -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=section.noise_steps,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
        timestep_spacing="trailing",
    )


@dataclass(frozen=True)
class PriorTask:
    """What a worker needs to fit a prior; used like a `gradient.Task`.

    Attributes
    ----------
    section : config.Prior
    betas, targets, validation_betas, validation_targets : float32, shape (image, dimension)
        Standardised embeddings, as input and as target.
    count : ndarray of int64, shape (image,)
    shape : tuple of int
        Of one embedding.
    mean, deviation : ndarray of float32, shape (dimension,)
        Over training images.
    reliability : ndarray of float32, shape (dimension,)
    """

    section: config.Prior
    betas: Floats
    count: NDArray[np.int64]
    validation_betas: Floats
    shape: tuple[int, ...]
    mean: Floats
    deviation: Floats
    reliability: Floats

    @property
    def targets(self) -> Floats:
        """What is to be predicted: the embeddings themselves."""
        return self.betas

    @property
    def validation_targets(self) -> Floats:
        """As ``targets``."""
        return self.validation_betas

    def build(self, *, seed: int) -> PriorNetwork:
        """Return the untrained network."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _network(self.section, shape=self.shape, reliability=self.reliability)

    def finish(self, network: nn.Module) -> TrainedPrior:
        """Return the prior of a trained network."""
        return TrainedPrior(
            section=self.section,
            shape=self.shape,
            mean=self.mean,
            deviation=self.deviation,
            parameters={
                name: tensor.detach().cpu().numpy().copy()
                for name, tensor in network.state_dict().items()
            },
        )


def _network(
    section: config.Prior, *, shape: tuple[int, ...], reliability: NDArray
) -> PriorNetwork:
    tokens, channels = shape if len(shape) == 2 else (1, shape[0])
    return PriorNetwork(tokens=tokens, channels=channels, reliability=reliability, section=section)


def prior_task(
    section: config.Prior,
    *,
    train: NDArray[np.floating],
    validation: NDArray[np.floating],
    held_out_r2: NDArray[np.floating],
) -> PriorTask:
    """Return the arrays to fit a prior on.

    Parameters
    ----------
    section : config.Prior
    train, validation : ndarray, shape (image, ...)
        True embeddings.
    held_out_r2 : ndarray, shape (dimension,)
        Of the decoder that it will follow.

    Raises
    ------
    InputError
        If there are no validation images.
    """
    if not len(validation):
        raise InputError(
            "a prior stops early on validation images, found none; give the split a validation "
            "share above 0, or set decode.image_embeds.prior=null"
        )
    shape = train.shape[1:]
    flat = train.reshape(len(train), -1)
    scaler = fit_target_scaler(flat)
    deviation = np.where(scaler.varying, scaler.deviation, 0.0).astype(np.float32)

    def standard(values: NDArray[np.floating]) -> Floats:
        return _standardised(values.reshape(len(values), -1), mean=scaler.mean, deviation=deviation)

    return PriorTask(
        section=section,
        betas=standard(flat),
        count=np.ones(len(train), np.int64),
        validation_betas=standard(validation),
        shape=shape,
        mean=scaler.mean,
        deviation=deviation,
        reliability=np.clip(held_out_r2, 0.0, 1.0).astype(np.float32),
    )


def _standardised(values: NDArray, *, mean: Floats, deviation: Floats) -> Floats:
    centred = np.asarray(values, np.float32) - mean
    return np.divide(centred, deviation, out=np.zeros_like(centred), where=deviation > 0)


@dataclass(frozen=True)
class TrainedPrior:
    """Draws embeddings that fit decoded ones.

    Attributes
    ----------
    section : config.Prior
    shape : tuple of int
        Of one embedding.
    mean, deviation : ndarray of float32, shape (dimension,)
    parameters : dict of str to ndarray
        Of the network, by name.
    """

    section: config.Prior
    shape: tuple[int, ...]
    mean: Floats
    deviation: Floats
    parameters: dict[str, NDArray]

    def network(self) -> PriorNetwork:
        """Return the trained network in evaluation mode."""
        network = _network(
            self.section, shape=self.shape, reliability=self.parameters["reliability"]
        )
        network.load_state_dict(
            {k: torch.from_numpy(np.array(v)) for k, v in self.parameters.items()}
        )
        return network.eval()

    def draw(self, estimates: NDArray[np.floating], *, seeds: Sequence[int]) -> Floats:
        """Return an embedding (image, dimension) for each least-squares prediction.

        Parameters
        ----------
        estimates : ndarray, shape (image, dimension)
        seeds : sequence of int
            One per image; it alone determines what is drawn.
        """
        network = self.network()
        condition = torch.from_numpy(
            _standardised(estimates, mean=self.mean, deviation=self.deviation)
        )
        drawn = [
            _sampled(network, condition[rows], seeds=seeds[rows.start : rows.stop])
            for rows in (
                slice(start, min(start + ROWS_AT_ONCE, len(condition)))
                for start in range(0, len(condition), ROWS_AT_ONCE)
            )
        ]
        return self.mean + self.deviation * torch.cat(drawn).numpy()

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``prior.safetensors`` to a folder that does not exist yet."""
        from safetensors.numpy import save_file

        folder.mkdir(parents=True)
        arrays = {f"parameters.{name}": value for name, value in self.parameters.items()}
        arrays |= {"mean": self.mean, "deviation": self.deviation}
        save_file(
            {name: np.ascontiguousarray(value) for name, value in arrays.items()},
            folder / "prior.safetensors",
        )
        described = {"prior": self.section.model_dump(mode="json"), "shape": list(self.shape)}
        (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n")


def load_prior(folder: Path) -> TrainedPrior:
    """Return the prior that `TrainedPrior.save` wrote."""
    from safetensors.numpy import load_file

    described = json.loads((folder / "config.json").read_text())
    arrays = load_file(folder / "prior.safetensors")
    prefix = "parameters."
    return TrainedPrior(
        section=config.Prior.model_validate(described["prior"]),
        shape=tuple(described["shape"]),
        mean=arrays["mean"],
        deviation=arrays["deviation"],
        parameters={
            name.removeprefix(prefix): value
            for name, value in arrays.items()
            if name.startswith(prefix)
        },
    )


def _sampled(network: PriorNetwork, condition: Tensor, *, seeds: Sequence[int]) -> Tensor:
    """Return standardised embeddings (row, dimension)."""
    section = network.section
    scheduler = _scheduler(section)
    scheduler.set_timesteps(section.sampling_steps)
    drawn = torch.stack(
        [
            torch.randn(condition.shape[1], generator=torch.Generator().manual_seed(seed))
            for seed in seeds
        ]
    )
    n = len(condition)
    known = torch.cat([torch.ones(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)])
    guided = section.guidance != 1.0
    rows = 2 * n if guided else n
    with torch.inference_mode():
        for step in scheduler.timesteps:
            noisy, told = (
                torch.cat([values, values]) if guided else values for values in (drawn, condition)
            )
            clean = network.denoise(
                noisy, step=step.expand(rows), condition=told, known=known[:rows]
            )
            if guided:
                with_condition, without = clean.chunk(2)
                clean = without + section.guidance * (with_condition - without)
            drawn = scheduler.step(clean, step, drawn).prev_sample
    return drawn
