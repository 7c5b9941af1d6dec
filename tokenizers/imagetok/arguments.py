"""Reading what a user gives to a tokenizer's methods beside pictures and ids.

Each function returns the value in the one form that the code works with, or refuses it in words.
"""

from __future__ import annotations

import math
import os
from numbers import Real
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from imagetok.errors import InvalidTypeError, InvalidValueError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What networks compute in, by name."""


def read_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    """The networks' dtype; None is float32.

    Raises:
        InvalidValueError: It is none of `DTYPES`.
    """
    found: object = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    found = torch.float32 if dtype is None else found
    if found not in DTYPES.values():
        raise InvalidValueError(f"unknown dtype {dtype!r}; choose one of: {', '.join(DTYPES)}")
    return cast(torch.dtype, found)


def read_device(device: str | torch.device | None) -> torch.device:
    """A device that this machine has; None is the CPU.

    Raises:
        InvalidValueError: There is no such device, or it holds no values.
    """
    try:
        found = torch.empty(0, device="cpu" if device is None else device).device
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise InvalidValueError(f"device {device!r} cannot be used here: {reason}") from None
    if found.type == "meta":
        raise InvalidValueError("device 'meta' holds no values; choose cpu or an accelerator")
    return found


def read_folder(folder: str | os.PathLike[str]) -> Path:
    """The path of a tokenizer's folder, which need not exist.

    Raises:
        InvalidTypeError: This is no path.
    """
    if not isinstance(folder, str | os.PathLike):
        raise InvalidTypeError(
            f"a tokenizer's folder is named by a path, got {type(folder).__name__}"
        )
    return Path(folder)


def read_count(name: str, value: int, least: int) -> int:
    """An integer of at least `least`; `name` is what messages call it.

    Raises:
        InvalidTypeError: This is no integer.
        InvalidValueError: It is smaller.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InvalidTypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise InvalidValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def check_temperature(temperature: float) -> None:
    """Check the temperature of a draw.

    Raises:
        InvalidTypeError: This is no number.
        InvalidValueError: It is negative or not finite.
    """
    if not isinstance(temperature, Real):
        raise InvalidTypeError(f"temperature must be a number, got {type(temperature).__name__}")
    if not 0 <= temperature < math.inf:
        raise InvalidValueError(f"temperature must be finite and >= 0, got {temperature}")


def read_latents(latents: Tensor, latent_dim: int) -> tuple[Tensor, bool]:
    """Read latents of one image or of several.

    Args:
        latents: Float tensor (latent_dim, h, w) or (B, latent_dim, h, w).
        latent_dim: Channels that the decoder takes.

    Returns:
        The same values as (B, latent_dim, h, w), and whether one image was given.

    Raises:
        InvalidTypeError: latents are no float tensor.
        InvalidValueError: They have another shape, or values that are not finite.
    """
    if not isinstance(latents, Tensor) or not latents.is_floating_point():
        kind = latents.dtype if isinstance(latents, Tensor) else type(latents).__name__
        raise InvalidTypeError(f"latents must be a float tensor, got {kind}")
    single = latents.ndim == 3
    batch = latents[None] if single else latents
    if batch.ndim != 4 or batch.shape[1] != latent_dim:
        raise InvalidValueError(
            f"latents of shape {tuple(latents.shape)} do not fit: expected "
            f"({latent_dim}, h, w) or (B, {latent_dim}, h, w)"
        )
    if not torch.isfinite(batch).all():
        raise InvalidValueError("latents have values that are not finite")
    return batch, single
