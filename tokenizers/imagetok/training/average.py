"""Exponential moving average of the weights, which is what gets evaluated and exported.

Buffers, the averaged codebook among them, are copied: they are averages already. The decay rises
with the number of averaged steps, min(decay, (1 + n) / (10 + n)), so that the first weights do not
linger.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from imagetok.tokenizer import ImageTokenizer

Tensors = tuple[Tensor, ...] | list[Tensor]


def build_average(model: ImageTokenizer, decay: float) -> AveragedModel:
    """An average that starts as a copy of `model`; call `update_parameters(model)` every step."""

    @torch.no_grad()
    def average(averaged: Tensors, current: Tensors, num_averaged: Tensor | int) -> None:
        count = int(num_averaged)
        rate = min(decay, (1 + count) / (10 + count))
        torch._foreach_lerp_(list(averaged), list(current), 1 - rate)

    return AveragedModel(model, multi_avg_fn=average)
