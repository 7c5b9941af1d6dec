"""The relaxed sample of a categorical posterior, in blocks of rows.

    y = softmax((l + g) / temperature),  z_q = y E,  KL = sum_k q_k (ln q_k + ln K),  q = softmax(l)
    l = W f + b: logits of a position,  g: Gumbel noise,  E: embedding (K, D)

Logits, noise and y have N x K numbers for N positions and K codes: at 8,192 codes they are most of
what a training step would keep. Here a block of rows is finished before the next one begins, and
the backward pass makes the block again from the features, and its noise from the rows' seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from imagetok.keys import gumbel_rows
from imagetok.precision import no_autocast

CPU_SCORES = 2**21
"""Logits of a block on a CPU: its cache would like fewer, and the matrix products want more."""

DEVICE_SCORES = 2**24
"""Logits of a block on other devices, which want few large steps."""


class Relaxed(NamedTuple):
    """What a relaxed sample yields.

    Attributes:
        z_q: (N, D), the mean of the embedding under the sample.
        kl: (N,), the KL to the uniform distribution in nats.
        ids: int64 (N,), the most probable code, without noise.
    """

    z_q: Tensor
    kl: Tensor
    ids: Tensor


def relax(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    embedding: Tensor,
    seeds: Tensor,
    temperature: float,
    *,
    hard: bool = False,
) -> Relaxed:
    """Sample a code for each row, relaxed, with gradients to all but the seeds.

    Args:
        features: Float (N, C).
        weight: Float (K, C), of the linear map to the logits.
        bias: Float (K,), of the same map.
        embedding: Float (K, D), the codes.
        seeds: int64 (N,), the seed of each row's noise; see `imagetok.keys.row_seeds`.
        temperature: Temperature of the relaxation, positive.
        hard: z_q is the likeliest code under the noise, with the relaxed sample's gradient to
            the logits.
    """
    return Relaxed(
        *_Relaxation.apply(features, weight, bias, embedding, seeds, temperature, hard)  # type: ignore[no-untyped-call]
    )


def row_kl(logits: Tensor) -> Tensor:
    """KL of each row's softmax (N, K) to the uniform distribution in nats, (N,)."""
    log_probs = F.log_softmax(logits, dim=-1)
    return (log_probs.exp() * (log_probs + math.log(logits.shape[-1]))).sum(dim=-1)


def _scores(logits: Tensor, seeds: Tensor, temperature: float) -> Tensor:
    """What the sample is the softmax of."""
    noise = gumbel_rows(seeds, logits.shape[-1]).to(logits.dtype)
    return noise.add_(logits).div_(temperature)


def _blocks(features: Tensor, weight: Tensor) -> Iterator[slice]:
    scores = CPU_SCORES if features.device.type == "cpu" else DEVICE_SCORES
    size = max(1, scores // len(weight))
    yield from (slice(start, start + size) for start in range(0, len(features), size))


class _Relaxation(torch.autograd.Function):
    """`relax`; what it keeps for the backward pass are its arguments."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        embedding: Tensor,
        seeds: Tensor,
        temperature: float,
        hard: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `relax`."""
        ctx.save_for_backward(features, weight, bias, embedding, seeds)
        ctx.temperature, ctx.hard = temperature, hard
        ctx.set_materialize_grads(False)
        z_q = features.new_empty(len(features), embedding.shape[1])
        kl, ids = features.new_empty(len(features)), torch.empty_like(seeds)
        for rows in _blocks(features, weight):
            logits = torch.addmm(bias, features[rows], weight.T)
            sample = F.softmax(_scores(logits, seeds[rows], temperature), dim=-1)
            z_q[rows] = embedding[sample.argmax(dim=-1)] if hard else sample @ embedding
            kl[rows], ids[rows] = row_kl(logits), logits.argmax(dim=-1)
        ctx.mark_non_differentiable(ids)
        return z_q, kl, ids

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_z_q: Tensor | None, grad_kl: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of the arguments, each block's logits and sample made again."""
        if grad_z_q is None and grad_kl is None:
            return (None,) * 7
        features, weight, bias, embedding, seeds = ctx.saved_tensors
        grads = [torch.zeros_like(each) for each in (features, weight, bias, embedding)]
        grad_features, grad_weight, grad_bias, grad_embedding = grads
        with no_autocast(features):
            for rows in _blocks(features, weight):
                logits = torch.addmm(bias, features[rows], weight.T)
                parts: list[Tensor] = []
                if grad_z_q is not None:
                    scores = _scores(logits, seeds[rows], ctx.temperature).requires_grad_()
                    with torch.enable_grad():
                        sample = F.softmax(scores, dim=-1)
                    grad_sample = (grad_z_q[rows] / ctx.temperature) @ embedding.T
                    parts += torch.autograd.grad(sample, scores, grad_sample)
                    _add_gradient(grad_embedding, sample.detach(), grad_z_q[rows], ctx.hard)
                if grad_kl is not None:
                    with torch.enable_grad():
                        kl = row_kl(logits.requires_grad_())
                    parts += torch.autograd.grad(kl, logits, grad_kl[rows])
                grad_logits = parts[0] if len(parts) == 1 else parts[0].add_(parts[1])
                torch.mm(grad_logits, weight, out=grad_features[rows])
                grad_weight.addmm_(grad_logits.T, features[rows])
                grad_bias += grad_logits.sum(dim=0)
        return *grads, None, None, None


def _add_gradient(total: Tensor, sample: Tensor, grad_z_q: Tensor, hard: bool) -> None:
    """Add the embedding's gradient: that of the codes which z_q is made of."""
    if hard:
        total.index_add_(0, sample.argmax(dim=-1), grad_z_q)
    else:
        total.addmm_(sample.T, grad_z_q)
