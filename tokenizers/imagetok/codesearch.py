"""Nearest code, and argmax of a linear map, without the (N, K) matrix of scores.

The nearest code of z minimises |z - e|^2; |z|^2 is the same for all codes, so |e|^2 / 2 - z.e is
searched instead. Scores are made in blocks of rows and in float32 or better: in bfloat16 the
difference cancels and nearly every id can be wrong. Ties go to the lowest index.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from imagetok.precision import no_autocast

CPU_SCORES = 2**20
"""Scores held at once on a CPU: 4 MiB in float32 stay in its cache, which makes the search three
times as fast as 64 MiB do.
"""
DEVICE_SCORES = 2**24
"""Scores held at once on other devices, which want few large steps."""
MIN_ROWS = 32
"""Fewest rows searched at once: with fewer, reading a large table takes longer than the products.
"""


def _search_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    # Where the user lets float32 products run in TF32 or bfloat16, ids would change. The setting is
    # process-wide, so it is respected by going around it. It is read where both of torch's switches
    # end up: torch.get_float32_matmul_precision() raises once the newer one has been used.
    switches = {"cpu": torch.backends.mkldnn, "cuda": torch.backends.cuda}
    backend: Any = switches.get(device.type)
    if backend is not None and backend.matmul.fp32_precision not in ("none", "ieee"):
        return torch.float64
    return torch.promote_types(dtype, torch.float32)


def _best(
    rows: Tensor, table: Tensor, offsets: Tensor, alpha: float, choose: Callable[..., Tensor]
) -> Tensor:
    """What `choose` (argmin or argmax) picks from `offsets + alpha * rows @ table.T`, (N,)."""
    most = CPU_SCORES if rows.device.type == "cpu" else DEVICE_SCORES
    block = max(1, min(len(rows), max(MIN_ROWS, most // len(table))))
    # One buffer for all blocks: a new one for each would leave the heap in pieces.
    scores = rows.new_empty(block, len(table))
    best = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        held = scores[: len(part)]
        torch.addmm(offsets, part, table.T, alpha=alpha, out=held)
        choose(held, dim=1, out=best[start : start + block])
    return best


@torch.no_grad()
def nearest_code(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the code nearest to each vector.

    Args:
        vectors: Float tensor (N, D).
        codebook: Float tensor (K, D).

    Returns:
        int64 tensor (N,) in [0, K).
    """
    dtype = _search_dtype(torch.promote_types(vectors.dtype, codebook.dtype), vectors.device)
    table = codebook.to(dtype)
    half_norms = table.square().sum(dim=1) / 2
    with no_autocast(vectors):
        return _best(vectors.to(dtype), table, half_norms, -1, torch.argmin)


@torch.no_grad()
def argmax_linear(features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Index of the largest output of a linear map.

    Args:
        features: Float tensor (N, C).
        weight: Float tensor (K, C).
        bias: Float tensor (K,), or None for zeros.

    Returns:
        int64 tensor (N,) in [0, K).
    """
    dtype = _search_dtype(torch.promote_types(features.dtype, weight.dtype), features.device)
    table = weight.to(dtype)
    offsets = table.new_zeros(len(table)) if bias is None else bias.to(dtype)
    with no_autocast(features):
        return _best(features.to(dtype), table, offsets, 1, torch.argmax)
