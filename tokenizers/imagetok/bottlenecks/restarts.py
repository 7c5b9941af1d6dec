"""What codebooks share to prevent collapse: which codes are dead, and where they start anew.

A code is dead when its running count falls under a share of the mean one (Dhariwal et al., Jukebox,
2020, arXiv 2005.00341). It restarts at one of the step's candidates: encoder outputs, a fixed
number per sample, chosen by the sample's key. The draw among them is a function of the step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from imagetok import keys as random_keys

CANDIDATES_PER_SAMPLE = 8


class LeastUsed(NamedTuple):
    """The codes used least.

    Attributes:
        codes: int64 (S,), least used first.
        dead: bool (S,), whether each of them is dead.
        mean_count: Scalar, the mean running count of all codes.
    """

    codes: Tensor
    dead: Tensor
    mean_count: Tensor


def choose_candidates(vectors: Tensor, num_samples: int, keys: Tensor | None) -> Tensor:
    """Candidates of a batch, in sample order.

    Args:
        vectors: Encoder outputs (B * positions, D).
        num_samples: B.
        keys: int64 (B,), or None for torch's ordinary randomness.

    Returns:
        (B * min(CANDIDATES_PER_SAMPLE, positions), D), different positions of each sample.
    """
    per_sample = len(vectors) // max(1, num_samples)
    count = min(CANDIDATES_PER_SAMPLE, per_sample)
    places = random_keys.choose(keys, "candidates", (num_samples, count), per_sample)
    places += torch.arange(num_samples)[:, None] * per_sample
    return vectors[places.flatten().to(vectors.device)]


def least_used(running_counts: Tensor, share: float, limit: int) -> LeastUsed:
    """The `limit` codes used least; dead are those under `share` of the mean count."""
    codes = running_counts.argsort(stable=True)[:limit]
    mean_count = running_counts.mean()
    return LeastUsed(codes, running_counts[codes] < share * mean_count, mean_count)


def draw_by_weight(weights: Tensor, count: int, step: int) -> Tensor:
    """Draw `count` different indices in proportion to weights (M,), by the step's key; int64."""
    # The largest of ln weight + Gumbel noise are a draw without replacement by weight.
    key = torch.tensor([random_keys.make_key(0, step, 0, "restart")])
    noise = random_keys.gumbel(key, "restart", (1, len(weights)), weights.device)[0]
    return (weights.log() + noise).topk(count).indices
