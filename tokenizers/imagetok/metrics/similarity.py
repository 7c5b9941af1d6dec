"""Structural similarity.

Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity", as
torchmetrics defines it: data range 1, Gaussian window 11x11 of sigma 1.5, K1 = 0.01, K2 = 0.03,
images reflected at their borders, averaged over channels and positions. In float64, because float32
finds 0.9999 between a flat image and itself.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from imagetok.errors import InvalidValueError
from imagetok.metrics.distortion import image_pair
from imagetok.metrics.metric import ImageMean, MeasuredBatch, MeasuredModel, MetricConfig

_WINDOW_SIZE = 11


class SsimConfig(MetricConfig):
    """Structural similarity; it does not apply to images that are smaller than its window."""

    title: ClassVar[str] = "SSIM"
    protocol: ClassVar[str] = "Gaussian window of 11, sigma 1.5, data range 1"

    type: Literal["ssim"] = "ssim"

    def build(self, model: MeasuredModel) -> Ssim:
        """The metric, with nothing measured yet."""
        return Ssim(self, model)


class Ssim(ImageMean):
    """Structural similarity; it does not apply to images that are smaller than its window."""

    def measure(self, batch: MeasuredBatch) -> Tensor | None:
        """As the function `ssim`; None for images that are too small."""
        height, width = batch.x.shape[2:]
        return ssim(batch.x_hat, batch.x) if has_ssim((height, width)) else None


def has_ssim(image_size: tuple[int, int]) -> bool:
    """Whether images of (height, width) are large enough for SSIM's window."""
    return min(image_size) >= _WINDOW_SIZE


def ssim(x_hat: Tensor, x: Tensor) -> Tensor:
    """Structural similarity of each image, at most 1; arguments and result as for `psnr`.

    Raises:
        InvalidValueError: A side is under 11 pixels (see `has_ssim`), or the shapes differ.
    """
    x_hat, x = image_pair(x_hat, x)
    if not has_ssim((x.shape[2], x.shape[3])):
        raise InvalidValueError(
            f"SSIM needs sides of at least {_WINDOW_SIZE} pixels, found {tuple(x.shape[2:])}"
        )
    if not len(x):
        return x.new_empty(0)
    # Imported here because it takes a second, which only those who measure should wait for.
    from torchmetrics.functional.image import structural_similarity_index_measure

    values = structural_similarity_index_measure(x_hat, x, data_range=1.0, reduction="none")
    assert isinstance(values, Tensor)
    return values.view(-1)
