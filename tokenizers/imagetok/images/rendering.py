"""From float tensors back to images that can be looked at and saved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from PIL import Image
from torch import Tensor

from imagetok.errors import ImageTypeError, ImageValueError
from imagetok.files import atomic_path, make_folder
from imagetok.images.arrays import check_prepared
from imagetok.images.pixels import CHANNELS

MIN_HEIGHT = 128
"""Images in a grid are enlarged by the least whole factor that makes them at least this high."""

_WHITE = 255


def to_pil(x_hat: Tensor) -> Image.Image | list[Image.Image]:
    """Convert float tensors to PIL images.

    Args:
        x_hat: Float tensor (C, H, W) or (B, C, H, W) in [0, 1], C = 1, 3 or 4.

    Returns:
        One PIL image of mode L, RGB or RGBA, or a list of B; values are 255 * x rounded, halves
        up.

    Raises:
        ImageTypeError: `x_hat` is not a float tensor.
        ImageValueError: The shape is not one of these, or values are NaN or outside [0, 1].
    """
    pixels = _to_bytes(x_hat)
    if pixels.ndim == 3:
        return _render(pixels)
    return [_render(image) for image in pixels]


def grid_image(rows: Sequence[Tensor], padding: int = 2) -> Image.Image:
    """Lay out rows of images as one image, for instance originals above reconstructions.

    Args:
        rows: At least one float tensor (N, C, H, W) in [0, 1], all of the same shape, on any
            device; each becomes a row of N images, enlarged without smoothing.
        padding: White pixels between and around the images.

    Returns:
        PIL image of mode L, RGB or RGBA.

    Raises:
        ImageTypeError: A row is not a float tensor.
        ImageValueError: There is no image, the shapes differ or are not (N, C, H, W), or values
            are NaN or outside [0, 1].
    """
    grid = [_to_bytes(row) for row in rows]
    shapes = {tuple(row.shape) for row in grid}
    if len(shapes) != 1 or grid[0].ndim != 4 or not grid[0].numel():
        found = ", ".join(str(tuple(row.shape)) for row in grid) or "nothing"
        raise ImageValueError(
            f"rows of shapes {found}; expected equal ones (N, C, H, W) with at least one image"
        )
    scale = math.ceil(MIN_HEIGHT / grid[0].shape[2])
    images = repeat(
        torch.stack(grid), "r n c h w -> r n c (h down) (w right)", down=scale, right=scale
    )
    images = F.pad(images, (padding, 0, padding, 0), value=_WHITE)
    canvas = rearrange(images, "r n c h w -> c (r h) (n w)")
    return _render(F.pad(canvas, (0, padding, 0, padding), value=_WHITE))


def save_image(image: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all, making its folder where it is missing.

    Raises:
        UnwritableFileError: The folder cannot be made or written.
    """
    make_folder(path.parent)
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def _to_bytes(x: Tensor) -> Tensor:
    if not isinstance(x, Tensor):
        raise ImageTypeError(f"found {type(x).__name__}; expected a float tensor in [0, 1]")
    x = check_prepared(x, CHANNELS, (1, 1), f"a tensor of shape {tuple(x.shape)}")
    return (x * 255 + 0.5).floor().to(torch.uint8).cpu()


def _render(pixels: Tensor) -> Image.Image:
    """PIL image from a uint8 tensor (C, H, W) on the CPU."""
    array = rearrange(pixels, "c h w -> h w c").numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
