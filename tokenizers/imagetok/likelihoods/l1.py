"""Laplace likelihood with one scale for all pixels.

-ln p(x) = |x - mu| / s + ln(2 s)                            mu: from the decoder, s: the scale
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from imagetok.config.registry import Paper
from imagetok.likelihoods.likelihood import LikelihoodConfig
from imagetok.likelihoods.location_scale import LocationScale, Scale, scale_papers


class L1Config(LikelihoodConfig):
    """Laplace likelihood.

    Attributes:
        scale: Scale b of the density, or `learnt`; 1 gives the absolute error's gradient.
    """

    type: Literal["l1"] = "l1"
    scale: Scale = 1.0

    @property
    def papers(self) -> tuple[Paper, ...]:
        """What the density comes from."""
        return scale_papers(self.scale)

    def build(self) -> L1Likelihood:
        """Build the likelihood with fresh weights."""
        return L1Likelihood(self.scale)


class L1Likelihood(LocationScale):
    """Laplace with one scale for all pixels.

    Args:
        scale: Scale of the density in pixel units, or `learnt`.
    """

    def __init__(self, scale: float | Literal["learnt"] = 1.0) -> None:
        super().__init__(scale, start=0.1)

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        """Nats per image (B,), from params and pixels (B, C, H, W)."""
        error, log_scale = self.error(params, x), self.log_scale()
        per_pixel = error.abs() * torch.exp(-log_scale) + log_scale + math.log(2)
        return per_pixel.sum(dim=(1, 2, 3))
