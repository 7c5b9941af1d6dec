"""What is measured of a tokenizer: a class for each figure, which says what it is called.

`STANDARD_METRICS` are measured by every evaluation; further ones, of this package or of others, by
name.
"""

from imagetok.metrics.code_length import BitsPerDim, BitsPerPixel
from imagetok.metrics.code_usage import (
    CodebookPerplexity,
    CodebookUsage,
    perplexity,
    usage,
    usage_figures,
)
from imagetok.metrics.distortion import L1, MAX_PSNR, Psnr, l1, psnr
from imagetok.metrics.metric import (
    ImageMean,
    MeasuredBatch,
    MeasuredModel,
    Metric,
    find_metric,
    known_metrics,
)
from imagetok.metrics.similarity import Ssim, has_ssim, ssim

STANDARD_METRICS: tuple[type[Metric], ...] = (
    Psnr,
    Ssim,
    L1,
    BitsPerDim,
    BitsPerPixel,
    CodebookUsage,
    CodebookPerplexity,
)
"""What every evaluation measures, in the order of evaluation.json."""

__all__ = [
    "L1",
    "MAX_PSNR",
    "STANDARD_METRICS",
    "BitsPerDim",
    "BitsPerPixel",
    "CodebookPerplexity",
    "CodebookUsage",
    "ImageMean",
    "MeasuredBatch",
    "MeasuredModel",
    "Metric",
    "Psnr",
    "Ssim",
    "find_metric",
    "has_ssim",
    "known_metrics",
    "l1",
    "perplexity",
    "psnr",
    "ssim",
    "usage",
    "usage_figures",
]
