"""K-means of encoder outputs to a large codebook, beside full Lloyd's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.measurement import Case
from benchmarks.variant_process import Runs, Variant
from benchmarks.weights import as_array

NUM_VECTORS, NUM_CENTRES, DIM = 65_536, 16_384, 8

MOST_WORSE = 0.01
"""By how much the error on held-out vectors may be above that of full Lloyd's."""


def _vectors(seed: int) -> Tensor:
    """Vectors that lie in clusters of different widths."""
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(512, DIM, generator=random)
    widths = torch.rand(512, generator=random)
    random.manual_seed(seed)
    members = torch.randint(512, (NUM_VECTORS,), generator=random)
    noise = torch.randn(NUM_VECTORS, DIM, generator=random)
    return centres[members] + widths[members, None] * noise


def make_ours() -> Runs:
    """The k-means by which codebooks start."""
    from imagetok.bottlenecks.kmeans import kmeans

    vectors = _vectors(1)
    return {"": lambda: as_array(kmeans(vectors, NUM_CENTRES))}


def make_lloyd() -> Runs:
    """The same start, and ten iterations over all vectors with imagetok's search."""
    from imagetok.codesearch import nearest_code
    from imagetok.keys import gumbel, make_key

    vectors = _vectors(1)

    def start() -> Tensor:
        weights = vectors.new_ones(len(vectors))
        distance = torch.full_like(weights, torch.inf)
        centres: list[Tensor] = []
        for part in torch.arange(NUM_CENTRES).tensor_split(256):
            key = torch.tensor([make_key(0, len(centres), 0, "kmeans")])
            noise = gumbel(key, "kmeans", (1, len(vectors)), vectors.device)[0]
            new = vectors[(weights.log() + noise).topk(len(part)).indices]
            nearest = new[nearest_code(vectors, new)]
            distance = torch.minimum(distance, (vectors - nearest).square().sum(dim=1))
            weights = distance
            centres.append(new)
        return torch.cat(centres)

    def run() -> Any:
        centres = start()
        for _ in range(10):
            ids = nearest_code(vectors, centres)
            counts = torch.bincount(ids, minlength=NUM_CENTRES).to(vectors.dtype)
            sums = torch.zeros_like(centres).index_add_(0, ids, vectors)
            distance = (vectors - centres[ids]).square().sum(dim=1)
            empty = (counts == 0).nonzero().flatten()
            centres = sums / counts.clamp_min(1)[:, None]
            centres[empty] = vectors[distance.argsort(descending=True, stable=True)[: len(empty)]]
        return as_array(centres)

    return {"": run}


def _error(centres: Any) -> float:
    """Mean squared distance of held-out vectors to their nearest centres."""
    from imagetok.codesearch import nearest_code

    vectors, table = _vectors(2), torch.from_numpy(centres)
    return float((vectors - table[nearest_code(vectors, table)]).square().sum(1).mean())


def _difference(part: str, expected: Any, found: Any) -> float:
    """By how much our error is above the peer's, as a share of it."""
    return max(0.0, _error(found) / _error(expected) - 1)


def cases() -> Iterator[Case]:
    """The one case."""
    yield Case(
        "kmeans",
        f"k-means of {NUM_VECTORS:,} vectors of {DIM} numbers to {NUM_CENTRES:,} centres, against "
        "full Lloyd's; 'differs' is how much the error on held-out vectors is above",
        [Variant("imagetok", make_ours, keeps_memory=True)],
        Variant("full Lloyd's", make_lloyd, keeps_memory=True),
        difference=_difference,
        most_different=MOST_WORSE,
        keeps=False,
        runs_once=True,
    )
