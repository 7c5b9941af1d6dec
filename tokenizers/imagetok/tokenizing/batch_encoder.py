"""Ids of images, in batches of one fixed size for each image shape.

A convolution may round differently for another batch size. So every batch of a shape has the same
number of images, and the last one is padded with copies of its last image: the ids of an image
depend on the image, the weights and the settings alone, whatever its neighbours are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imagetok.codesearch import use_backend
from imagetok.errors import ImageValueError, InvalidValueError, TokenizingError
from imagetok.images import to_unit
from imagetok.tokenizer import ImageTokenizer

Shape = tuple[int, int]
"""(height, width) in pixels."""

RowIndex = tuple[int, int]
"""Number of a row's chunk, and number of the row in that chunk."""

OUT_OF_MEMORY = re.compile(r"allocate memory|bad_alloc|could not create a (memory|primitive)")
"""What torch and oneDNN say on a CPU where memory is short; on a GPU the exception has a type."""

HELD_BYTES = 2**28
"""Most bytes of images that wait for others of their shape."""

HELD_CHUNKS = 512
"""Most chunks that an image waits for others of its shape."""


class LargeImageError(ImageValueError):
    """An image that is larger than a whole batch, and that the memory is too small for."""


class BatchEncoder:
    """The encoder of a discrete tokenizer, with a fixed batch size for each image shape.

    Use it from one thread: it reuses the memory of a batch for the next one.

    Args:
        tokenizer: The tokenizer.
        batch_size: Images of a batch at the tokenizer's own size or a smaller one. Batches of
            larger images have fewer, so that they take no more memory.
        search: Backend of the code search; None leaves it to the environment.
    """

    def __init__(
        self, tokenizer: ImageTokenizer, batch_size: int, search: str | None = None
    ) -> None:
        self.tokenizer, self.batch_size, self.search = tokenizer, batch_size, search
        self._pixels = torch.empty(0, dtype=torch.float32, device=tokenizer.device)

    def batch_size_of(self, shape: Shape) -> int:
        """Images of a batch of this shape."""
        return max(1, min(self.batch_size, self._fitting(shape)))

    def is_large(self, shape: Shape) -> bool:
        """Whether one image of this shape has more pixels than a batch of the tokenizer's size."""
        return self._fitting(shape) < 1

    def _fitting(self, shape: Shape) -> int:
        """Images of this shape that have as many pixels as a batch of the tokenizer's size."""
        own = self.tokenizer.image_size
        return self.batch_size * own[0] * own[1] // (shape[0] * shape[1])

    @torch.no_grad()
    def features(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """The encoder's output z (B, d, h, w) for a batch that is padded to its full size.

        Args:
            images: 1 to `batch_size_of` arrays (C, H, W) of one shape.

        Raises:
            InvalidValueError: The output is not finite.
        """
        count = self.batch_size_of((images[0].shape[1], images[0].shape[2]))
        padded = [*images, *[images[-1]] * (count - len(images))]
        device, dtype = self.tokenizer.device, self.tokenizer.dtype
        pixels = torch.from_numpy(np.stack(padded)).to(device)
        if self._pixels.shape != pixels.shape:
            self._pixels = torch.empty(pixels.shape, dtype=torch.float32, device=device)
        x = to_unit(pixels, dtype, out=self._pixels)
        with torch.autocast(device.type, enabled=False):
            z = self.tokenizer.encode_pixels(x)
        if not torch.isfinite(z).all():
            raise InvalidValueError(
                f"the encoder's output is not finite in {z.dtype}; choose another dtype, or "
                "train the tokenizer again if this one is float32"
            )
        return z

    def ids_of(self, z: Tensor) -> Tensor:
        """Ids of features: int64 (B, h, w), or (B, h, w, depth) where positions have several."""
        with use_backend(self.search):
            return self.tokenizer.choose_ids(z)

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.int64]:
        """Ids of a batch as `ids_of` gives them; arguments as for `features`.

        Raises:
            LargeImageError: The image is larger than a batch, and too large for the memory.
            TokenizingError: The memory is too small for an ordinary batch.
            InvalidValueError: The encoder's output is not finite.
        """
        try:
            return self.ids_of(self.features(images))[: len(images)].cpu().numpy()
        except (MemoryError, RuntimeError) as error:
            if not _lacks_memory(error):
                raise
        # Outside of the handler, which keeps the tensors of the failed call alive.
        self._pixels = torch.empty(0, dtype=torch.float32, device=self.tokenizer.device)
        height, width = images[0].shape[1:]
        if self.is_large((height, width)):
            raise LargeImageError(
                f"the image is {height} high and {width} wide, and there is too little memory to "
                "encode it at its own size; shrink it or cut it into pieces first"
            )
        raise TokenizingError(
            f"there is too little memory to encode {self.batch_size_of((height, width))} images "
            f"of {height} x {width} pixels at once; start a new job with a smaller batch_size"
        )


def _lacks_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return OUT_OF_MEMORY.search(str(error)) is not None


@dataclass
class Batch:
    """Images of one shape, and which rows they belong to."""

    rows: list[RowIndex] = field(default_factory=list)
    images: list[NDArray[np.uint8]] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        """Bytes of the images."""
        return sum(image.nbytes for image in self.images)


class Batcher:
    """Collects images into batches by shape.

    A full batch is released at once. Images of many shapes could pile up in batches that never
    fill, so the batch that has waited longest is also released when too many bytes wait or an image
    has waited too long. This depends on the images alone.

    Args:
        encoder: Says how many images make a batch.
    """

    def __init__(self, encoder: BatchEncoder) -> None:
        self._encoder = encoder
        self._waiting: dict[Shape, Batch] = {}
        self._held = 0

    def add(self, row: RowIndex, pixels: NDArray[np.uint8]) -> Iterator[Batch]:
        """Take the image of a row, and give the batches that are due; rows ascend."""
        shape = (pixels.shape[1], pixels.shape[2])
        batch = self._waiting.setdefault(shape, Batch())
        batch.rows.append(row)
        batch.images.append(pixels)
        self._held += pixels.nbytes
        if len(batch.rows) == self._encoder.batch_size_of(shape):
            yield self._take(shape)
        while self._waiting and self._is_too_much(row):
            yield self._take(next(iter(self._waiting)))

    def rest(self) -> Iterator[Batch]:
        """The batches that are left, the longest waiting first."""
        while self._waiting:
            yield self._take(next(iter(self._waiting)))

    def _is_too_much(self, row: RowIndex) -> bool:
        # A shape enters the dict anew after each of its batches, so the first has waited longest.
        oldest = next(iter(self._waiting.values())).rows[0]
        return self._held > HELD_BYTES or row[0] - oldest[0] > HELD_CHUNKS

    def _take(self, shape: Shape) -> Batch:
        batch = self._waiting.pop(shape)
        self._held -= batch.num_bytes
        return batch
