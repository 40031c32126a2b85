"""Latents as a brain gives them: doubtful where the picture is fine-grained, never plainly blurred.

A linear decoder knows the strong principal components of the latents and shrinks the weak ones
towards their mean, as the posterior mean behind white noise does. On a simulated subject's early
visual voxels, white noise of 10 to 20 times a component's mean variance keeps what ridge keeps of
the first 32 components, which hold two thirds of the variance.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from raybrain.pretraining.image_encoder import behind_noise, principal_components


@dataclass(frozen=True)
class LatentPrior:
    """Principal components of the latents of all training pictures."""

    mean: Tensor
    """(values,)."""
    axes: Tensor
    """(values, component), orthonormal."""
    variance: Tensor
    """(component,), largest first, none below a millionth of the mean."""

    def degrade(self, latents: Tensor, *, noise: Tensor, rescaled: Tensor) -> Tensor:
        """Return the posterior mean of latents seen through white noise.

        Parameters
        ----------
        latents
            (n, c, h, w).
        noise
            (n,) variance of the noise, in multiples of a component's mean variance.
        rescaled
            (n,) whether each value is stretched to the variance of undegraded latents, as a
            decoder with ``rescale: true`` does.
        """
        white = (latents.flatten(1) - self.mean) @ self.axes / self.variance.sqrt()
        added = noise * self.variance.mean()
        kept = self.variance / (self.variance + added[:, None])
        found = behind_noise(white, variance=self.variance, noise=added)
        away = (found * self.variance.sqrt()) @ self.axes.T
        full = self.axes.square() @ self.variance
        left = (kept * self.variance) @ self.axes.square().T
        away = away * torch.where(rescaled[:, None], (full / left).sqrt(), 1.0)
        return (self.mean + away).reshape(latents.shape)


def fit_latent_prior(latents: Tensor, *, weight: Tensor) -> LatentPrior:
    """Return the principal components of latents (n, c, h, w), each weighted by `weight` (n,)."""
    share = (weight.double() / weight.double().sum())[:, None]
    mean, variance, axes = principal_components(latents.flatten(1).double(), share=share)
    variance = variance.clamp(min=1e-6 * float(variance.mean()))
    return LatentPrior(mean.float(), axes.float().contiguous(), variance.float())


def draw_noise(count: int, *, between: tuple[float, float]) -> Tensor:
    """Return variances (count,), drawn log-uniformly."""
    low, high = (math.log(bound) for bound in between)
    return torch.exp(low + (high - low) * torch.rand(count))
