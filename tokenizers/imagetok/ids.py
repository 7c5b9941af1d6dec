"""Reading token ids that a user gives: kind, dtype, range and grid are checked, never guessed."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imagetok.config import printable
from imagetok.errors import IdsError, IdsTypeError, InvalidTypeError, InvalidValueError


def read_ids(
    ids: Any, codebook_sizes: tuple[int, ...], token_shape: tuple[int, ...]
) -> tuple[Tensor, bool]:
    """Read ids of one image or of several.

    Args:
        ids: Integer tensor, array or nested list, of `token_shape` or its flat form (n,) for one
            image, with B in front for several. A shape equal to `token_shape` is always one image.
        codebook_sizes: Ids of level i lie in [0, codebook_sizes[i]).
        token_shape: (h, w), or (h, w, depth) where there are several levels.

    Returns:
        int64 tensor (B, *token_shape), and whether one image was given.

    Raises:
        IdsTypeError: ids are not integers, or of a dtype that cannot hold every id.
        IdsError: ids are out of range, do not fit the grid, or are not rectangular.
    """
    tensor = _to_tensor(ids, max(codebook_sizes))
    length = math.prod(token_shape)
    shape = tuple(tensor.shape)
    if shape in {token_shape, (length,)}:
        batch, single = tensor.reshape(1, *token_shape), True
    elif shape[1:] in {token_shape, (length,)}:
        batch, single = tensor.reshape(-1, *token_shape), False
    else:
        sides = ", ".join(map(str, token_shape))
        raise IdsError(
            f"ids of shape {shape} fit no reading for the grid {token_shape}: expected "
            f"{token_shape} or ({length},) for one image, (B, {sides}) or (B, {length}) "
            "for several; give grid=(h, w) for ids of another grid"
        )
    levels = [batch] if len(codebook_sizes) == 1 else batch.unbind(-1)
    for level, size in zip(levels, codebook_sizes, strict=True):
        if level.numel():
            _check_range(int(level.min()), int(level.max()), size)
    return batch, single


def read_sequence(ids: Tensor, token_shape: tuple[int, ...]) -> Tensor:
    """Flatten the last dimensions of ids, (..., *token_shape), to (..., n).

    Raises:
        IdsError: They are not those of `token_shape`.
    """
    if not isinstance(ids, Tensor) or tuple(ids.shape[-len(token_shape) :]) != token_shape:
        found = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        raise IdsError(f"found {found}; expected a tensor whose last sizes are {token_shape}")
    return ids.flatten(-len(token_shape))


def read_grid(grid: Any) -> tuple[int, int]:
    """Read the (height, width) of a grid.

    Raises:
        InvalidTypeError: This is not a pair of integers.
        InvalidValueError: A side is less than 1.
    """
    found = printable(repr(grid))
    try:
        if not isinstance(grid, list | tuple | np.ndarray | Tensor):
            raise TypeError("a set, for instance, has no order")
        height, width = (_side(side) for side in grid)
    except (TypeError, ValueError, RuntimeError):  # the last one from tensors on meta
        raise InvalidTypeError(
            f"grid must be a pair of integers (height, width), got {found}"
        ) from None
    if height < 1 or width < 1:
        raise InvalidValueError(f"grid must be (height, width) of at least 1, got {found}")
    return height, width


def _side(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError("a bool is not a number of positions")
    return operator.index(value)


def _to_tensor(ids: Any, codebook_size: int) -> Tensor:
    if isinstance(ids, list | tuple):
        ids = _stack(ids)
    if isinstance(ids, np.ndarray):
        if ids.dtype.kind not in "iu":
            raise _wrong_dtype(str(ids.dtype), codebook_size)
        _check_width(np.iinfo(ids.dtype).max, str(ids.dtype), codebook_size)
        if ids.dtype == np.uint64 and ids.size:  # beyond 2^63 they would turn negative
            _check_range(0, int(ids.max()), codebook_size)
        return torch.from_numpy(ids.astype(np.int64))
    if not isinstance(ids, Tensor):
        raise IdsTypeError(
            f"ids of type {type(ids).__name__} are not taken; give an integer tensor, array or "
            "nested list"
        )
    if ids.is_meta or ids.is_nested or ids.layout != torch.strided:
        raise IdsTypeError("ids must be a dense tensor with values, not sparse or on 'meta'")
    if ids.dtype == torch.bool or ids.is_floating_point() or ids.is_complex():
        raise _wrong_dtype(str(ids.dtype), codebook_size)
    if ids.dtype == torch.uint64:  # torch compares no uint64
        return _to_tensor(ids.cpu().numpy(), codebook_size)
    _check_width(torch.iinfo(ids.dtype).max, str(ids.dtype), codebook_size)
    return ids.to(torch.int64)


def _stack(ids: list[Any] | tuple[Any, ...]) -> Any:
    """A nested list as an array; a list of tensors as one tensor."""
    if ids and all(isinstance(part, Tensor) for part in ids):
        shapes = {tuple(part.shape) for part in ids}
        dtypes = {part.dtype for part in ids}
        if len(shapes) > 1 or len(dtypes) > 1:
            raise IdsError(
                f"a list of id tensors must have one shape and dtype, got {sorted(shapes)} and "
                f"{sorted(map(str, dtypes))}; decode them one by one"
            )
        return torch.stack(list(ids))
    if not ids:
        raise IdsError("an empty list of ids has no shape; give a tensor of shape (0, h, w)")
    try:
        array = np.asarray(ids)
        if array.dtype.kind in "iu" and array.size and array.min() <= 1 and _holds_bool(ids):
            return np.asarray(ids, dtype=bool)  # numpy reads [True, 2] as integers
        return array
    except (ValueError, OverflowError, TypeError):
        raise IdsError(
            "a nested list of ids must be rectangular, with every row of one length"
        ) from None


def _holds_bool(ids: Any) -> bool:
    if isinstance(ids, list | tuple):
        return any(_holds_bool(part) for part in ids)
    return isinstance(ids, bool) or "bool" in str(getattr(ids, "dtype", ""))


def _wrong_dtype(dtype: str, codebook_size: int) -> IdsTypeError:
    return IdsTypeError(
        f"ids of dtype {dtype} are not taken; give integers in [0, {codebook_size}), such as int64"
    )


def _check_range(low: int, high: int, codebook_size: int) -> None:
    if low < 0 or high >= codebook_size:
        raise IdsError(
            f"id {low if low < 0 else high} is out of range: this tokenizer's ids lie in "
            f"[0, {codebook_size}); take off the offset of a joint vocabulary and leave out "
            "special ids before decoding"
        )


def _check_width(largest: int, dtype: str, codebook_size: int) -> None:
    if largest < codebook_size - 1:
        raise IdsTypeError(
            f"ids of dtype {dtype} cannot hold every id of a codebook of {codebook_size} (largest "
            f"value {largest}); they may have overflowed before: make them wider where they arise"
        )
