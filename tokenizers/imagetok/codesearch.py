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

from imagetok.exact import no_autocast

BLOCK_SCORES = 2**24
"""Scores held at once: 64 MiB in float32."""


def _search_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    # Where the user lets float32 products run in TF32 or bfloat16, ids would change. The setting is
    # process-wide, so it is respected by going around it. It is read where both of torch's switches
    # end up: torch.get_float32_matmul_precision() raises once the newer one has been used.
    switches = {"cpu": torch.backends.mkldnn, "cuda": torch.backends.cuda}
    backend: Any = switches.get(device.type)
    if backend is not None and backend.matmul.fp32_precision not in ("none", "ieee"):
        return torch.float64
    return torch.promote_types(dtype, torch.float32)


def _in_blocks(rows: Tensor, num_codes: int, best: Callable[[Tensor], Tensor]) -> Tensor:
    block = max(1, BLOCK_SCORES // num_codes)
    if len(rows) <= block:
        return best(rows)
    return torch.cat([best(part) for part in torch.split(rows, block)])


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
        return _in_blocks(
            vectors.to(dtype),
            len(table),
            lambda part: torch.addmm(half_norms, part, table.T, alpha=-1).argmin(dim=1),
        )


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
        return _in_blocks(
            features.to(dtype),
            len(table),
            lambda part: torch.addmm(offsets, part, table.T).argmax(dim=1),
        )
