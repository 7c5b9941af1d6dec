"""All of a preprocessor's batches as one."""

from __future__ import annotations

import torch
from torch import Tensor

from imagetok.images import Preprocessor


def batch(
    preprocessor: Preprocessor, images: object, factors: tuple[int, int] = (1, 1), size: int = 64
) -> tuple[Tensor, bool]:
    """The network's input of all images, and whether one image was given."""
    batches, single = preprocessor.batches(images, factors, size)
    return torch.cat(list(batches)), single
