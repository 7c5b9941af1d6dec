"""Ids of pictures in batches of one fixed number for each shape.

A convolution may round differently for another number of pictures. So every batch of a shape has
the same number of them, the last one filled up with its last picture: the ids of a picture depend
on itself, the weights and the settings alone, whoever its neighbours are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imagetok.bottlenecks import DiscreteBottleneck
from imagetok.errors import InvalidValueError
from imagetok.tokenizer import ImageTokenizer

Shape = tuple[int, int]
"""(height, width) in pixels."""

Place = tuple[int, int]
"""A row's chunk, and its place in the chunk."""

HELD_BYTES = 2**28
"""Most bytes of pictures that wait for others of their shape."""

HELD_CHUNKS = 512
"""Most chunks that a picture waits for others of its shape."""


class Encoder:
    """A discrete tokenizer's encoder with a fixed number of pictures for each shape.

    For one thread, as it uses the memory of a batch again for the next one.

    Args:
        tokenizer: The tokenizer.
        batch_size: Pictures of a batch of the tokenizer's own size, and of smaller ones. Of larger
            ones fewer make a batch, so that it is no larger.
    """

    def __init__(self, tokenizer: ImageTokenizer, batch_size: int) -> None:
        self.tokenizer, self.batch_size = tokenizer, batch_size
        self._pixels = torch.empty(0, device=tokenizer.device)

    def batch_size_of(self, shape: Shape) -> int:
        """Pictures of a batch of this shape."""
        own = self.tokenizer.image_size
        fitting = self.batch_size * own[0] * own[1] // (shape[0] * shape[1])
        return max(1, min(self.batch_size, fitting))

    @torch.no_grad()
    def features(self, pictures: Sequence[NDArray[np.uint8]]) -> Tensor:
        """The encoder's output for a batch, filled up.

        Args:
            pictures: 1 to `batch_size_of` arrays (C, H, W) of one shape.

        Raises:
            InvalidValueError: It is not finite.
        """
        count = self.batch_size_of((pictures[0].shape[1], pictures[0].shape[2]))
        filled = [*pictures, *[pictures[-1]] * (count - len(pictures))]
        device, dtype = self.tokenizer.device, self.tokenizer.dtype
        pixels = torch.from_numpy(np.stack(filled)).to(device)
        if self._pixels.shape != pixels.shape:
            self._pixels = torch.empty(pixels.shape, device=device)
        # Divided by a tensor: some devices multiply by the reciprocal of a plain number instead.
        x = self._pixels.copy_(pixels).div_(torch.tensor(255.0, device=device))
        with torch.autocast(device.type, enabled=False):
            z: Tensor = self.tokenizer.encoder(x.to(dtype))
        if not torch.isfinite(z).all():
            raise InvalidValueError(
                f"the encoder's output is not finite in {z.dtype}; choose another dtype, or "
                "train the tokenizer again if this one is float32"
            )
        return z

    @torch.no_grad()
    def __call__(self, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.int64]:
        """Ids of a batch, int64 (B, h, w); arguments and errors as of `features`."""
        bottleneck = self.tokenizer.bottleneck
        assert isinstance(bottleneck, DiscreteBottleneck)
        ids = bottleneck.encode_ids(self.features(pictures))[: len(pictures)]
        return ids.cpu().numpy()


@dataclass
class Batch:
    """Pictures of one shape and where they belong."""

    places: list[Place] = field(default_factory=list)
    pictures: list[NDArray[np.uint8]] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        """Bytes of the pictures."""
        return sum(picture.nbytes for picture in self.pictures)


class Batcher:
    """Collects pictures by shape.

    A batch is handed over when it is full. Where pictures have many shapes, the one that waits
    longest is handed over before it is full when too many or too old ones wait; this depends on
    the pictures alone.

    Args:
        encoder: Knows how many make a batch.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._waiting: dict[Shape, Batch] = {}
        self._held = 0

    def add(self, place: Place, pixels: NDArray[np.uint8]) -> Iterator[Batch]:
        """Take a picture; places ascend."""
        shape = (pixels.shape[1], pixels.shape[2])
        batch = self._waiting.setdefault(shape, Batch())
        batch.places.append(place)
        batch.pictures.append(pixels)
        self._held += pixels.nbytes
        if len(batch.places) == self._encoder.batch_size_of(shape):
            yield self._take(shape)
        while self._waiting and self._is_too_much(place):
            yield self._take(next(iter(self._waiting)))

    def rest(self) -> Iterator[Batch]:
        """What is left, the longest waiting first."""
        while self._waiting:
            yield self._take(next(iter(self._waiting)))

    def _is_too_much(self, place: Place) -> bool:
        # A shape is entered anew after each of its batches, so the first one has waited longest.
        oldest = next(iter(self._waiting.values())).places[0]
        return self._held > HELD_BYTES or place[0] - oldest[0] > HELD_CHUNKS

    def _take(self, shape: Shape) -> Batch:
        batch = self._waiting.pop(shape)
        self._held -= batch.num_bytes
        return batch
