"""Logit-Laplace likelihood of the dVAE, location and scale of each pixel from the decoder.

    -ln p(x) = |logit y - mu| / b + ln(2 b) + ln y + ln(1 - y) - ln(1 - 2 eps)
    y = (1 - 2 eps) x + eps

Ramesh et al., Zero-Shot Text-to-Image Generation, 2021, arXiv 2102.12092, App. A.3, with the
Jacobian of the squeeze, so that it is a density over x.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from imagetok.likelihoods.likelihood import LikelihoodConfig
from imagetok.precision import FullPrecisionModule, promote

SQUEEZE = 0.1
"""eps: pixels are squeezed to (eps, 1 - eps), where the logit is finite."""

MIN_LOG_SCALE = -5.0
"""Least ln b. A gray level is 0.0125 wide in the logit at its narrowest (ln 0.0125 = -4.4); a
density any sharper only rewards flat areas without bound."""


class LogitLaplaceConfig(LikelihoodConfig):
    """Logit-Laplace likelihood, location and scale of each pixel from the decoder."""

    type: Literal["logit_laplace"] = "logit_laplace"

    def build(self) -> LogitLaplaceLikelihood:
        """Build the likelihood."""
        return LogitLaplaceLikelihood()


class LogitLaplaceLikelihood(FullPrecisionModule):
    """Laplace on the logit of squeezed pixels, location and scale of each pixel.

    The decoder emits (mu, raw ln b); ln b = MIN_LOG_SCALE + softplus(raw - MIN_LOG_SCALE), which is
    the raw value with a smooth floor. exp(-ln b) overflows in float16, so nothing here runs in that
    type.
    """

    channel_multiple = 2

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        """Nats per image (B,), from params (B, 2C, H, W) and pixels (B, C, H, W)."""
        mu, raw = rearrange(promote(params), "b (two c) h w -> two b c h w", two=2)
        log_scale = MIN_LOG_SCALE + F.softplus(raw - MIN_LOG_SCALE)
        y = (1 - 2 * SQUEEZE) * promote(x) + SQUEEZE
        per_pixel: Tensor = (
            (torch.logit(y) - mu).abs() * torch.exp(-log_scale)
            + log_scale
            + math.log(2)
            + torch.log(y)
            + torch.log1p(-y)
            - math.log1p(-2 * SQUEEZE)
        )
        return per_pixel.sum(dim=(1, 2, 3))

    def mean(self, params: Tensor) -> Tensor:
        """The inverse squeeze of sigmoid(mu), float (B, C, H, W), not clamped."""
        mu, _ = rearrange(promote(params), "b (two c) h w -> two b c h w", two=2)
        return (torch.sigmoid(mu) - SQUEEZE) / (1 - 2 * SQUEEZE)
