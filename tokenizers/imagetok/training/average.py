"""Exponential moving average of the weights, which is what gets evaluated and exported.

Buffers are copied, the averaged codebook among them: they are averages already. The decay rises
with the number n of averaged steps, min(decay, (1 + n) / (10 + n)), so that the first weights do
not linger.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from imagetok.tokenizer import ImageTokenizer

Tensors = tuple[Tensor, ...] | list[Tensor]


class WeightAverage(AveragedModel):
    """An average that starts as a copy of a model; `take_in` follows every step.

    Args:
        model: The model as it is at the first step.
        decay: Decay per step, in [0, 1).
    """

    def __init__(self, model: ImageTokenizer, decay: float) -> None:
        @torch.no_grad()
        def average(averaged: Tensors, current: Tensors, num_averaged: Tensor | int) -> None:
            count = int(num_averaged)
            rate = min(decay, (1 + count) / (10 + count))
            torch._foreach_lerp_(list(averaged), list(current), 1 - rate)

        super().__init__(model, multi_avg_fn=average)

    @property
    def tokenizer(self) -> ImageTokenizer:
        """The averaged model."""
        return cast(ImageTokenizer, self.module)

    @torch.no_grad()
    def take_in(self, model: ImageTokenizer, restarted: Mapping[str, Tensor]) -> None:
        """Take in the weights of the model after a step.

        Frozen weights keep their bits, and so does a codebook that is copied.

        Args:
            model: The model.
            restarted: What `bottleneck.update` returned, by parameter name. Rows that began anew
                have no past that could be averaged: they are copied.
        """
        self.update_parameters(model)
        for weight, current in zip(self.module.parameters(), model.parameters(), strict=True):
            if not current.requires_grad:
                weight.copy_(current)  # the average of -0.0 is 0.0
        averaged = self.tokenizer.bottleneck
        for name, rows in restarted.items():
            averaged.get_parameter(name)[rows] = model.bottleneck.get_parameter(name)[rows]
        if any(current.requires_grad for current in model.bottleneck.parameters()):
            averaged.constrain()
