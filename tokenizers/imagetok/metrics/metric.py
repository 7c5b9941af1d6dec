"""What a metric is: one figure of a tokenizer, measured on a set of images.

```
 MeasuredBatch ──update──► a metric's sums or samples ──merge──► of all ranks ──value──► the figure
```

A metric's config class states its key, title, unit and protocol, and registers itself as a part of
kind `metric`; evaluation, reports, cards and benchmarks read these and keep no tables of their own.
The metric that it builds measures. One whose figure is a mean over images derives from `ImageMean`
and only says how a batch is measured; one of the whole set, such as a distance between
distributions, keeps what it needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from imagetok.config.registry import PartConfig, find_part, known_types
from imagetok.config.strict_config import UnknownTypeError, printable
from imagetok.errors import InvalidValueError
from imagetok.launch import collectives


@dataclass(frozen=True)
class MeasuredBatch:
    """What an evaluation knows of a batch of B images.

    Attributes:
        x: The images, float (B, C, H, W) in [0, 1].
        x_hat: Their reconstructions without noise, of the same shape and range.
        ids: int64 (B, h, w), or (B, h, w, depth) where a position has several codes; None for a
            continuous tokenizer.
        code_length: Float (B,), the nats that an image costs: its negative log-likelihood plus the
            rate of what is transmitted. None where nothing bounds the rate.
    """

    x: Tensor
    x_hat: Tensor
    ids: Tensor | None = None
    code_length: Tensor | None = None


@dataclass(frozen=True)
class MeasuredModel:
    """What a metric may know of the tokenizer before the first batch.

    Attributes:
        image_size: (height, width) of the images in pixels.
        grid_size: (height, width) of the grid of positions.
        codebook_sizes: Number of codes of each level; empty for a continuous tokenizer.
        device: Where the batches are.
    """

    image_size: tuple[int, int]
    grid_size: tuple[int, int]
    codebook_sizes: tuple[int, ...] = ()
    device: torch.device | str = "cpu"


class MetricConfig(PartConfig):
    """Base of all metric configs; a subclass declares its `type` and registers itself.

    Attributes:
        type: The figure's key: its name in evaluation.json and of `--metric`.
        title: Name in cards and tables.
        unit: Unit that follows a value; empty for a pure number.
        protocol: How the figure is measured, where the other settings of an evaluation do not say
            it; recorded in evaluation.json under the key.
        is_of_codes: Whether the figure is of the codes rather than of the images; cards show it
            under another heading, and a continuous tokenizer has none.
    """

    kind: ClassVar[str] = "metric"
    title: ClassVar[str]
    unit: ClassVar[str] = ""
    protocol: ClassVar[str] = ""
    is_of_codes: ClassVar[bool] = False

    @abstractmethod
    def build(self, model: MeasuredModel) -> Metric:
        """The metric, with nothing measured yet."""


class Metric(ABC):
    """What measures one figure.

    Every rank updates its own instance; `merge` is a collective, called once on every rank after
    the last update, and makes the values of all ranks equal.

    Args:
        config: What the figure is.
        model: What is measured.
    """

    def __init__(self, config: MetricConfig, model: MeasuredModel) -> None:
        self.config, self.model = config, model

    @abstractmethod
    def update(self, batch: MeasuredBatch) -> None:
        """Take in a batch of this rank."""

    @abstractmethod
    def merge(self) -> None:
        """Join what the ranks took in."""

    @abstractmethod
    def value(self) -> float | None:
        """The figure; None where it does not apply to the tokenizer or to its images."""

    def figures(self) -> dict[str, float | None]:
        """The figure by its key, and those that it consists of, by keys `<key>/<name>`."""
        return {self.config.type: self.value()}


class ImageMean(Metric):
    """The mean over images of one value per image, in float64.

    So the figure depends neither on the batch size nor on the number of ranks, beyond rounding.
    """

    def __init__(self, config: MetricConfig, model: MeasuredModel) -> None:
        super().__init__(config, model)
        self._sum, self._count = 0.0, 0

    @abstractmethod
    def measure(self, batch: MeasuredBatch) -> Tensor | None:
        """One value per image, float (B,); None where the figure does not apply."""

    def update(self, batch: MeasuredBatch) -> None:
        """Add the values of a batch.

        Raises:
            InvalidValueError: `measure` gave something other than one value per image.
        """
        values = self.measure(batch)
        if values is None:
            return
        if values.shape != (len(batch.x),):
            raise InvalidValueError(
                f"{self.config.type}: expected one value per image, shape ({len(batch.x)},), found "
                f"{tuple(values.shape)}"
            )
        self._sum += as_double(values).sum().item()
        self._count += len(values)

    def merge(self) -> None:
        """Add up the sums of all ranks."""
        ranks = collectives.gather_objects((self._sum, self._count))
        self._sum = sum((part for part, _ in ranks), 0.0)
        self._count = sum(count for _, count in ranks)

    def value(self) -> float | None:
        """The mean; None where no image has a value."""
        return self._sum / self._count if self._count else None


def find_metric(key: str) -> type[MetricConfig]:
    """The config class of a metric, whatever package it comes from.

    Raises:
        InvalidValueError: No metric has this key.
    """
    try:
        part = find_part("metric", key)
    except UnknownTypeError as error:
        raise InvalidValueError(f"unknown metric '{printable(key)}'; {error}") from None
    assert issubclass(part, MetricConfig)
    return part


def known_metric(key: str) -> type[MetricConfig] | None:
    """The metric that a figure of evaluation.json is of; None where it is of none that is known.

    Args:
        key: The figure's key: a metric's, or `<key>/<name>`.
    """
    key = key.partition("/")[0]
    return find_metric(key) if key in known_types("metric") else None


def as_double(values: Tensor) -> Tensor:
    """The values in float64 without gradient, on the CPU where the device has no float64."""
    device = "cpu" if values.device.type == "mps" else values.device
    return values.detach().to(device, torch.float64)
