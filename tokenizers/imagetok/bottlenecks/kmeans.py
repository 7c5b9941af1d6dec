"""K-means for codebook initialisation (Lloyd 1982), deterministic for given vectors.

The start is that of Arthur & Vassilvitskii, k-means++: The Advantages of Careful Seeding, 2007,
each centre drawn in proportion to its squared distance from those drawn before, but several at
once. A start from random vectors leaves a third of well separated clusters without a centre, and no
number of iterations repairs that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imagetok.codesearch import nearest_code
from imagetok.errors import InvalidValueError
from imagetok.keys import gumbel, make_key

SEEDING_ROUNDS = 256
"""Rounds in which a start is drawn; up to this many centres, one per round."""


@torch.no_grad()
def kmeans(vectors: Tensor, num_centres: int, iterations: int = 10) -> Tensor:
    """Centres of the vectors.

    Args:
        vectors: Float (N, D), N >= num_centres.
        num_centres: Number of centres K.
        iterations: Lloyd iterations after the start.

    Returns:
        Float (K, D). A centre without members moves to one of the vectors farthest from theirs.

    Raises:
        InvalidValueError: There are fewer vectors than centres.
    """
    if len(vectors) < num_centres:
        raise InvalidValueError(
            f"k-means of {num_centres} centres needs at least as many vectors, got {len(vectors)}"
        )
    centres = _start(vectors, num_centres)
    for _ in range(iterations):
        ids = nearest_code(vectors, centres)
        counts = torch.bincount(ids, minlength=num_centres).to(vectors.dtype)
        sums = torch.zeros_like(centres).index_add_(0, ids, vectors)
        distance = (vectors - centres[ids]).square().sum(dim=1)
        empty = (counts == 0).nonzero().flatten()
        centres = sums / counts.clamp_min(1)[:, None]
        centres[empty] = vectors[distance.argsort(descending=True, stable=True)[: len(empty)]]
    return centres


def _start(vectors: Tensor, num_centres: int) -> Tensor:
    """Vectors far from each other, (K, D)."""
    weights = vectors.new_ones(len(vectors))
    distance = torch.full_like(weights, torch.inf)
    centres: list[Tensor] = []
    for part in torch.arange(num_centres).tensor_split(min(SEEDING_ROUNDS, num_centres)):
        # The largest of ln weight + Gumbel noise are a draw without replacement by weight.
        key = torch.tensor([make_key(0, len(centres), 0, "kmeans")])
        noise = gumbel(key, "kmeans", (1, len(vectors)), vectors.device)[0]
        new = vectors[(weights.log() + noise).topk(len(part)).indices]
        nearest = new[nearest_code(vectors, new)]
        distance = torch.minimum(distance, (vectors - nearest).square().sum(dim=1))
        weights = distance
        centres.append(new)
    return torch.cat(centres)
