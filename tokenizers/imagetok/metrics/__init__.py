"""What is measured of a tokenizer: a class for each figure, which says what it is called.

`STANDARD_METRICS` are measured by every evaluation; further ones, of this package or of others, by
name.
"""

from imagetok.metrics.code_length import (
    BitsPerDim,
    BitsPerDimConfig,
    BitsPerPixel,
    BitsPerPixelConfig,
)
from imagetok.metrics.code_usage import (
    CodebookPerplexity,
    CodebookPerplexityConfig,
    CodebookUsage,
    CodebookUsageConfig,
    perplexity,
    usage,
    usage_figures,
)
from imagetok.metrics.distortion import L1, MAX_PSNR, L1Config, Psnr, PsnrConfig, l1, psnr
from imagetok.metrics.metric import (
    ImageMean,
    MeasuredBatch,
    MeasuredModel,
    Metric,
    MetricConfig,
    find_metric,
    known_metric,
)
from imagetok.metrics.similarity import Ssim, SsimConfig, has_ssim, ssim

STANDARD_METRICS: tuple[MetricConfig, ...] = (
    PsnrConfig(),
    SsimConfig(),
    L1Config(),
    BitsPerDimConfig(),
    BitsPerPixelConfig(),
    CodebookUsageConfig(),
    CodebookPerplexityConfig(),
)
"""What every evaluation measures, in the order of evaluation.json."""

__all__ = [
    "L1",
    "MAX_PSNR",
    "STANDARD_METRICS",
    "BitsPerDim",
    "BitsPerDimConfig",
    "BitsPerPixel",
    "BitsPerPixelConfig",
    "CodebookPerplexity",
    "CodebookPerplexityConfig",
    "CodebookUsage",
    "CodebookUsageConfig",
    "ImageMean",
    "L1Config",
    "MeasuredBatch",
    "MeasuredModel",
    "Metric",
    "MetricConfig",
    "Psnr",
    "PsnrConfig",
    "Ssim",
    "SsimConfig",
    "find_metric",
    "has_ssim",
    "known_metric",
    "l1",
    "perplexity",
    "psnr",
    "ssim",
    "usage",
    "usage_figures",
]
