"""K-means for codebook initialisation (Lloyd 1982), deterministic for given vectors.

The start is that of Arthur & Vassilvitskii, k-means++: The Advantages of Careful Seeding, 2007,
each centre drawn in proportion to its squared distance from those drawn before, but several at
once. A start from random vectors leaves a third of well separated clusters without a centre, and no
number of iterations repairs that.

Large codebooks have few vectors a centre, four as `VectorQuantizer` asks for them, and settle in
two or three iterations; each costs as much as a search of all vectors. So with more centres than
`SMALL` the first iteration takes over the assignments that the start made on its way, and the last
is the one that lowers the error by less than a hundredth.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imagetok.codesearch import nearest_code
from imagetok.errors import InvalidValueError
from imagetok.keys import gumbel, make_key

SEEDING_ROUNDS = 256
"""Rounds in which a start is drawn; up to this many centres, one per round."""

SMALL = 1024
"""Most centres for which every iteration is made, whatever it gains."""

LEAST_GAIN = 0.01
"""Share of the error that an iteration over more centres must gain for another one to follow."""


@torch.no_grad()
def kmeans(vectors: Tensor, num_centres: int, iterations: int = 10) -> Tensor:
    """Centres of the vectors.

    Args:
        vectors: Float (N, D), N >= num_centres.
        num_centres: Number of centres K.
        iterations: Lloyd iterations after the start, fewer where they gain little; see the module.

    Returns:
        Float (K, D). A centre without members moves to one of the vectors farthest from theirs.

    Raises:
        InvalidValueError: There are fewer vectors than centres.
    """
    if len(vectors) < num_centres:
        raise InvalidValueError(
            f"k-means of {num_centres} centres needs at least as many vectors, got {len(vectors)}"
        )
    centres, ids = _start(vectors, num_centres)
    error = torch.inf
    for iteration in range(iterations):
        if iteration > 0 or num_centres <= SMALL:
            ids = nearest_code(vectors, centres)
        distance = (vectors - centres[ids]).square().sum(dim=1)
        centres = _means(vectors, ids, distance, num_centres)
        before, error = error, float(distance.double().sum())
        if num_centres > SMALL and error > (1 - LEAST_GAIN) * before:
            break
    return centres


def _means(vectors: Tensor, ids: Tensor, distance: Tensor, num_centres: int) -> Tensor:
    """The means of the centres' members; one without members moves to a vector far from its own."""
    counts = torch.bincount(ids, minlength=num_centres).to(vectors.dtype)
    sums = vectors.new_zeros(num_centres, vectors.shape[1]).index_add_(0, ids, vectors)
    centres = sums / counts.clamp_min(1)[:, None]
    empty = (counts == 0).nonzero().flatten()
    centres[empty] = vectors[distance.argsort(descending=True, stable=True)[: len(empty)]]
    return centres


def _start(vectors: Tensor, num_centres: int) -> tuple[Tensor, Tensor]:
    """Vectors far from each other, (K, D), and which of them each vector is nearest to, (N,)."""
    weights = vectors.new_ones(len(vectors))
    distance = torch.full_like(weights, torch.inf)
    ids = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
    centres: list[Tensor] = []
    for part in torch.arange(num_centres, device=vectors.device).tensor_split(
        min(SEEDING_ROUNDS, num_centres)
    ):
        # The largest of ln weight + Gumbel noise are a draw without replacement by weight.
        key = torch.tensor([make_key(0, len(centres), 0, "kmeans")])
        noise = gumbel(key, "kmeans", (1, len(vectors)), vectors.device)[0]
        new = vectors[(weights.log() + noise).topk(len(part)).indices]
        nearest = nearest_code(vectors, new)
        found = (vectors - new[nearest]).square().sum(dim=1)
        ids = torch.where(found < distance, part[nearest], ids)
        distance = torch.minimum(distance, found)
        weights = distance
        centres.append(new)
    return torch.cat(centres), ids
