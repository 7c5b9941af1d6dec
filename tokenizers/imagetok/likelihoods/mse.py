"""Gaussian likelihood with one standard deviation for all pixels.

-ln p(x) = (x - mu)^2 / (2 s^2) + ln s + ln(2 pi) / 2        mu: from the decoder, s: the scale
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from imagetok.config.registry import Paper
from imagetok.likelihoods.likelihood import LikelihoodConfig
from imagetok.likelihoods.location_scale import LocationScale, Scale, scale_papers


class MseConfig(LikelihoodConfig):
    """Gaussian likelihood.

    Attributes:
        scale: Standard deviation, or `learnt` for one shared learnt value (sigma-VAE, Rybkin et
            al. 2020, arXiv 2006.13202). 1/sqrt(2) gives the squared error's gradient.
    """

    type: Literal["mse"] = "mse"
    scale: Scale = math.sqrt(0.5)

    @property
    def papers(self) -> tuple[Paper, ...]:
        """What the density comes from."""
        return scale_papers(self.scale)

    def build(self) -> MseLikelihood:
        """Build the likelihood with fresh weights."""
        return MseLikelihood(self.scale)


class MseLikelihood(LocationScale):
    """Gaussian with one standard deviation for all pixels.

    Args:
        scale: Standard deviation in pixel units, or `learnt`.
    """

    def __init__(self, scale: float | Literal["learnt"] = math.sqrt(0.5)) -> None:
        super().__init__(scale, start=0.1)

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        """Nats per image (B,), from params and pixels (B, C, H, W)."""
        error, log_scale = self.error(params, x), self.log_scale()
        per_pixel = (error * torch.exp(-log_scale)).square() / 2 + log_scale
        return (per_pixel + math.log(2 * math.pi) / 2).sum(dim=(1, 2, 3))
