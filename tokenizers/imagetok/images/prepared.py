"""Float tensors: pictures that the caller has prepared, checked and never changed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from imagetok.errors import ImageTypeError, ImageValueError
from imagetok.images.layouts import check_layout, check_readable
from imagetok.images.limits import check_size


def check_prepared(
    x: Tensor, channels: tuple[int, ...], factors: tuple[int, int], name: str
) -> Tensor:
    """Check a float tensor of pictures.

    Args:
        x: Float tensor (C, H, W) or (B, C, H, W) in [0, 1]; B may be 0.
        channels: Numbers of channels that are taken.
        factors: Height and width must be divisible by these.
        name: What messages call the tensor.

    Returns:
        The same values as float32, without gradient, on the same device.

    Raises:
        ImageTypeError: The tensor has another dtype, or no plain values.
        ImageValueError: It has another layout or number of channels, a side that is zero or not
            divisible, too many pixels, NaN, or values outside [0, 1].
    """
    check_readable(x, name)
    if not x.dtype.is_floating_point:
        raise ImageTypeError(f"{name} has dtype {x.dtype}; pass a float tensor in [0, 1]")
    check_layout(x, channels, name)
    height, width = x.shape[-2:]
    check_size(height, width, name)
    if height % factors[0] or width % factors[1]:
        raise ImageValueError(
            f"{name} is {height} high and {width} wide; prepared tensors are not resized, and "
            f"their sides must be divisible by {factors[0]} and {factors[1]}: crop or pad it, or "
            "pass it as a uint8 picture, which is resized"
        )
    x = x.detach().to(torch.float32)
    _check_range(x, name)
    return x


def check_alike(x: Tensor, first: Tensor, index: int) -> None:
    """Check that an image of a list goes into one batch with the list's first.

    Args:
        x: What images[index] became: uint8 (C, H, W) of a picture, or a checked float tensor.
        first: What images[0] became.
        index: Place of x in the list; 0 checks the first alone.

    Raises:
        ImageTypeError: One is a float tensor and the other one is a picture.
        ImageValueError: x is a batch, or of another size or device than the first.
    """
    if x.is_floating_point() != first.is_floating_point():
        prepared, other = (index, 0) if x.is_floating_point() else (0, index)
        raise ImageTypeError(
            f"images[{prepared}] is a float tensor and images[{other}] is not; float tensors are "
            "taken as prepared and pictures are not: give them in separate calls"
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
            "by one, or as uint8 pictures, which are resized"
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
