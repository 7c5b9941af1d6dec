"""How much of the codebook is used.

- Usage: the share of codes that occur at all.
- Perplexity: exp of the entropy of their frequencies, in [1, codebook_size]: how many codes, used
  equally often, would be as hard to predict.

Where a position has several codes, each level has a codebook, counts and figures of its own; the
figure itself is then the mean over the levels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from imagetok.errors import IdsError, InvalidValueError
from imagetok.launch import collectives
from imagetok.metrics.metric import MeasuredBatch, MeasuredModel, Metric, MetricConfig, as_double
from imagetok.outputs import is_counts


class CodeCounts(Metric):
    """A figure of how often each code occurs; a continuous model has none.

    Attributes:
        counts: int64 (codebook_size,) for each level, of this rank until `merge`, then of all.
    """

    def __init__(self, config: MetricConfig, model: MeasuredModel) -> None:
        super().__init__(config, model)
        self.counts = [
            torch.zeros(size, dtype=torch.int64, device=model.device)
            for size in model.codebook_sizes
        ]

    @abstractmethod
    def measure(self, counts: Tensor) -> float:
        """The figure of one level's counts, an integer tensor (codebook_size,)."""

    def update(self, batch: MeasuredBatch) -> None:
        """Count the ids of a batch.

        Raises:
            IdsError: An id is out of its level's range; nothing was counted.
        """
        if not self.counts or batch.ids is None or batch.ids.numel() == 0:
            return
        depth = len(self.counts)
        levels = batch.ids.reshape(-1, depth).unbind(1)
        for counts, ids in zip(self.counts, levels, strict=True):
            low, high = (int(bound) for bound in ids.aminmax())
            if low < 0 or high >= len(counts):
                raise IdsError(f"ids span [{low}, {high}], expected [0, {len(counts)})")
        for counts, ids in zip(self.counts, levels, strict=True):
            counts += ids.to(counts.device).bincount(minlength=len(counts))

    def merge(self) -> None:
        """Add up the counts of all ranks."""
        self.counts = collectives.all_reduce_sum(self.counts)

    def value(self) -> float | None:
        """The mean of the levels' figures."""
        return _mean([self.measure(counts) for counts in self.counts]) if self.counts else None

    def figures(self) -> dict[str, float | None]:
        """The figure, followed by `<key>/0` and so on of the levels, where there are several."""
        key, figures = self.config.type, super().figures()
        if len(self.counts) > 1:
            figures |= {f"{key}/{i}": self.measure(counts) for i, counts in enumerate(self.counts)}
        return figures


class CodebookUsageConfig(MetricConfig):
    """The share of codes that occur."""

    title: ClassVar[str] = "codebook usage"
    unit: ClassVar[str] = "of the codes"
    is_of_codes: ClassVar[bool] = True

    type: Literal["codebook_usage"] = "codebook_usage"

    def build(self, model: MeasuredModel) -> CodebookUsage:
        """The metric, with nothing measured yet."""
        return CodebookUsage(self, model)


class CodebookUsage(CodeCounts):
    """The share of codes that occur."""

    def measure(self, counts: Tensor) -> float:
        """As the function `usage`."""
        return usage(counts)


class CodebookPerplexityConfig(MetricConfig):
    """The perplexity of the codes' frequencies."""

    title: ClassVar[str] = "codebook perplexity"
    unit: ClassVar[str] = "codes"
    is_of_codes: ClassVar[bool] = True

    type: Literal["codebook_perplexity"] = "codebook_perplexity"

    def build(self, model: MeasuredModel) -> CodebookPerplexity:
        """The metric, with nothing measured yet."""
        return CodebookPerplexity(self, model)


class CodebookPerplexity(CodeCounts):
    """The perplexity of the codes' frequencies."""

    def measure(self, counts: Tensor) -> float:
        """As the function `perplexity`."""
        return perplexity(counts)


def usage(counts: Tensor) -> float:
    """Share in [0, 1] of the codes that occur at least once; counts: integer tensor (K,)."""
    return int((counts > 0).sum()) / len(counts)


def perplexity(counts: Tensor) -> float:
    """Exponential of the entropy of the codes' frequencies, in [1, K]; counts: int tensor (K,).

    Raises:
        InvalidValueError: Nothing was counted.
    """
    total = int(counts.sum())
    if total == 0:
        raise InvalidValueError("perplexity of no ids: count some first")
    return float(torch.special.entr(as_double(counts) / total).sum().exp())


def usage_figures(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """Usage and perplexity of the codes that a training step chose, by their names in logs.

    Args:
        sums: What a bottleneck summed over the step (`Statistics.sums`), of which the tensors named
            `counts` or `<level>/counts`, float (codebook_size,), are read.

    Returns:
        `codebook/usage` and `codebook/perplexity`; where there are several levels, their means,
        followed by `codebook/<level>/usage` and `codebook/<level>/perplexity`. Empty where nothing
        was counted.
    """
    levels = {
        name.removesuffix("counts"): (usage(counts), perplexity(counts))
        for name, counts in sums.items()
        if is_counts(name)
    }
    if not levels:
        return {}
    usages, perplexities = zip(*levels.values(), strict=True)
    figures = {"codebook/usage": _mean(usages), "codebook/perplexity": _mean(perplexities)}
    if len(levels) > 1:
        for level, (used, value) in levels.items():
            figures[f"codebook/{level}usage"] = used
            figures[f"codebook/{level}perplexity"] = value
    return figures


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
