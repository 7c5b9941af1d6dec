"""What an image costs, in bits: bounds on the likelihood of its pixels, and the size of its ids.

Bits per dimension is a code length for 8-bit pixels, of a reconstruction and a rate in nats per
image:

    bits_per_dim = (reconstruction + rate) / (H W C ln 2) + 8

The rate is the KL of a model with a posterior, whose reconstruction is then scored on one keyed
draw from it (the evidence lower bound), and log codebook_size per position for one whose codes have
no distribution. Bits per pixel is what the ids alone take, stored without a model of them:

    bits_per_pixel = positions * sum over levels of log2(codebook_size) / (H W)
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from torch import Tensor

from imagetok.metrics.metric import ImageMean, MeasuredBatch, MeasuredModel, Metric, MetricConfig


class BitsPerDimConfig(MetricConfig):
    """A code length of the pixels; it does not apply where nothing bounds the rate."""

    title: ClassVar[str] = "bits per dimension"
    unit: ClassVar[str] = "bits"
    protocol: ClassVar[str] = (
        "evidence lower bound of one draw from the posterior; of a VQ-VAE log2 of the codebook "
        "size a position"
    )

    type: Literal["bits_per_dim"] = "bits_per_dim"

    def build(self, model: MeasuredModel) -> BitsPerDim:
        """The metric, with nothing measured yet."""
        return BitsPerDim(self, model)


class BitsPerDim(ImageMean):
    """A code length of the pixels; it does not apply where nothing bounds the rate."""

    def measure(self, batch: MeasuredBatch) -> Tensor | None:
        """The code length of each image, float64 (B,)."""
        if batch.code_length is None:
            return None
        nats = batch.code_length.detach().cpu().double()
        return nats / (batch.x[0].numel() * math.log(2)) + 8


class BitsPerPixelConfig(MetricConfig):
    """The size of the ids, which every image has alike; a continuous model has none."""

    title: ClassVar[str] = "bits per pixel of the ids"
    unit: ClassVar[str] = "bits"

    type: Literal["bits_per_pixel"] = "bits_per_pixel"

    def build(self, model: MeasuredModel) -> BitsPerPixel:
        """The metric, with nothing measured yet."""
        return BitsPerPixel(self, model)


class BitsPerPixel(Metric):
    """The size of the ids, which every image has alike; a continuous model has none."""

    def update(self, batch: MeasuredBatch) -> None:
        """Take in nothing: the figure is the tokenizer's own."""

    def merge(self) -> None:
        """Join nothing."""

    def value(self) -> float | None:
        """Bits of the ids over pixels of the image."""
        sizes = self.model.codebook_sizes
        if not sizes:
            return None
        bits = math.prod(self.model.grid_size) * sum(map(math.log2, sizes))
        return bits / math.prod(self.model.image_size)
