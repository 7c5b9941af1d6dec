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


def row_seeds(
    keys: Tensor | None, purpose: str, num_samples: int, num_rows: int, device: torch.device
) -> Tensor:
    """Seeds of the rows of noise of several samples, for `gumbel_rows`.

    Args:
        keys: int64 (B,), or None to draw the seeds from torch's own global generator.
        purpose: As in `normal`.
        num_samples: B.
        num_rows: Rows of a sample.
        device: Where to put them.

    Returns:
        int64 tensor (B * num_rows,), sample by sample.
    """
    if keys is None:
        low, high = -(2**63), 2**63 - 1
        return torch.randint(low, high, (num_samples * num_rows,), device=device)
    starts = [make_key(key, 0, 0, purpose) for key in keys.tolist()]
    samples = torch.tensor(starts, dtype=torch.int64, device=device)
    rows = torch.arange(num_rows, device=device) * _GOLDEN
    return _mix(samples[:, None] + rows).flatten()


def gumbel_rows(seeds: Tensor, width: int) -> Tensor:
    """Standard Gumbel noise in which each value is a function of its row's seed and its column.

    The function is a hash, so that any rows can be drawn at any time, all in one draw, and to
    float32's rounding alike on every device. The 31 bits behind a value are even over [0, 1).

    Args:
        seeds: int64 (N,).
        width: Number of columns.

    Returns:
        float32 tensor (N, width) on the device of the seeds.
    """
    noise = torch.empty(len(seeds), width, dtype=torch.float32, device=seeds.device)
    columns = _mix(torch.arange(width, device=seeds.device) * _GOLDEN).to(torch.int32)
    size = max(1, _HASHED_AT_ONCE // width) if seeds.device.type == "cpu" else max(1, len(seeds))
    for part, rows in zip(torch.split(noise, size), torch.split(seeds, size), strict=True):
        low, high = rows.to(torch.int32), (rows >> 32).to(torch.int32)
        bits = low[:, None] + columns
        bits ^= bits >> 16
        bits *= high[:, None] | 1  # odd, so that no bit is lost
        bits ^= bits >> 15
        bits *= _MULTIPLIER
        bits ^= bits >> 13
        bits &= 2**31 - 1
        # -ln(-ln(1 - v)): small v, which give the largest noise, have all of float32's digits.
        torch.add(bits, 0.5, out=part).mul_(-_UNIT).log1p_().neg_().log_().neg_()
    return noise


_HASHED_AT_ONCE = 2**18
"""Values that a CPU makes at once, which stay in its cache."""

_GOLDEN = -7046029254386353131
"""2^64 divided by the golden ratio, as int64: its multiples spread over all of int64."""

_MULTIPLIER = -2048144789
"""An odd multiplier of MurmurHash3's last step, as int32."""

_UNIT = 2.0**-31 * (1 - 2.0**-24)
"""From 31 bits to [0, 1); the largest of them does not round to 1."""


def _mix(numbers: Tensor) -> Tensor:
    """A bijection of int64 whose results look random: SplitMix64's last step."""
    # Shifts of torch keep the sign; the masks make them those of unsigned numbers.
    numbers = (numbers ^ ((numbers >> 30) & (2**34 - 1))) * -4658895280553007687
    numbers = (numbers ^ ((numbers >> 27) & (2**37 - 1))) * -7723592293110705685
    return numbers ^ ((numbers >> 31) & (2**33 - 1))


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
