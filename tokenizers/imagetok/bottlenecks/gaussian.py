"""Diagonal Gaussian posterior: the VAE.

Kingma & Welling, Auto-Encoding Variational Bayes, 2013, arXiv 1312.6114:

    z = mean + exp(log_var / 2) * noise,  noise ~ N(0, I)
    KL(q || N(0, I)) = -1/2 sum(1 + log_var - mean^2 - exp(log_var))             (App. B)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

import torch
from einops import reduce
from torch import Tensor

from imagetok import keys as random_keys
from imagetok.bottlenecks.bottleneck import Bottleneck, BottleneckConfig, LatentDim
from imagetok.config.registry import Paper
from imagetok.outputs import BottleneckOutput

LOG_VAR_RANGE = (-30.0, 20.0)
"""Log-variances are clamped to this range, where exp neither overflows nor underflows."""


VAE = Paper(
    "inproceedings",
    "kingma2014autoencoding",
    "Auto-Encoding Variational {Bayes}",
    "Kingma, Diederik P. and Welling, Max",
    2014,
    "International Conference on Learning Representations",
    "1312.6114",
)


class GaussianConfig(BottleneckConfig):
    """Diagonal Gaussian posterior, reparameterised (Kingma & Welling 2013, arXiv 1312.6114)."""

    title: ClassVar[str] = "VAE"
    tag: ClassVar[str] = "vae"
    about: ClassVar[str] = (
        "It turns an image into a Gaussian distribution over grids of latents, and latents into an "
        "image."
    )
    card_words: ClassVar[str] = (
        "diagonal Gaussian posterior, drawn to a standard normal prior by the KL divergence"
    )
    weakness: ClassVar[str] = (
        "The posterior of all images together is not the prior: samples from the prior are less "
        "sharp and less sound than reconstructions."
    )
    is_discrete: ClassVar[bool] = False
    has_posterior: ClassVar[bool] = True
    has_prior: ClassVar[bool] = True

    type: Literal["gaussian"] = "gaussian"
    latent_dim: LatentDim

    @property
    def encoder_channels(self) -> int:
        """Mean and log-variance of each latent."""
        return 2 * self.latent_dim

    @property
    def papers(self) -> tuple[Paper, ...]:
        """The VAE."""
        return (VAE,)

    def build(self, in_channels: int) -> GaussianBottleneck:
        """Build the bottleneck."""
        return GaussianBottleneck(self.latent_dim)


class GaussianPosterior(NamedTuple):
    """Mean and log-variance, float (B, latent_dim, h, w), or (latent_dim, h, w) for one image."""

    mean: Tensor
    log_var: Tensor


class GaussianBottleneck(Bottleneck):
    """The encoder gives mean and log-variance of each latent.

    Args:
        latent_dim: Channels of the latents; the encoder gives twice as many.
    """

    has_prior = True

    def __init__(self, latent_dim: int) -> None:
        super().__init__(2 * latent_dim, latent_dim)

    def posterior(self, z: Tensor) -> GaussianPosterior:
        """Mean and log-variance from the encoder's output (B, 2 latent_dim, h, w)."""
        with self.full_precision(z) as z_full:
            mean, log_var = z_full.chunk(2, dim=1)
            return GaussianPosterior(mean, log_var.clamp(*LOG_VAR_RANGE))

    def distribution(self, z: Tensor) -> GaussianPosterior:
        """Mean and log-variance, each (B, latent_dim, h, w)."""
        return self.posterior(z)

    def sample_prior(
        self, shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device
    ) -> Tensor:
        """Draw latents from N(0, I), float32 (B, latent_dim, h, w) as `shape` says."""
        return torch.randn(shape, generator=generator, device=device, dtype=torch.float32)

    def kl(self, z: Tensor) -> Tensor:
        """KL to N(0, I) in nats per image, (B,)."""
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
