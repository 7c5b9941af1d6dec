"""The same weights for a network of ours and for the peer's, drawn in each process anew."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor


@torch.no_grad()
def draw(tensors: Iterable[Tensor]) -> None:
    """Fill weights and biases by their order and sizes alone.

    A 1x1 convolution and a linear layer of the same sizes get the same weights.
    """
    random = torch.Generator().manual_seed(0)
    for tensor in tensors:
        fan_in = tensor[0].numel() if tensor.ndim > 1 else 10_000
        values = torch.randn(tensor.numel(), generator=random)
        tensor.copy_(values.view(tensor.shape).mul_((2 / fan_in) ** 0.5))


def draw_table(num_codes: int, dim: int, scale: float = 1.0) -> Tensor:
    """Codes, float (num_codes, dim)."""
    random = torch.Generator().manual_seed(1)
    return torch.randn(num_codes, dim, generator=random) * scale


def draw_images(count: int, side: int) -> Tensor:
    """Images that are smooth in some places and rough in others, uint8 (count, 3, side, side)."""
    random = torch.Generator().manual_seed(2)
    coarse = torch.rand(count, 3, side // 16, side // 16, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")
    rough = torch.rand(count, 3, side, side, generator=random) - 0.5
    strength = torch.linspace(0, 0.3, side)
    return (255 * (smooth + strength * rough).clamp(0, 1)).round().to(torch.uint8)


def as_array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A result as it goes from one process to another."""
    return np.asarray(tensor.detach().float() if tensor.is_floating_point() else tensor)
