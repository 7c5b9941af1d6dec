"""A checkpoint's own preprocessing: from images of any kind to the tensor that a network sees.

    images --read_image--> (C, H, W) --center_box, resize--> uint8 (B, C, h, w) --to_unit--> x
    float tensors ------------------------checked------------------------------------------> x

8-bit images may differ in kind and size; float tensors have one size and are not mixed with others.

`resize` is the one implementation of every resize: torch's antialiased interpolation on uint8. Its
fixed-point arithmetic gives the same bytes whatever the memory layout, the instruction set and the
number of threads, except for results one pixel wide: there torch 2.13 gives other values with AVX2
than without, or fails, so `MIN_SIDE` is 2. The crop box is cut out before the resize, so that what
lies outside neither costs anything nor bleeds in, and an image that already has the size is
untouched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from imagetok.errors import ImagetokError, ImageTypeError, ImageValueError, InvalidValueError
from imagetok.images.arrays import (
    check_alike,
    check_array,
    check_prepared,
    check_readable,
    check_tensor,
)
from imagetok.images.color_profile import check_color_profile
from imagetok.images.imagesource import FILE_SOURCES, KINDS, describe, pillow_errors, read_image
from imagetok.images.pixels import CHANNELS, MAX_PIXELS, check_limit, to_unit

FILTERS = ("bicubic", "bilinear")
"""Names of the antialiased filters."""

MIN_SIDE = 2
"""Least height and width of a resized image."""

Box = tuple[int, int, int, int]
"""(top, left, height, width) in pixels."""


@dataclass(frozen=True)
class Preprocessor:
    """Brings images to one size and number of channels, the same way every time.

    Attributes:
        image_size: (height, width) of the result, at least 2 each.
        channels: 1 gray, 3 RGB, or 4 RGBA.
        resize: Antialiased filter, `bicubic` or `bilinear`.
        background: RGB colour in 0..255 under transparent pixels; unused for 4 channels.
        color_profile: `ignore`, or `srgb`: colours of files and PIL images are converted to sRGB by
            the ICC profile that they carry.
        max_pixels: Most pixels of an image that is read; at most 178,956,970. It decides what is
            refused, and nothing about the result.

    Raises:
        InvalidValueError: An argument is not one of these.
    """

    image_size: tuple[int, int]
    channels: int = 3
    resize: str = "bicubic"
    background: tuple[int, int, int] = (255, 255, 255)
    color_profile: str = "ignore"
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        for name, count, low, high in (
            ("image_size", 2, MIN_SIDE, 2**16),
            ("background", 3, 0, 255),
        ):
            values = getattr(self, name)
            if not (
                isinstance(values, Sequence)
                and len(values) == count
                and all(isinstance(value, int) and low <= value <= high for value in values)
            ):
                raise InvalidValueError(
                    f"{name} is {values!r}; expected {count} integers in {low}..{high}"
                )
            object.__setattr__(self, name, tuple(values))
        if self.channels not in CHANNELS:
            raise InvalidValueError(f"channels is {self.channels}; choose one of: 1, 3, 4")
        if self.resize not in FILTERS:
            raise InvalidValueError(
                f"unknown resize filter '{self.resize}'; choose one of: {', '.join(FILTERS)}"
            )
        check_color_profile(self.color_profile)
        check_limit(self.max_pixels)

    def identity(self) -> dict[str, Any]:
        """What decides the result, as JSON-like values; later keys only where they are set."""
        values = asdict(self)
        del values["max_pixels"]
        if self.color_profile == "ignore":
            del values["color_profile"]
        return values

    def __call__(self, images: object) -> Tensor:
        """Read images, crop them around the centre and resize them.

        The largest box of the shape of `image_size` is cut from the middle and resized, so that
        any aspect ratio is accepted and an image of `image_size` comes back unchanged.

        Args:
            images: One image (path, bytes, PIL image, uint8 array (H, W) or (H, W, C), uint8
                tensor (C, H, W), value of an image column), several as a list, tuple or image
                column, or as a uint8 array (B, H, W, C) or tensor (B, C, H, W).

        Returns:
            uint8 tensor (B, channels, *image_size) on the CPU; B is 1 for one image and may be 0.

        Raises:
            ImagetokError: An image is refused; for a list the message names its index.
        """
        items, _ = _split(images, self.max_pixels)
        return self._stack([self._convert(index, image) for index, image in items])

    def read(self, image: object, notes: list[str] | None = None) -> Tensor:
        """Read one image at its native size, as this preprocessing wants it.

        Args:
            image: Anything that `read_image` takes.
            notes: A list that gets a message where a colour profile cannot be applied.

        Returns:
            uint8 (C, H, W), on the CPU.

        Raises:
            ImagetokError: The image is refused.
        """
        return read_image(
            image,
            self.channels,
            self.background,
            color_profile=self.color_profile,
            max_pixels=self.max_pixels,
            notes=notes,
        )

    def fit(self, pixels: Tensor, box: Box | None = None) -> Tensor:
        """Crop and resize an image that is read already.

        Args:
            pixels: uint8 (C, H, W), as `read` gives them.
            box: What to cut out, inside the image; None cuts the largest box of the shape of
                `image_size` from the middle.

        Returns:
            uint8 (C, *image_size).

        Raises:
            ImageValueError: The box is empty or reaches out of the image.
        """
        if box is None:
            box = center_box(pixels.shape[1], pixels.shape[2], self.image_size)
        return resize(pixels, box, self.image_size, self.resize)

    def batches(
        self, images: object, factors: tuple[int, int], size: int
    ) -> tuple[Iterator[Tensor], bool]:
        """Make a network's inputs from 8-bit images or float tensors, one batch at a time.

        Images are read, and refused, when their batch is asked for: however many there are, only
        one batch is in memory.

        Args:
            images: Images as in `__call__`, or float tensors (C, H, W) or (B, C, H, W) in
                [0, 1], which are taken as prepared and never resized; equal-sized ones (C, H, W)
                may come as a list.
            factors: Numbers that height and width of float tensors must be divisible by.
            size: Images of a batch, at least 1; the last one may have fewer.

        Returns:
            At least one float32 tensor (B, channels, H, W) in [0, 1], B = 0 for no images, and
            whether a single image was given. 8-bit images give tensors on the CPU, float tensors
            stay on their device.

        Raises:
            ImagetokError: An image is refused; for a list the message names its index.
        """
        if isinstance(images, Tensor) and images.is_floating_point():
            check_readable(images, describe(images))
            return self._split_prepared(images, factors, size), images.ndim == 3
        items, single = _split(images, self.max_pixels)
        return self._join(self._take_alike(items, factors), size), single

    def _split_prepared(self, x: Tensor, factors: tuple[int, int], size: int) -> Iterator[Tensor]:
        for part in torch.split(x, size) if x.ndim == 4 else (x,):
            part = self._check_prepared(part, factors, describe(x))
            yield part if part.ndim == 4 else part[None]

    def _take_alike(
        self, items: Iterable[tuple[int | None, object]], factors: tuple[int, int]
    ) -> Iterator[Tensor]:
        """uint8 (C, *image_size) of every item, or float32 (C, H, W) of one size."""
        first = None
        for index, item in items:
            x = self._take(index, item, factors)
            first = x if first is None else first
            if index is not None:
                check_alike(x, first, index)
            yield x

    def _take(self, index: int | None, item: object, factors: tuple[int, int]) -> Tensor:
        if isinstance(item, Tensor) and item.is_floating_point():
            with _naming(index):
                return self._check_prepared(item, factors, describe(item))
        return self._convert(index, item)

    def _check_prepared(self, x: Tensor, factors: tuple[int, int], name: str) -> Tensor:
        return check_prepared(x, (self.channels,), factors, name, self.max_pixels)

    def _convert(self, index: int | None, image: object) -> Tensor:
        with _naming(index):
            pixels = self.read(image)
        return self.fit(pixels)

    def _join(self, tensors: Iterator[Tensor], size: int) -> Iterator[Tensor]:
        """Float32 batches of `size`; one empty batch where no tensor is given."""
        batch = list(islice(tensors, size))
        while True:
            x = self._stack(batch)
            yield x if x.is_floating_point() else to_unit(x)
            batch = list(islice(tensors, size))
            if not batch:
                return

    def _stack(self, images: list[Tensor]) -> Tensor:
        if not images:
            shape = (0, self.channels, *self.image_size)
            return torch.empty(shape, dtype=torch.uint8, device="cpu")
        return torch.stack(images)


def resize(pixels: Tensor, box: Box, size: tuple[int, int], filter_name: str = "bicubic") -> Tensor:
    """Cut a box out of an image and resize it.

    Args:
        pixels: uint8 tensor (C, H, W) on the CPU.
        box: (top, left, height, width) of the box, inside the image.
        size: (height, width) of the result, at least `MIN_SIDE` each.
        filter_name: `bicubic` or `bilinear`, both antialiased.

    Returns:
        uint8 tensor (C, *size), contiguous; it may share memory with `pixels`.

    Raises:
        ImageValueError: The box is empty or reaches out of the image, or `size` is too small.
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
            f"the box (top, left, height, width) = {box} does not lie inside an image of height "
            f"{pixels.shape[1]} and width {pixels.shape[2]}"
        )
    if min(size) < MIN_SIDE:
        raise ImageValueError(
            f"size (height, width) = {size} is too small; both must be at least {MIN_SIDE}"
        )
    cut = pixels[:, top : top + height, left : left + width]
    if (height, width) == tuple(size):
        return cut.contiguous()
    # Channels last are the faster layout here, and what reading an image gives.
    cut = cut[None].contiguous(memory_format=torch.channels_last)
    return F.interpolate(cut, size=size, mode=filter_name, antialias=True)[0].contiguous()


def center_box(height: int, width: int, size: tuple[int, int]) -> Box:
    """The largest box of the shape of `size` in the middle of an image.

    Resizing it to `size` is what resizing the shorter side and cropping the centre means.

    Args:
        height: Height of the image.
        width: Width of the image.
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


def _split(images: object, max_pixels: int) -> tuple[Iterable[tuple[int | None, object]], bool]:
    """The images with their indices in a list, and whether a single one was given."""
    if isinstance(images, np.ndarray | Tensor):
        if isinstance(images, Tensor):
            check_tensor(images, describe(images), max_pixels)
        else:
            check_array(images, describe(images), max_pixels)
        return ([(None, images)], True) if images.ndim < 4 else (((None, x) for x in images), False)
    if images is None or isinstance(images, (*FILE_SOURCES, Image.Image, Mapping)):
        return [(None, images)], True
    if isinstance(images, Sequence):
        return _enumerate(images), False
    raise ImageTypeError(
        f"{describe(images)} is not taken for images; pass {KINDS}, several as a list (of an "
        "iterator: list(...)), or a data set's column"
    )


def _enumerate(images: Sequence[object]) -> Iterator[tuple[int, object]]:
    """Items one at a time: a dataset's image column decodes, and fails, where it is indexed."""
    for index in range(len(images)):
        with pillow_errors(
            f"images[{index}]",
            "cannot be decoded by its data set; cast the column to datasets.Image(decode=False) "
            "to learn why",
        ):
            item = images[index]
        yield index, item


@contextmanager
def _naming(index: int | None) -> Iterator[None]:
    """Say in a refusal which image of a list it is about."""
    try:
        yield
    except ImagetokError as error:
        if index is None:
            raise
        raise type(error)(f"images[{index}]: {error}") from None
