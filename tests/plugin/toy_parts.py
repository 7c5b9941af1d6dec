"""A part of each kind that the package does not know: what somebody else's module looks like."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from imagetok.likelihoods import LikelihoodConfig
from imagetok.metrics import ImageMean, MeasuredBatch, MeasuredModel, Metric, MetricConfig
from imagetok.networks import DecoderConfig, EncoderConfig

PATCH = 4


class PatchEncoderConfig(EncoderConfig):
    """One strided convolution."""

    type: Literal["patches"] = "patches"

    def factors(self, image_size: tuple[int, int]) -> tuple[int, int]:
        return PATCH, PATCH

    def build(
        self, image_size: tuple[int, int], in_channels: int, out_channels: int | None
    ) -> PatchEncoder:
        assert out_channels is not None
        return PatchEncoder(in_channels, out_channels)


class PatchEncoder(nn.Module):
    fixed_size = False
    factors = (PATCH, PATCH)

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.layer = nn.Conv2d(in_channels, out_channels, PATCH, stride=PATCH)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x - 0.5)


class PatchDecoderConfig(DecoderConfig):
    """One transposed convolution."""

    type: Literal["patches"] = "patches"

    def factors(self, image_size: tuple[int, int]) -> tuple[int, int]:
        return PATCH, PATCH

    def build(
        self, image_size: tuple[int, int], in_channels: int, out_channels: int
    ) -> PatchDecoder:
        return PatchDecoder(in_channels, out_channels)


class PatchDecoder(nn.Module):
    factors = (PATCH, PATCH)

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.last_layer = nn.ConvTranspose2d(in_channels, out_channels, PATCH, stride=PATCH)

    def forward(self, z: Tensor) -> Tensor:
        return self.last_layer(z)


class LogCoshConfig(LikelihoodConfig):
    """The hyperbolic secant density, up to its constant: ln cosh(x - mu)."""

    type: Literal["log_cosh"] = "log_cosh"

    def build(self) -> LogCosh:
        return LogCosh()


class LogCosh(nn.Module):
    channel_multiple = 1

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        error = (x - self.mean(params)).abs()
        return (error + F.softplus(-2 * error)).sum(dim=(1, 2, 3))

    def mean(self, params: Tensor) -> Tensor:
        return params.float() + 0.5


class WorstPixelConfig(MetricConfig):
    """Largest error of an image, averaged over images."""

    type: Literal["worst_pixel"] = "worst_pixel"
    title: ClassVar[str] = "largest error of a pixel"
    unit: ClassVar[str] = "of the range"

    def build(self, model: MeasuredModel) -> Metric:
        return WorstPixel(self, model)


class WorstPixel(ImageMean):
    def measure(self, batch: MeasuredBatch) -> Tensor:
        return (batch.x - batch.x_hat).abs().flatten(1).amax(dim=1)
