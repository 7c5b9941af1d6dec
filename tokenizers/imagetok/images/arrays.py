"""Arrays and tensors as images: their layouts, and what is refused about them.

A numpy array is (H, W), (H, W, C) or (B, H, W, C), a tensor is (C, H, W) or (B, C, H, W). The
layout follows from the kind alone, never from a guess at the shape. uint8 values are images still
to be converted; float tensors have been prepared by the caller: they are checked, never changed.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from imagetok.errors import ImageTypeError, ImageValueError
from imagetok.images.pixels import CHANNELS, MAX_PIXELS, Pixels, check_size


def check_array(array: npt.NDArray[np.generic], name: str, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse an array that is neither a uint8 image nor a batch of them.

    Args:
        array: What may be one.
        name: What messages call it.
        max_pixels: Most pixels of an image.

    Raises:
        ImageTypeError: The dtype is not uint8.
        ImageValueError: The layout is not (H, W), (H, W, C) or (B, H, W, C) with C = 1, 3 or 4,
            or an image is empty or over the pixel limit.
    """
    if array.dtype != np.uint8:
        remedy = "pass uint8 in 0..255"
        if array.dtype.kind == "f":
            remedy += ", or a float torch tensor (C, H, W) in [0, 1], which is taken as prepared"
        elif array.dtype.kind == "O":
            remedy += ", or several images as a list"
        raise ImageTypeError(f"{name} has dtype {array.dtype}; {remedy}")
    shape = array.shape
    if array.ndim not in (2, 3, 4):
        raise ImageValueError(
            f"{name} has {array.ndim} axes; an array is (H, W), (H, W, C) or (B, H, W, C)"
        )
    if array.ndim > 2 and shape[-1] not in CHANNELS:
        remedy = "for gray images in a batch add the axis with array[..., None]"
        if shape[-3] in CHANNELS:
            remedy = "this looks like (C, H, W): pass np.moveaxis(array, -3, -1)"
        elif shape[-1] == 2:
            remedy = "gray with alpha is read from a PIL image of mode LA"
        raise ImageValueError(
            f"{name} has {shape[-1]} channels on its last axis; arrays are (H, W), (H, W, C) or "
            f"(B, H, W, C) with 1, 3 or 4 channels; {remedy}"
        )
    height, width = shape if array.ndim == 2 else shape[-3:-1]
    check_size(height, width, name, max_pixels)


def check_tensor(x: Tensor, name: str, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse a tensor that is neither a uint8 image nor a batch of them.

    Args:
        x: What may be one.
        name: What messages call it.
        max_pixels: Most pixels of an image.

    Raises:
        ImageTypeError: The dtype is not uint8, or the tensor holds no plain values.
        ImageValueError: The layout is not (C, H, W) or (B, C, H, W) with C = 1, 3 or 4, or an
            image is empty or over the pixel limit.
    """
    check_readable(x, name)
    if x.dtype != torch.uint8:
        remedy = "pass uint8 in 0..255, or floats in [0, 1], which are taken as prepared"
        if x.dtype.is_floating_point:
            remedy = "float tensors are taken as prepared already; an image is uint8 in 0..255"
        raise ImageTypeError(f"{name} has dtype {x.dtype}; {remedy}")
    check_layout(x, CHANNELS, name)
    check_size(x.shape[-2], x.shape[-1], name, max_pixels)


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
        remedy = "; images (paths, PIL images, uint8) are converted, float tensors are not"
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


def check_prepared(
    x: Tensor,
    channels: tuple[int, ...],
    factors: tuple[int, int],
    name: str,
    max_pixels: int = MAX_PIXELS,
) -> Tensor:
    """Check a float tensor that is taken as already prepared.

    Args:
        x: Float tensor (C, H, W) or (B, C, H, W) in [0, 1]; B may be 0.
        channels: Numbers of channels that are accepted.
        factors: Height and width must be divisible by these.
        name: What messages call the tensor.
        max_pixels: Most pixels of an image.

    Returns:
        The same values as float32, detached, on the same device.

    Raises:
        ImageTypeError: The tensor is not of a float dtype, or holds no plain values.
        ImageValueError: The layout or the number of channels is another, a side is zero or not
            divisible, there are too many pixels, or values are NaN or outside [0, 1].
    """
    check_readable(x, name)
    if not x.dtype.is_floating_point:
        raise ImageTypeError(f"{name} has dtype {x.dtype}; pass a float tensor in [0, 1]")
    check_layout(x, channels, name)
    height, width = x.shape[-2:]
    check_size(height, width, name, max_pixels)
    if height % factors[0] or width % factors[1]:
        raise ImageValueError(
            f"{name} is {height} high and {width} wide; prepared tensors are not resized, and "
            f"their sides must be divisible by {factors[0]} and {factors[1]}: crop or pad it, or "
            "pass it as a uint8 image, which is resized"
        )
    x = x.detach().to(torch.float32)
    _check_range(x, name)
    return x


def check_alike(x: Tensor, first: Tensor, index: int) -> None:
    """Check that an image of a list can be batched with the first one of the list.

    Args:
        x: What images[index] became: uint8 (C, H, W), or a checked float tensor.
        first: What images[0] became.
        index: Index of x in the list; 0 checks the first image alone.

    Raises:
        ImageTypeError: One is a float tensor and the other is not.
        ImageValueError: x is a batch, or differs from the first in size or device.
    """
    if x.is_floating_point() != first.is_floating_point():
        prepared, other = (index, 0) if x.is_floating_point() else (0, index)
        raise ImageTypeError(
            f"images[{prepared}] is a float tensor and images[{other}] is not; float tensors are "
            "taken as prepared and other images are not: give them in separate calls"
        )
    if x.ndim != 3:
        raise ImageValueError(
            f"images[{index}] is a batch of shape {tuple(x.shape)}; in a list give one "
            "(C, H, W) each, or join batches with torch.cat"
        )
    if x.shape != first.shape or x.device != first.device:
        raise ImageValueError(
            f"images[{index}] has shape {tuple(x.shape)} on {x.device}, images[0] has shape "
            f"{tuple(first.shape)} on {first.device}; a batch needs equal ones: give them one "
            "by one, or as uint8 images, which are resized"
        )


def _check_range(x: Tensor, name: str) -> None:
    if x.numel() == 0:
        return
    low, high = (bound.item() for bound in torch.aminmax(x))
    if low >= 0 and high <= 1:
        return
    if math.isnan(low):
        raise ImageValueError(f"{name} holds NaN; values must be in [0, 1]")
    remedy = "scale or clamp it first"
    if -1 <= low < 0 and high <= 1:
        remedy = "if it is in [-1, 1], pass (x + 1) / 2"
    elif low >= 0 and high <= 255:
        remedy = "if it is in [0, 255], pass x / 255"
    raise ImageValueError(
        f"{name} has values from {low:.9g} to {high:.9g}, outside [0, 1]; {remedy}"
    )
