"""Sums, gathers and broadcasts between the ranks of a run; no-ops in a single process.

Rank r holds samples r*b ... (r+1)*b - 1 of a global batch, so that concatenation by rank is sample
order. Every function is a collective: all ranks call it, in the same order. Without a process group
each one returns what a single rank would get, so that callers need no second path. No gradient
flows through any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, overload

import torch
import torch.distributed as dist
from torch import Tensor

from imagetok.errors import ImagetokError, InvalidValueError

T = TypeVar("T")


def is_distributed() -> bool:
    """Whether this process has joined a process group."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    """This process's number among the ranks, in [0, world_size)."""
    return dist.get_rank() if is_distributed() else 0


@overload
def all_reduce_sum(tensors: Tensor) -> Tensor: ...
@overload
def all_reduce_sum(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]: ...
@overload
def all_reduce_sum(tensors: Sequence[Tensor]) -> list[Tensor]: ...
def all_reduce_sum(
    tensors: Tensor | Mapping[str, Tensor] | Sequence[Tensor],
) -> Tensor | dict[str, Tensor] | list[Tensor]:
    """Sum tensors over the ranks, with one collective for all tensors of a dtype.

    Every rank gets the same bits. Half precision is summed in float32; pass float64 for more.

    Args:
        tensors: A tensor, a mapping or a sequence of them; integer or floating, on any device.
            Names, shapes and dtypes are the same on every rank.

    Returns:
        The sums, with the structure, shapes and dtypes of `tensors`, which are not changed.
    """
    if isinstance(tensors, Tensor):
        return _sum_flat([tensors])[0]
    if isinstance(tensors, Mapping):
        names = sorted(tensors)
        sums = dict(zip(names, _sum_flat([tensors[name] for name in names]), strict=True))
        return {name: sums[name] for name in tensors}
    return _sum_flat(tensors)


@torch.no_grad()
def _sum_flat(tensors: Sequence[Tensor]) -> list[Tensor]:
    sums = [tensor.clone() for tensor in tensors]
    if not is_distributed():
        return sums
    places: dict[torch.dtype, list[int]] = {}
    for place, tensor in enumerate(tensors):
        places.setdefault(_sum_dtype(tensor.dtype), []).append(place)
    for dtype, members in places.items():
        flat = torch.cat([tensors[i].reshape(-1).to(_device(), dtype) for i in members])
        dist.all_reduce(flat)
        parts = torch.split(flat, [tensors[i].numel() for i in members])
        for i, part in zip(members, parts, strict=True):
            sums[i].copy_(part.reshape(tensors[i].shape))
    return sums


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else dtype


@torch.no_grad()
def gather_samples(tensor: Tensor) -> Tensor:
    """Concatenate the ranks' samples in sample order.

    Args:
        tensor: (B, ...) of any dtype; B may differ between ranks and be 0.

    Returns:
        (sum of B, ...), the same on every rank, on the device of `tensor`.

    Raises:
        InvalidValueError: The tensor is a scalar, or the ranks disagree on dtype or on the
            other dimensions.
    """
    if tensor.ndim == 0:
        raise InvalidValueError("gather_samples takes a tensor (B, ...), found one of shape ()")
    if not is_distributed():
        return tensor
    kinds = gather_objects((tensor.dtype, tuple(tensor.shape[1:]), len(tensor)))
    if len({(dtype, shape) for dtype, shape, _ in kinds}) > 1:
        found = ", ".join(f"rank {i}: {d} (B, *{s})" for i, (d, s, _) in enumerate(kinds))
        raise InvalidValueError(f"the ranks' samples differ in dtype or shape: {found}")
    # As bytes, because not every backend knows every dtype; padded, because sizes must be equal.
    raw = tensor.contiguous().reshape(-1).view(torch.uint8)
    row_bytes = tensor.shape[1:].numel() * tensor.element_size()
    sizes = [rows * row_bytes for _, _, rows in kinds]
    padded = torch.zeros(max(sizes), dtype=torch.uint8, device=_device())
    padded[: len(raw)] = raw
    parts = [torch.empty_like(padded) for _ in kinds]
    if max(sizes) > 0:
        dist.all_gather(parts, padded)
    joined = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
    rows = sum(rows for _, _, rows in kinds)
    return joined.view(tensor.dtype).reshape(rows, *tensor.shape[1:]).to(tensor.device)


@torch.no_grad()
def gather_equal(tensor: Tensor) -> Tensor:
    """Like `gather_samples`, in one collective, if shapes and dtypes are equal on every rank.

    Args:
        tensor: (B, ...) of any dtype; B is at least 1.

    Returns:
        (world_size * B, ...) in sample order, on the device of `tensor`.
    """
    if not is_distributed():
        return tensor
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).to(_device())
    joined = raw.new_empty(len(raw) * world_size())
    dist.all_gather_into_tensor(joined, raw)
    return joined.to(tensor.device).view(tensor.dtype).reshape(-1, *tensor.shape[1:])


def gather_objects(value: T) -> list[T]:
    """The small Python objects of all ranks, in the order of the ranks."""
    values: list[T] = [value] * world_size()
    if is_distributed():
        dist.all_gather_object(values, value)
    return values


@torch.no_grad()
def broadcast_tensor(tensor: Tensor, source: int = 0) -> Tensor:
    """The tensor of rank `source`, on every rank.

    Args:
        tensor: Any dtype, of the same shape and dtype on every rank; only the source's values
            matter.
        source: The rank whose values are sent.

    Returns:
        A tensor on the device of `tensor`, which is not changed.
    """
    if not is_distributed():
        return tensor
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).to(_device(), copy=True)
    dist.broadcast(raw, source)
    return raw.view(tensor.dtype).reshape(tensor.shape).to(tensor.device)


def broadcast_object(value: T, source: int = 0) -> T:
    """The small Python object of rank `source`, on every rank."""
    values = [value]
    if is_distributed():
        dist.broadcast_object_list(values, source)
    return values[0]


def from_main(make: Callable[[], T]) -> T:
    """Make a small Python object on rank 0 only; every rank gets it, or the error raised there.

    Raises:
        ImagetokError: `make` raised it on rank 0.
    """
    result: tuple[T | None, ImagetokError | None] = (None, None)
    if rank() == 0:
        try:
            result = make(), None
        except ImagetokError as error:
            if not is_distributed():
                raise
            result = None, error
    value, failure = broadcast_object(result)
    if failure is not None:
        raise failure
    return value  # type: ignore[return-value]


def all_agree(flag: bool) -> bool:
    """Whether the flag is set on every rank."""
    return not any_rank(not flag)


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on at least one rank."""
    return bool(all_reduce_sum(torch.tensor(int(flag), device=_device())).item() > 0)


def _device() -> torch.device:
    """The device that the process group's backend takes tensors from."""
    if is_distributed() and "nccl" in str(dist.get_backend()):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
