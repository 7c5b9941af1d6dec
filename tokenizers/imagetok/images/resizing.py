"""The one implementation of every resize: torch's antialiased interpolation on uint8.

Its fixed-point arithmetic gives the same bytes whatever the memory layout, the instruction set
and the number of threads, except for results one pixel wide: there torch 2.13 gives other values
with AVX2 than without, or fails, so `MIN_SIDE` is 2. The crop box is cut out before the resize, so
that what lies outside neither costs anything nor bleeds in, and a picture that already has the
size is untouched.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from imagetok.errors import ImageValueError, InvalidValueError

FILTERS = ("bicubic", "bilinear")
"""Names of the antialiased filters."""

MIN_SIDE = 2
"""Least height and width of a resized picture."""

Box = tuple[int, int, int, int]
"""(top, left, height, width) in pixels."""


def resize(pixels: Tensor, box: Box, size: tuple[int, int], filter_name: str = "bicubic") -> Tensor:
    """Cut a box out of a picture and resize it.

    Args:
        pixels: uint8 tensor (C, H, W) on the CPU.
        box: (top, left, height, width) of the box, inside the picture.
        size: (height, width) of the result, at least `MIN_SIDE` each.
        filter_name: `bicubic` or `bilinear`, both antialiased.

    Returns:
        uint8 tensor (C, *size), contiguous; it may share memory with `pixels`.

    Raises:
        ImageValueError: The box is empty or reaches out of the picture, or `size` is too small.
        InvalidValueError: The filter is not known.
    """
    top, left, height, width = box
    if filter_name not in FILTERS:
        raise InvalidValueError(
            f"unknown resize filter '{filter_name}'; choose one of: {', '.join(FILTERS)}"
        )
    if min(top, left, height - 1, width - 1) < 0 or (
        top + height > pixels.shape[1] or left + width > pixels.shape[2]
    ):
        raise ImageValueError(
            f"the box (top, left, height, width) = {box} does not lie inside a picture of height "
            f"{pixels.shape[1]} and width {pixels.shape[2]}"
        )
    if min(size) < MIN_SIDE:
        raise ImageValueError(
            f"size (height, width) = {size} is too small; both must be at least {MIN_SIDE}"
        )
    cut = pixels[:, top : top + height, left : left + width].contiguous()
    if (height, width) == tuple(size):
        return cut
    return F.interpolate(cut[None], size=size, mode=filter_name, antialias=True)[0]


def center_box(height: int, width: int, size: tuple[int, int]) -> Box:
    """The largest box of the shape of `size` in the middle of a picture.

    Resizing it to `size` is what resizing the shorter side and cropping the centre means.

    Args:
        height: Height of the picture.
        width: Width of the picture.
        size: (height, width) that the box is to be resized to.

    Returns:
        (top, left, height, width); the sides are whole pixels, so that the shapes agree up to
        half a pixel.
    """
    box_height = min(height, max(1, _round_ratio(width * size[0], size[1])))
    box_width = min(width, max(1, _round_ratio(height * size[1], size[0])))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def _round_ratio(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)
