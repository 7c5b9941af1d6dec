"""How far reconstructions are from their originals, pixel by pixel.

- PSNR = -10 log10(mean squared error), in dB for pixels in [0, 1].
- L1: mean absolute error, of pixels in [0, 1].
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from imagetok.errors import InvalidValueError
from imagetok.metrics.metric import ImageMean, MeasuredBatch, MeasuredModel, MetricConfig, as_double

MAX_PSNR = 100.0
"""PSNR in dB of identical images, for which it is infinite, and upper bound for all others."""


class PsnrConfig(MetricConfig):
    """Peak signal-to-noise ratio."""

    title: ClassVar[str] = "PSNR"
    unit: ClassVar[str] = "dB"
    protocol: ClassVar[str] = (
        f"reconstruction not rounded to 8 bits; at most {MAX_PSNR:g} dB an image"
    )

    type: Literal["psnr"] = "psnr"

    def build(self, model: MeasuredModel) -> Psnr:
        """The metric, with nothing measured yet."""
        return Psnr(self, model)


class Psnr(ImageMean):
    """Peak signal-to-noise ratio."""

    def measure(self, batch: MeasuredBatch) -> Tensor:
        """As the function `psnr`."""
        return psnr(batch.x_hat, batch.x)


class L1Config(MetricConfig):
    """Mean absolute error."""

    title: ClassVar[str] = "L1"
    unit: ClassVar[str] = "of the pixel range"

    type: Literal["l1"] = "l1"

    def build(self, model: MeasuredModel) -> L1:
        """The metric, with nothing measured yet."""
        return L1(self, model)


class L1(ImageMean):
    """Mean absolute error."""

    def measure(self, batch: MeasuredBatch) -> Tensor:
        """As the function `l1`."""
        return l1(batch.x_hat, batch.x)


def psnr(x_hat: Tensor, x: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, at most MAX_PSNR.

    Args:
        x_hat: Reconstructions, float tensor (B, C, H, W) in [0, 1].
        x: Originals of the same shape.

    Returns:
        float64 tensor (B,).

    Raises:
        InvalidValueError: The shapes differ, or are not those of a batch of images.
    """
    x_hat, x = image_pair(x_hat, x)
    return (-10 * (x_hat - x).square().mean((1, 2, 3)).log10()).clamp(max=MAX_PSNR)


def l1(x_hat: Tensor, x: Tensor) -> Tensor:
    """Mean absolute error of each image; arguments, result and errors as for `psnr`."""
    x_hat, x = image_pair(x_hat, x)
    return (x_hat - x).abs().mean((1, 2, 3))


def image_pair(x_hat: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstructions and originals in float64, once their shapes are known to fit.

    Raises:
        InvalidValueError: The shapes differ, or are not those of a batch of images.
    """
    if x.ndim != 4 or x_hat.shape != x.shape or 0 in x.shape[1:]:
        raise InvalidValueError(
            f"expected two image tensors of one shape (B, C, H, W), found {tuple(x_hat.shape)} "
            f"and {tuple(x.shape)}"
        )
    return as_double(x_hat), as_double(x)
