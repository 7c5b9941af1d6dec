"""Random keys: all randomness of training as a function of (seed, step or epoch, row, purpose).

A key is an integer in [0, 2^63). Noise is drawn for each sample from its own key, in float32 and
on the device where it is used, so that it depends neither on the other samples of a batch nor on
how a batch is divided over ranks, micro-batches or workers. One device kind and one version of
torch give the same noise for the same key; a CPU and a GPU do not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def make_key(seed: int, time: int, row: int, purpose: str) -> int:
    """Derive the key of one sample.

    Args:
        seed: The run's seed.
        time: Optimizer step or epoch, whichever the randomness changes with.
        row: Row of the dataset (0 where the randomness belongs to no row).
        purpose: What the randomness is for, such as `"noise"` or `"augment"`.

    Returns:
        Integer in [0, 2^63).
    """
    text = f"{seed}/{time}/{row}/{purpose}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def make_keys(seed: int, time: int, rows: Sequence[int], purpose: str) -> Tensor:
    """Keys of several samples, int64 (B,)."""
    return torch.tensor([make_key(seed, time, row, purpose) for row in rows], dtype=torch.int64)


def generator(key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of random numbers that starts from `key`."""
    return torch.Generator(device).manual_seed(key)


def _draw(
    keys: Tensor | None,
    purpose: str,
    shape: Sequence[int],
    device: torch.device,
    fill: Callable[[Tensor, torch.Generator | None], Tensor],
    source: torch.Generator | None = None,
) -> Tensor:
    noise = torch.empty(tuple(shape), dtype=torch.float32, device=device)
    if keys is None:
        return fill(noise, source)
    for sample, key in zip(noise, keys.tolist(), strict=True):
        fill(sample, generator(make_key(key, 0, 0, purpose), device))
    return noise


def normal(keys: Tensor | None, purpose: str, shape: Sequence[int], device: torch.device) -> Tensor:
    """Standard normal noise, float32, from one key per sample.

    Args:
        keys: int64 (B,), or None for torch's own global generator.
        purpose: Separates the noise of different uses of the same keys.
        shape: (B, ...) of the result.
        device: Where to draw.

    Returns:
        float32 tensor of `shape`.
    """
    return _draw(keys, purpose, shape, device, lambda t, g: t.normal_(generator=g))


def gumbel(
    keys: Tensor | None,
    purpose: str,
    shape: Sequence[int],
    device: torch.device,
    source: torch.Generator | None = None,
) -> Tensor:
    """Standard Gumbel noise -ln E with E ~ Exp(1), float32; arguments as in `normal`.

    Drawn in float32 whatever the networks' dtype: bfloat16 has under a thousand distinct values
    and float16 gives infinities. Where `keys` is None, `source` stands in for the global generator.
    """
    noise = _draw(keys, purpose, shape, device, lambda t, g: t.exponential_(generator=g), source)
    return noise.log_().neg_()


def choose(keys: Tensor | None, purpose: str, shape: tuple[int, int], high: int) -> Tensor:
    """Choose different indices of [0, high) for each sample.

    Args:
        keys: int64 (B,), or None for torch's own global generator.
        purpose: As in `normal`.
        shape: (B, number of indices per sample, at most `high`).
        high: Exclusive upper bound.

    Returns:
        int64 tensor of `shape`, on the CPU.
    """
    samples, count = shape
    sources: list[torch.Generator | None] = [None] * samples
    if keys is not None:
        sources = [generator(make_key(key, 0, 0, purpose)) for key in keys.tolist()]
    chosen = [torch.randperm(high, generator=source)[:count] for source in sources]
    return torch.stack(chosen) if chosen else torch.empty(shape, dtype=torch.int64)
