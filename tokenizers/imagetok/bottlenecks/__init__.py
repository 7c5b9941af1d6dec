"""What lies between encoder and decoder: the one part in which AE, VAE, VQ-VAE and dVAE differ."""

from imagetok.bottlenecks.base import (
    Bottleneck,
    BottleneckOutput,
    DiscreteBottleneck,
    Statistics,
)
from imagetok.bottlenecks.gaussian import GaussianBottleneck, GaussianPosterior
from imagetok.bottlenecks.gumbel import GumbelBottleneck
from imagetok.bottlenecks.identity import IdentityBottleneck
from imagetok.bottlenecks.vq import VectorQuantizer

__all__ = [
    "Bottleneck",
    "BottleneckOutput",
    "DiscreteBottleneck",
    "GaussianBottleneck",
    "GaussianPosterior",
    "GumbelBottleneck",
    "IdentityBottleneck",
    "Statistics",
    "VectorQuantizer",
]
