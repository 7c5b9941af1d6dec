"""Arguments of a tokenizer's methods other than images and ids.

Each function returns the value in the one form that the code works with, or refuses it with the
remedy.
"""

from __future__ import annotations

import math
import operator
import os
from numbers import Real
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from imagetok.config import printable
from imagetok.errors import InvalidTypeError, InvalidValueError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Types that networks compute in, by name."""

LATENT_DTYPES = {*DTYPES.values(), torch.float64}
"""Types in which latents are accepted."""

MAX_COUNT = 2**31 - 1
"""Largest count that is accepted."""


def read_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    """The networks' dtype; None is float32.

    Raises:
        InvalidValueError: It is not one of `DTYPES`.
    """
    found: object = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    found = torch.float32 if dtype is None else found
    if found not in DTYPES.values():
        raise InvalidValueError(f"unknown dtype {dtype!r}; choose one of: {', '.join(DTYPES)}")
    return cast(torch.dtype, found)


def read_folder(folder: str | os.PathLike[str]) -> Path:
    """The path of a tokenizer's folder, which need not exist.

    Raises:
        InvalidTypeError: `folder` is not a path.
    """
    if not isinstance(folder, str | os.PathLike):
        raise InvalidTypeError(
            f"a tokenizer's folder is named by a path, got {type(folder).__name__}"
        )
    return Path(folder)


def read_count(name: str, value: int, least: int) -> int:
    """An integer of at least `least`; `name` is what messages call it.

    Raises:
        InvalidTypeError: `value` is not an integer.
        InvalidValueError: It is under `least` or over `MAX_COUNT`.
    """
    try:
        count = None if isinstance(value, bool) else operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # the last two from arrays and tensors
        count = None
    if count is None:
        raise InvalidTypeError(f"{name} must be an integer, got {printable(repr(value))}")
    if not least <= count <= MAX_COUNT:
        found = printable(str(count))
        raise InvalidValueError(
            f"{name} must be at least {least} and at most {MAX_COUNT}, got {found}"
        )
    return count


def check_temperature(temperature: float) -> float:
    """Check the temperature of a draw, and return it as a float.

    Raises:
        InvalidTypeError: It is not a number.
        InvalidValueError: It is negative or not finite.
    """
    if isinstance(temperature, bool) or not isinstance(temperature, Real):
        raise InvalidTypeError(f"temperature must be a number, got {type(temperature).__name__}")
    try:
        found = float(temperature)
    except OverflowError:
        found = math.inf
    if not 0 <= found < math.inf:
        raise InvalidValueError(
            f"temperature must be finite and >= 0, got {printable(str(temperature))}"
        )
    return found


def check_generator(generator: torch.Generator | None) -> None:
    """Check the generator of a draw's noise.

    Raises:
        InvalidTypeError: It is neither a torch.Generator nor None.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise InvalidTypeError(
            f"generator must be a torch.Generator or None, got {type(generator).__name__}"
        )


def check_pixels(x: Tensor) -> None:
    """Check what a tokenizer's training pass is called with.

    Raises:
        InvalidTypeError: It is not a float tensor (B, C, H, W).
    """
    if isinstance(x, Tensor) and x.ndim == 4 and (x.is_floating_point() or x.dtype == torch.uint8):
        return
    found = f"a tensor {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
    raise InvalidTypeError(
        "calling a tokenizer is its training pass and takes float pixels (B, C, H, W) in [0, 1], "
        f"got {found}; use tok.encode(images) for ids, or tok.reconstruct(images)"
    )


def read_latents(latents: Tensor, latent_dim: int) -> tuple[Tensor, bool]:
    """Read latents of one image or of several.

    Args:
        latents: Float tensor (latent_dim, h, w) or (B, latent_dim, h, w).
        latent_dim: Channels that the decoder expects.

    Returns:
        The same values as (B, latent_dim, h, w), and whether one image was given.

    Raises:
        InvalidTypeError: `latents` is not a dense float tensor.
        InvalidValueError: The shape is another, or values are not finite.
    """
    if not isinstance(latents, Tensor) or latents.dtype not in LATENT_DTYPES:
        kind = latents.dtype if isinstance(latents, Tensor) else type(latents).__name__
        raise InvalidTypeError(
            f"latents must be a float tensor, got {kind}; pass float32, bfloat16 or float16"
        )
    if latents.is_meta or latents.is_nested or latents.layout != torch.strided:
        raise InvalidTypeError(
            "latents must be a dense tensor with values, not sparse or on 'meta'"
        )
    single = latents.ndim == 3
    batch = latents[None] if single else latents
    if batch.ndim != 4 or batch.shape[1] != latent_dim:
        raise InvalidValueError(
            f"latents of shape {tuple(latents.shape)} do not fit: expected "
            f"({latent_dim}, h, w) or (B, {latent_dim}, h, w)"
        )
    if not torch.isfinite(batch.to(torch.float32)).all():
        raise InvalidValueError("latents have values that are not finite in float32")
    return batch, single
