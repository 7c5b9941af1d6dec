"""What lies between encoder and decoder: the one part in which AE, VAE, VQ-VAE and dVAE differ.

`bottleneck.py` says what a bottleneck is; a method's file holds its config, its module, and what
cards say about it.
"""

from imagetok.bottlenecks.bottleneck import (
    Bottleneck,
    BottleneckConfig,
    DiscreteBottleneck,
    ParameterGroup,
    count_codes,
)
from imagetok.bottlenecks.gaussian import GaussianBottleneck, GaussianConfig, GaussianPosterior
from imagetok.bottlenecks.gumbel import GumbelBottleneck, GumbelConfig
from imagetok.bottlenecks.identity import IdentityBottleneck, IdentityConfig
from imagetok.bottlenecks.vq import VectorQuantizer, VqConfig
from imagetok.outputs import BottleneckOutput, Statistics

__all__ = [
    "Bottleneck",
    "BottleneckConfig",
    "BottleneckOutput",
    "DiscreteBottleneck",
    "GaussianBottleneck",
    "GaussianConfig",
    "GaussianPosterior",
    "GumbelBottleneck",
    "GumbelConfig",
    "IdentityBottleneck",
    "IdentityConfig",
    "ParameterGroup",
    "Statistics",
    "VectorQuantizer",
    "VqConfig",
    "count_codes",
]
