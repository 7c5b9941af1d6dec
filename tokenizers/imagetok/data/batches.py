"""Pictures of rows as tensors: what a training step takes, and batches for evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imagetok.data.rows import ImageRows
from imagetok.data.unreadable import prepare_picture
from imagetok.errors import DataError, InvalidValueError
from imagetok.images import Preprocessor


@dataclass(frozen=True)
class TrainingBatch:
    """Samples of one micro-batch, in sample order.

    Attributes:
        pixels: uint8 (B, C, H, W).
        rows: int64 (B,), what identifies each sample's row: its number in a map-style dataset,
            unit * 2**32 + row of the unit in a streamed one.
        epochs: int64 (B,), the epoch that each sample belongs to.
        refused: Messages that name the rows that could not be read while this batch was loaded.
        position: Streaming only: where this rank's lanes stand after the step, int64
            (lanes, 4 + window); the same in all micro-batches of a step.
    """

    pixels: Tensor
    rows: Tensor
    epochs: Tensor
    refused: tuple[str, ...] = ()
    position: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __reduce__(self) -> tuple[Any, ...]:
        # As arrays: the pipe of a loading process would leave tensors in shared memory, where they
        # are lost with the process.
        arrays = (self.pixels.numpy(), self.rows.numpy(), self.epochs.numpy())
        position = None if self.position is None else self.position.numpy()
        return _from_arrays, (*arrays, self.refused, position)

    def pin_memory(self) -> TrainingBatch:
        """The same with pixels in page-locked memory, from where a GPU copies in the background."""
        return replace(self, pixels=self.pixels.pin_memory())


def _from_arrays(
    pixels: NDArray[np.uint8],
    rows: NDArray[np.int64],
    epochs: NDArray[np.int64],
    refused: tuple[str, ...],
    position: NDArray[np.int64] | None,
) -> TrainingBatch:
    return TrainingBatch(
        torch.from_numpy(pixels),
        torch.from_numpy(rows),
        torch.from_numpy(epochs),
        refused,
        None if position is None else torch.from_numpy(position),
    )


def join_batches(parts: Sequence[TrainingBatch]) -> TrainingBatch:
    """The samples of several batches as one, refused rows and positions included."""
    if len(parts) == 1:
        return parts[0]
    positions = [part.position for part in parts if part.position is not None]
    return TrainingBatch(
        pixels=torch.cat([part.pixels for part in parts]),
        rows=torch.cat([part.rows for part in parts]),
        epochs=torch.cat([part.epochs for part in parts]),
        refused=tuple(message for part in parts for message in part.refused),
        position=torch.cat(positions) if positions else None,
    )


def split_batch(batch: TrainingBatch, count: int) -> list[TrainingBatch]:
    """Equal micro-batches of a batch; the first one carries the refused rows."""
    pixels, rows, epochs = (
        tensor.chunk(count) for tensor in (batch.pixels, batch.rows, batch.epochs)
    )
    return [
        TrainingBatch(*parts, refused=() if place else batch.refused, position=batch.position)
        for place, parts in enumerate(zip(pixels, rows, epochs, strict=True))
    ]


def evaluation_batches(
    rows: ImageRows,
    preprocessor: Preprocessor,
    batch_size: int,
    indices: Iterable[int],
    refused: list[str] | None = None,
) -> Iterator[tuple[list[int], Tensor]]:
    """Pictures under the evaluation transform, in the order asked for.

    Args:
        rows: The pictures.
        preprocessor: The tokenizer's own.
        batch_size: Pictures a batch; the last one may have fewer.
        indices: The rows.
        refused: Where messages go that name rows that cannot be read, which are then left out;
            None makes the first one an error.

    Yields:
        The rows of a batch, and their pixels, uint8 (B, C, H, W); B is 0 where all are left out.

    Raises:
        DataError: A picture cannot be read; the message names row, file and reason.
        InvalidValueError: `batch_size` is under 1.
    """
    if batch_size < 1:
        raise InvalidValueError(f"batch_size is at least 1, got {batch_size}")

    def prepare(picture: object) -> Tensor:
        return preprocessor(picture)[0]

    remaining = iter(indices)
    while batch := list(islice(remaining, batch_size)):
        loaded: dict[int, Tensor] = {}
        for row in batch:
            try:
                loaded[row] = prepare_picture(rows.picture(row), rows.describe(row), prepare)
            except DataError as error:
                if refused is None:
                    raise
                refused.append(str(error))
        empty = torch.empty(0, preprocessor.channels, *preprocessor.image_size, dtype=torch.uint8)
        yield list(loaded), torch.stack([*loaded.values()]) if loaded else empty
