"""A checkpoint's own preprocessing: from pictures of any kind to the tensor that a network sees.

    pictures --read_picture--> (C, H, W) --center_box, resize--> uint8 (B, C, h, w) --/ 255--> x
    float tensors --------------------------checked------------------------------------------> x

Pictures may differ in kind and size; float tensors are equal-sized and come alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imagetok.errors import ImagetokError, ImageTypeError, InvalidValueError
from imagetok.images.files import FILE_SOURCES, pillow_errors
from imagetok.images.layouts import CHANNELS, check_array, check_readable, check_tensor
from imagetok.images.prepared import check_alike, check_prepared
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

    def batches(
        self, images: object, factors: tuple[int, int], size: int
    ) -> tuple[Iterator[Tensor], bool]:
        """Make a network's inputs of pictures or of float tensors, a batch at a time.

        Images are read, and refused, when their batch is asked for: however many there are, one
        batch is in memory.

        Args:
            images: Pictures as in `__call__`, or float tensors (C, H, W) or (B, C, H, W) in
                [0, 1], which are taken as prepared and never resized; equal-sized ones (C, H, W)
                may come as a list.
            factors: What height and width of float tensors must be divisible by.
            size: Images of a batch, at least 1; the last one may have fewer.

        Returns:
            At least one float32 tensor (B, channels, H, W) in [0, 1], B = 0 for no images, and
            whether one image was given and not several. Pictures give tensors on the CPU, float
            tensors stay on their device.

        Raises:
            ImagetokError: An image is refused; in a list the message names its index.
        """
        if isinstance(images, Tensor) and images.is_floating_point():
            check_readable(images, describe(images))
            return self._check_pieces(images, factors, size), images.ndim == 3
        items, single = _split(images)
        return self._join_pieces(self._take_alike(items, factors), size), single

    def _check_pieces(self, x: Tensor, factors: tuple[int, int], size: int) -> Iterator[Tensor]:
        for piece in torch.split(x, size) if x.ndim == 4 else (x,):
            piece = check_prepared(piece, (self.channels,), factors, describe(x))
            yield piece if piece.ndim == 4 else piece[None]

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

    def _join_pieces(self, tensors: Iterator[Tensor], size: int) -> Iterator[Tensor]:
        piece = list(islice(tensors, size))
        yield self._join(piece)
        while piece := list(islice(tensors, size)):
            yield self._join(piece)

    def _join(self, tensors: list[Tensor]) -> Tensor:
        x = self._stack(tensors)
        return x if x.is_floating_point() else x.to(torch.float32) / 255

    def _take(self, index: int | None, item: object, factors: tuple[int, int]) -> Tensor:
        if isinstance(item, Tensor) and item.is_floating_point():
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
        return ([(None, images)], True) if images.ndim < 4 else (((None, x) for x in images), False)
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
