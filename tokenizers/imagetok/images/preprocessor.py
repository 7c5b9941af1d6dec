"""A checkpoint's own preprocessing: from pictures of any kind to the tensor that a network sees.

    pictures --read_picture--> (C, H, W) --center_box, resize--> uint8 (B, C, h, w) --/ 255--> x
    float tensors --------------------------checked------------------------------------------> x

Pictures may differ in kind and size; float tensors are equal-sized and come alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imagetok.errors import ImagetokError, ImageTypeError, InvalidValueError
from imagetok.images.files import FILE_SOURCES, pillow_errors
from imagetok.images.layouts import CHANNELS, check_array, check_tensor
from imagetok.images.prepared import check_prepared, stack_prepared
from imagetok.images.reading import KINDS, describe, read_picture
from imagetok.images.resizing import FILTERS, MIN_SIDE, center_box, resize


@dataclass(frozen=True)
class Preprocessor:
    """Brings pictures to one size and number of channels, the same way every time.

    Attributes:
        image_size: (height, width) of the result, at least 2 each.
        channels: 1 gray, 3 RGB, or 4 RGBA.
        resize: Antialiased filter, `bicubic` or `bilinear`.
        background: RGB colour in 0..255 under transparent pixels; unused for 4 channels.

    Raises:
        InvalidValueError: An argument is none of these.
    """

    image_size: tuple[int, int]
    channels: int = 3
    resize: str = "bicubic"
    background: tuple[int, int, int] = (255, 255, 255)

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

    def __call__(self, images: object) -> Tensor:
        """Read pictures, crop them around the centre and resize them.

        The largest box of the shape of `image_size` is cut from the middle and resized, so that
        any aspect ratio is taken and a picture of `image_size` comes back unchanged.

        Args:
            images: One picture (path, bytes, PIL image, uint8 array (H, W) or (H, W, C), uint8
                tensor (C, H, W), value of an image column), several as a list, tuple or image
                column, or as a uint8 array (B, H, W, C) or tensor (B, C, H, W).

        Returns:
            uint8 tensor (B, channels, *image_size) on the CPU; B is 1 for one picture and may
            be 0.

        Raises:
            ImagetokError: A picture is refused; in a list the message names its index.
        """
        pictures, _ = _split(images)
        return self._stack([self._prepare(index, picture) for index, picture in pictures])

    def batch(self, images: object, factors: tuple[int, int] = (1, 1)) -> tuple[Tensor, bool]:
        """Make a network's input of pictures or of float tensors.

        Args:
            images: Pictures as in `__call__`, or float tensors (C, H, W) or (B, C, H, W) in
                [0, 1], which are taken as prepared and never resized; equal-sized ones (C, H, W)
                may come as a list.
            factors: What height and width of float tensors must be divisible by.

        Returns:
            float32 tensor (B, channels, H, W) in [0, 1], and whether one image was given and not
            a batch. Pictures give a tensor on the CPU, float tensors stay on their device.

        Raises:
            ImagetokError: An image is refused; in a list the message names its index.
        """
        if isinstance(images, Tensor) and images.dtype.is_floating_point:
            x = check_prepared(images, (self.channels,), factors, describe(images))
            return (x[None], True) if x.ndim == 3 else (x, False)
        items, single = _split(images)
        tensors = [self._take(index, item, factors) for index, item in items]
        floats = [x.dtype.is_floating_point for x in tensors]
        if any(floats):
            if not all(floats):
                raise ImageTypeError(
                    f"images[{floats.index(True)}] is a float tensor and "
                    f"images[{floats.index(False)}] is not; float tensors are taken as prepared "
                    "and pictures are not: give them in separate calls"
                )
            return stack_prepared(tensors), False
        return self._stack(tensors).to(torch.float32) / 255, single

    def _take(self, index: int | None, item: object, factors: tuple[int, int]) -> Tensor:
        if isinstance(item, Tensor) and item.dtype.is_floating_point:
            with _naming(index):
                return check_prepared(item, (self.channels,), factors, describe(item))
        return self._prepare(index, item)

    def _prepare(self, index: int | None, picture: object) -> Tensor:
        with _naming(index):
            pixels = read_picture(picture, self.channels, self.background)
        box = center_box(pixels.shape[1], pixels.shape[2], self.image_size)
        return resize(pixels, box, self.image_size, self.resize)

    def _stack(self, pictures: list[Tensor]) -> Tensor:
        if not pictures:
            shape = (0, self.channels, *self.image_size)
            return torch.empty(shape, dtype=torch.uint8, device="cpu")
        return torch.stack(pictures)


def _split(images: object) -> tuple[Iterable[tuple[int | None, object]], bool]:
    """The images with their indices in a list, and whether only one was given."""
    if isinstance(images, np.ndarray | Tensor):
        if isinstance(images, Tensor):
            check_tensor(images, describe(images))
        else:
            check_array(images, describe(images))
        return ([(None, images)], True) if images.ndim < 4 else ([(None, x) for x in images], False)
    if images is None or isinstance(images, (*FILE_SOURCES, Image.Image, Mapping)):
        return [(None, images)], True
    if isinstance(images, Sequence):
        return _enumerate(images), False
    raise ImageTypeError(
        f"{describe(images)} is not taken for pictures; pass {KINDS}, several as a list (of an "
        "iterator: list(...)), or a data set's column"
    )


def _enumerate(images: Sequence[object]) -> Iterator[tuple[int, object]]:
    """Items one at a time: a data set's image column decodes, and fails, where it is indexed."""
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
