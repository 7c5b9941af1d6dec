"""What the training pass yields: of a bottleneck, and of a whole tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """What one step hands to `Bottleneck.update`, besides gradients.

    A bottleneck that holds others nests their names: `<level>/counts`.

    Attributes:
        sums: Tensors that are added up over micro-batches and ranks. `counts`, float (K,), is how
            often each code was chosen; codebook usage is read from it, and for a frozen bottleneck
            nothing else is merged.
        samples: Tensors with a fixed number of rows for each sample, concatenated over
            micro-batches and ranks in sample order.
    """

    sums: Mapping[str, Tensor] = field(default_factory=dict)
    samples: Mapping[str, Tensor] = field(default_factory=dict)


def is_counts(name: str) -> bool:
    """Whether a name in `Statistics.sums` is that of a level's code counts."""
    return name.split("/")[-1] == "counts"


@dataclass(frozen=True)
class BottleneckOutput:
    """Result of a bottleneck's training pass.

    Attributes:
        z_q: float (B, latent_dim, h, w), what the decoder gets.
        ids: int64 (B, h, w), or (B, h, w, depth) where a position has several codes; None for a
            continuous bottleneck.
        losses: Unweighted scalars keyed `loss/...`; `loss/kl` in nats per image.
        metrics: Detached scalars keyed `group/name`, means over the batch.
        statistics: What `update` takes; None where everything is learnt by gradients.
    """

    z_q: Tensor
    ids: Tensor | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, Tensor] = field(default_factory=dict)
    statistics: Statistics | None = None


@dataclass(frozen=True)
class TokenizerOutput:
    """Result of a tokenizer's training pass.

    Attributes:
        x_hat: float (B, C, H, W) in [0, 1], the reconstruction that figures are measured on:
            `mean`, detached and clamped.
        ids: int64 (B, h, w) or (B, h, w, depth), or None for a continuous model.
        losses: Unweighted scalars keyed `loss/...`; `loss/reconstruction` and `loss/kl` in nats
            per pixel and channel, so that weight 1 on both is the ELBO for every shape.
        metrics: Detached scalars keyed `group/name`.
        statistics: What `bottleneck.update` takes.
        mean: float (B, C, H, W), the reconstruction with its gradient. It is not clamped, because
            a clamp kills gradients wherever the decoder overshoots.
    """

    x_hat: Tensor
    ids: Tensor | None
    losses: dict[str, Tensor]
    metrics: dict[str, Tensor] = field(default_factory=dict)
    statistics: Statistics | None = None
    mean: Tensor = field(kw_only=True)
