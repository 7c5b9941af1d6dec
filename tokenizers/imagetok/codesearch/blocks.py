"""The search in torch: products and argmax in blocks, in float32 or better.

In bfloat16 the difference of large scores cancels and nearly every id can be wrong. Ties go to the
lowest index.
"""

from __future__ import annotations

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
MAX_CODES = 2**17
"""Most codes compared at once, so that `MIN_ROWS` of them take 16 MiB at most."""


def search_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype to search tensors of a dtype in."""
    # Where the user lets float32 products run in TF32 or bfloat16, ids would change. The setting is
    # process-wide, so it is respected by going around it. It is read where both of torch's switches
    # end up: torch.get_float32_matmul_precision() raises once the newer one has been used.
    switches = {"cpu": torch.backends.mkldnn, "cuda": torch.backends.cuda}
    backend: Any = switches.get(device.type)
    if backend is not None and backend.matmul.fp32_precision not in ("none", "ieee"):
        return torch.float64
    return torch.promote_types(dtype, torch.float32)


def search_in_blocks(rows: Tensor, table: Tensor, biases: Tensor | None) -> Tensor:
    """Index of the nearest code of each row, or of the largest output of a linear map.

    Args:
        rows: Float tensor (N, D).
        table: Float tensor (K, D).
        biases: Float tensor (K,) of the linear map; None searches for the nearest code.

    Returns:
        int64 tensor (N,) in [0, K).
    """
    dtype = search_dtype(torch.promote_types(rows.dtype, table.dtype), rows.device)
    rows, biases = rows.to(dtype), None if biases is None else biases.to(dtype)
    ids, scores = None, None
    with no_autocast(rows):
        for start in range(0, len(table), MAX_CODES):
            codes = slice(start, start + MAX_CODES)
            part = table[codes].to(dtype)
            offsets = part.square().sum(dim=1) / 2 if biases is None else -biases[codes]
            found, best = _search(rows, part, offsets)
            if ids is None or scores is None:
                ids, scores = found, best
                continue
            # As in argmin, what is not a number is less than all numbers.
            is_less = (best < scores) | (best.isnan() & ~scores.isnan())
            ids = torch.where(is_less, found + start, ids)
            scores = torch.where(is_less, best, scores)
    assert ids is not None  # a table has a code
    return ids


def _search(rows: Tensor, table: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Where `offsets - rows @ table.T` is least in each row, and how much it is there, (N,)."""
    most = CPU_SCORES if rows.device.type == "cpu" else DEVICE_SCORES
    block = max(1, min(len(rows), max(MIN_ROWS, most // len(table))))
    # One buffer for all blocks: a new one for each would leave the heap in pieces.
    scores = rows.new_empty(block, len(table))
    ids = torch.empty(len(rows), 1, dtype=torch.int64, device=rows.device)
    best = rows.new_empty(len(rows), 1)
    for start in range(0, len(rows), block):
        part, out = rows[start : start + block], ids[start : start + block]
        held = scores[: len(part)]
        torch.addmm(offsets, part, table.T, alpha=-1, out=held)
        torch.argmin(held, dim=1, keepdim=True, out=out)
        torch.gather(held, 1, out, out=best[start : start + block])
    return ids[:, 0], best[:, 0]
