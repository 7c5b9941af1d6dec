"""Diagonal Gaussian posterior: the VAE.

Kingma & Welling, Auto-Encoding Variational Bayes, 2013, arXiv 1312.6114:

    z = mean + exp(log_var / 2) * noise,  noise ~ N(0, I)
    KL(q || N(0, I)) = -1/2 sum(1 + log_var - mean^2 - exp(log_var))             (App. B)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from einops import reduce
from torch import Tensor

from imagetok import keys as random_keys
from imagetok.bottlenecks.base import Bottleneck, BottleneckOutput

LOG_VAR_RANGE = (-30.0, 20.0)
"""Log-variances are clamped to this range, where exp neither overflows nor underflows."""


class GaussianPosterior(NamedTuple):
    """Mean and log-variance, float (B, latent_dim, h, w), or (latent_dim, h, w) for one image."""

    mean: Tensor
    log_var: Tensor


class GaussianBottleneck(Bottleneck):
    """The encoder gives mean and log-variance of each latent.

    Args:
        latent_dim: Channels of the latents; the encoder gives twice as many.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__(2 * latent_dim, latent_dim)

    def posterior(self, z: Tensor) -> GaussianPosterior:
        """Mean and log-variance from the encoder's output (B, 2 latent_dim, h, w)."""
        with self._exactly(z) as z_exact:
            mean, log_var = z_exact.chunk(2, dim=1)
            return GaussianPosterior(mean, log_var.clamp(*LOG_VAR_RANGE))

    def kl(self, z: Tensor) -> Tensor:
        """KL to N(0, I) in nats an image, (B,)."""
        mean, log_var = self.posterior(z)
        terms = -0.5 * (1 + log_var - mean.square() - log_var.exp())
        return reduce(terms, "b d h w -> b", "sum")

    def sample(self, z: Tensor, keys: Tensor | None) -> Tensor:
        """A reparameterised draw from the posterior, (B, latent_dim, h, w)."""
        mean, log_var = self.posterior(z)
        noise = random_keys.normal(keys, "gaussian", mean.shape, mean.device)
        return mean + torch.exp(log_var / 2) * noise.to(mean.dtype)

    def _forward(
        self, z: Tensor, values: Mapping[str, float], keys: Tensor | None
    ) -> BottleneckOutput:
        return BottleneckOutput(z_q=self.sample(z, keys), losses={"loss/kl": self.kl(z).mean()})

    def rate(self, z: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
        """A draw from the posterior, at the cost of its KL: the evidence lower bound."""
        return self.sample(z, keys), self.kl(z)

    def latents(self, z: Tensor) -> Tensor:
        """The posterior's mean."""
        return self.posterior(z).mean
