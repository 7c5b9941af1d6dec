"""Densities with a location for each pixel from the decoder and one scale for all pixels.

The scale is fixed, or one learnt value (Rybkin et al., Simple and Effective VAE Training with
Calibrated Decoders, 2020, arXiv 2006.13202).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from imagetok.config.registry import Paper
from imagetok.errors import InvalidValueError
from imagetok.precision import FullPrecisionModule, promote

Scale = Annotated[float, Field(gt=0, le=1e6)] | Literal["learnt"]
"""A fixed scale in pixel units, or `learnt`."""

SIGMA_VAE = Paper(
    "inproceedings",
    "rybkin2021simple",
    "Simple and Effective {VAE} Training with Calibrated Decoders",
    "Rybkin, Oleh and Daniilidis, Kostas and Levine, Sergey",
    2021,
    "International Conference on Machine Learning",
    "2006.13202",
)


def scale_papers(scale: float | Literal["learnt"]) -> tuple[Paper, ...]:
    """What a scale comes from."""
    return (SIGMA_VAE,) if scale == "learnt" else ()


class LocationScale(FullPrecisionModule):
    """A location for each pixel from the decoder and one scale for all pixels.

    Args:
        scale: Scale of the density in pixel units, or `learnt`.
        start: Value at which a learnt scale starts.
    """

    channel_multiple = 1
    _GAIN = 10.0  # Adam moves a parameter by about lr per step; the scale has e-folds to go

    def __init__(self, scale: float | Literal["learnt"], start: float) -> None:
        super().__init__()
        if scale != "learnt" and not 0 < scale < math.inf:
            raise InvalidValueError(f"scale must be positive and finite or 'learnt', got {scale}")
        learnt = scale == "learnt"
        log_scale = math.log(start if scale == "learnt" else scale)
        self.raw_scale = nn.Parameter(torch.tensor(log_scale / self._GAIN)) if learnt else None
        self._fixed = log_scale

    def log_scale(self) -> Tensor:
        """The logarithm of the scale, a scalar."""
        if self.raw_scale is None:
            return torch.tensor(self._fixed, dtype=torch.float64, device="cpu")
        return self.raw_scale * self._GAIN

    def mean(self, params: Tensor) -> Tensor:
        """The location, float (B, C, H, W), differentiable and not clamped."""
        # Networks yield the location less one half: pixels are centred for them.
        return promote(params) + 0.5

    def error(self, params: Tensor, x: Tensor) -> Tensor:
        """Pixels less their locations, (B, C, H, W)."""
        return promote(x) - self.mean(params)
