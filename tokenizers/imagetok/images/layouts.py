"""uint8 arrays and tensors as pictures: their layouts, and what must be refused about them.

A numpy array is (H, W), (H, W, C) or (B, H, W, C), a tensor is (C, H, W) or (B, C, H, W). The
layout follows from the kind alone, never from a guess at the shape.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from imagetok.errors import ImageTypeError, ImageValueError
from imagetok.images.limits import check_size
from imagetok.images.modes import Pixels

CHANNELS = (1, 3, 4)
"""Channels that a picture or a tokenizer can have: gray, RGB, RGBA."""


def check_array(array: npt.NDArray[np.generic], name: str) -> None:
    """Refuse an array that is no uint8 picture and no batch of them.

    Raises:
        ImageTypeError: The dtype is not uint8.
        ImageValueError: The layout is not (H, W), (H, W, C) or (B, H, W, C) with C = 1, 3 or 4,
            or a picture is empty or over the pixel limit.
    """
    if array.dtype != np.uint8:
        remedy = "pass uint8 in 0..255"
        if array.dtype.kind == "f":
            remedy += ", or a float torch tensor (C, H, W) in [0, 1], which is taken as prepared"
        elif array.dtype.kind == "O":
            remedy += ", or several pictures as a list"
        raise ImageTypeError(f"{name} has dtype {array.dtype}; {remedy}")
    shape = array.shape
    if array.ndim not in (2, 3, 4):
        raise ImageValueError(
            f"{name} has {array.ndim} axes; an array is (H, W), (H, W, C) or (B, H, W, C)"
        )
    if array.ndim > 2 and shape[-1] not in CHANNELS:
        remedy = "for gray pictures in a batch add the axis with array[..., None]"
        if shape[-3] in CHANNELS:
            remedy = "this looks like (C, H, W): pass np.moveaxis(array, -3, -1)"
        elif shape[-1] == 2:
            remedy = "gray with alpha is read from a PIL image of mode LA"
        raise ImageValueError(
            f"{name} has {shape[-1]} channels on its last axis; arrays are (H, W), (H, W, C) or "
            f"(B, H, W, C) with 1, 3 or 4 channels; {remedy}"
        )
    height, width = shape if array.ndim == 2 else shape[-3:-1]
    check_size(height, width, name)


def check_tensor(x: Tensor, name: str) -> None:
    """Refuse a tensor that is no uint8 picture and no batch of them.

    Raises:
        ImageTypeError: The dtype is not uint8, or there are no plain values to read.
        ImageValueError: The layout is not (C, H, W) or (B, C, H, W) with C = 1, 3 or 4, or a
            picture is empty or over the pixel limit.
    """
    check_readable(x, name)
    if x.dtype != torch.uint8:
        remedy = "pass uint8 in 0..255, or floats in [0, 1], which are taken as prepared"
        if x.dtype.is_floating_point:
            remedy = "float tensors are taken as prepared already; a picture is uint8 in 0..255"
        raise ImageTypeError(f"{name} has dtype {x.dtype}; {remedy}")
    check_layout(x, CHANNELS, name)
    check_size(x.shape[-2], x.shape[-1], name)


def check_readable(x: Tensor, name: str) -> None:
    """Refuse tensors without plain values: sparse, nested, or on the meta device."""
    if x.is_nested or x.layout != torch.strided:
        raise ImageTypeError(f"{name} is sparse or nested; pass a dense tensor")
    if x.device.type == "meta":
        raise ImageTypeError(f"{name} is on the meta device and holds no values")


def check_layout(x: Tensor, channels: tuple[int, ...], name: str) -> None:
    """Refuse every layout but (C, H, W) and (B, C, H, W) with C one of `channels`."""
    expected = " or ".join(str(count) for count in channels)
    if x.ndim not in (3, 4):
        remedy = "; add the channel axis with x[None]" if x.ndim == 2 else ""
        raise ImageValueError(
            f"{name} has {x.ndim} axes; a tensor is (C, H, W) or (B, C, H, W){remedy}"
        )
    if x.shape[-3] in channels:
        return
    remedy = ""
    if x.shape[-1] in channels:
        order = "2, 0, 1" if x.ndim == 3 else "0, 3, 1, 2"
        remedy = f"; this looks like channels last: pass x.permute({order})"
    elif x.shape[-3] in CHANNELS:
        remedy = "; pictures (paths, PIL images, uint8) are converted, float tensors are not"
    raise ImageValueError(
        f"{name} has {x.shape[-3]} channels; expected {expected} in (C, H, W) or (B, C, H, W)"
        + remedy
    )


def array_to_pixels(array: Pixels) -> Pixels:
    """One checked array (H, W) or (H, W, C) as (H, W, C)."""
    return array if array.ndim == 3 else array[:, :, None]


def tensor_to_pixels(x: Tensor) -> Pixels:
    """One checked uint8 tensor (C, H, W) as an array (H, W, C) that may share its memory."""
    pixels: Pixels = x.detach().cpu().permute(1, 2, 0).numpy()
    return pixels
