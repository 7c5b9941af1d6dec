"""How pixels are scored: a density p(x | decoder output) over pixels x in [0, 1].

    mse            (x - mu)^2 / (2 s^2) + ln s + ln(2 pi) / 2
    l1             |x - mu| / s + ln(2 s)
    logit_laplace  |logit y - mu| / b + ln(2 b) + ln y + ln(1 - y) - ln(1 - 2 eps),
                   y = (1 - 2 eps) x + eps

s is fixed, or one learnt value for all pixels (Rybkin et al., Simple and Effective VAE Training
with Calibrated Decoders, 2020, arXiv 2006.13202); mu and b come from the decoder. The logit-Laplace
density is that of Ramesh et al., 2021, arXiv 2102.12092, App. A.3, with the Jacobian of the squeeze
so that it is a density over x.

All arithmetic runs in float32 or better, whatever the decoder's dtype: exp(-ln b) overflows in
float16.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from imagetok.errors import InvalidValueError
from imagetok.exact import ExactModule, promote

SQUEEZE = 0.1
"""eps of the logit-Laplace: pixels are squeezed to (eps, 1 - eps), where the logit is finite."""

MIN_LOG_SCALE = -5.0
"""Least ln b of the logit-Laplace. A gray level is 0.0125 wide in the logit at its narrowest
(ln 0.0125 = -4.4); a density any sharper only rewards flat areas without bound."""


class Likelihood(Protocol):
    """What the tokenizer asks of a likelihood."""

    channel_multiple: int
    """Decoder channels a pixel channel."""

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        """Negative log-likelihood, nats an image (B,), summed over channels and pixels."""
        ...

    def mean(self, params: Tensor) -> Tensor:
        """The image to show, (B, C, H, W) in [0, 1]."""
        ...


class _LocationScale(ExactModule):
    """A location a pixel from the decoder and one scale for all pixels."""

    channel_multiple = 1
    _GAIN = 10.0  # Adam moves a parameter by about lr a step; the scale has e-folds to go

    def __init__(self, scale: float | Literal["learnt"], start: float) -> None:
        super().__init__()
        if scale != "learnt" and not 0 < scale < math.inf:
            raise InvalidValueError(f"scale must be positive and finite or 'learnt', got {scale}")
        learnt = scale == "learnt"
        log_scale = math.log(start if scale == "learnt" else scale)
        self.raw_scale = nn.Parameter(torch.tensor(log_scale / self._GAIN)) if learnt else None
        self._fixed = log_scale

    def log_scale(self) -> Tensor:
        """The logarithm of s, a scalar."""
        if self.raw_scale is None:
            return torch.tensor(self._fixed, dtype=torch.float64, device="cpu")
        return self.raw_scale * self._GAIN

    def mean(self, params: Tensor) -> Tensor:
        """The location, (B, C, H, W), clamped to [0, 1]."""
        return (promote(params) + 0.5).clamp(0, 1)

    def _error(self, params: Tensor, x: Tensor) -> Tensor:
        # Networks yield the location less one half: pixels are centred for them.
        return promote(x) - (promote(params) + 0.5)


class MseLikelihood(_LocationScale):
    """Gaussian with one standard deviation for all pixels.

    Args:
        scale: Standard deviation in pixel units, or `learnt`.
    """

    def __init__(self, scale: float | Literal["learnt"] = math.sqrt(0.5)) -> None:
        super().__init__(scale, start=0.1)

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        """Nats an image (B,), from params and pixels (B, C, H, W)."""
        error, log_scale = self._error(params, x), self.log_scale()
        per_pixel = (error * torch.exp(-log_scale)).square() / 2 + log_scale
        return (per_pixel + math.log(2 * math.pi) / 2).sum(dim=(1, 2, 3))


class L1Likelihood(_LocationScale):
    """Laplace with one scale for all pixels.

    Args:
        scale: Scale of the density in pixel units, or `learnt`.
    """

    def __init__(self, scale: float | Literal["learnt"] = 1.0) -> None:
        super().__init__(scale, start=0.1)

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        """Nats an image (B,), from params and pixels (B, C, H, W)."""
        error, log_scale = self._error(params, x), self.log_scale()
        per_pixel = error.abs() * torch.exp(-log_scale) + log_scale + math.log(2)
        return per_pixel.sum(dim=(1, 2, 3))


class LogitLaplaceLikelihood(ExactModule):
    """Laplace on the logit of squeezed pixels, location and scale a pixel.

    The decoder emits (mu, raw ln b); ln b = MIN_LOG_SCALE + softplus(raw - MIN_LOG_SCALE), which is
    the raw value but for a smooth floor.
    """

    channel_multiple = 2

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        """Nats an image (B,), from params (B, 2C, H, W) and pixels (B, C, H, W)."""
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
        """The inverse squeeze of sigmoid(mu), (B, C, H, W), clamped to [0, 1]."""
        mu, _ = rearrange(promote(params), "b (two c) h w -> two b c h w", two=2)
        return ((torch.sigmoid(mu) - SQUEEZE) / (1 - 2 * SQUEEZE)).clamp(0, 1)
