"""`TrainingBatch`: what a training step takes, and how batches are joined and divided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class TrainingBatch:
    """The samples of one micro-batch, in sample order.

    Attributes:
        pixels: uint8 (B, C, H, W).
        rows: int64 (B,), what identifies each sample's row: its number in a map-style dataset,
            segment * 2**32 + row of the segment in a streamed one.
        epochs: int64 (B,), the epoch that each sample belongs to.
        refused: Messages about the rows that could not be read while this batch was loaded.
        position: Streaming only: where this rank's shuffle streams stand after the step, int64
            (streams, 4 + buffer size); the same in all micro-batches of a step.
        profiles_ignored: Images whose colour profile could not be applied.
    """

    pixels: Tensor
    rows: Tensor
    epochs: Tensor
    refused: tuple[str, ...] = ()
    position: Tensor | None = None
    profiles_ignored: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __reduce__(self) -> tuple[Any, ...]:
        # As arrays: the pipe of a loading process would leave tensors in shared memory, where they
        # are lost with the process.
        arrays = (self.pixels.numpy(), self.rows.numpy(), self.epochs.numpy())
        position = None if self.position is None else self.position.numpy()
        return _from_arrays, (*arrays, self.refused, position, self.profiles_ignored)

    def pin_memory(self) -> TrainingBatch:
        """The same batch with its pixels in page-locked memory, for a GPU's background copies."""
        return replace(self, pixels=self.pixels.pin_memory())


def join_batches(parts: Sequence[TrainingBatch]) -> TrainingBatch:
    """The samples of several batches as one, with their refused rows and positions."""
    if len(parts) == 1:
        return parts[0]
    positions = [part.position for part in parts if part.position is not None]
    return TrainingBatch(
        pixels=torch.cat([part.pixels for part in parts]),
        rows=torch.cat([part.rows for part in parts]),
        epochs=torch.cat([part.epochs for part in parts]),
        refused=tuple(message for part in parts for message in part.refused),
        position=torch.cat(positions) if positions else None,
        profiles_ignored=sum(part.profiles_ignored for part in parts),
    )


def split_batch(batch: TrainingBatch, count: int) -> list[TrainingBatch]:
    """Divide a batch into equal micro-batches; the first one carries what was left out."""
    pixels, rows, epochs = (
        tensor.chunk(count) for tensor in (batch.pixels, batch.rows, batch.epochs)
    )
    return [
        TrainingBatch(
            *parts,
            refused=() if number else batch.refused,
            position=batch.position,
            profiles_ignored=0 if number else batch.profiles_ignored,
        )
        for number, parts in enumerate(zip(pixels, rows, epochs, strict=True))
    ]


def _from_arrays(
    pixels: NDArray[np.uint8],
    rows: NDArray[np.int64],
    epochs: NDArray[np.int64],
    refused: tuple[str, ...],
    position: NDArray[np.int64] | None,
    profiles_ignored: int,
) -> TrainingBatch:
    return TrainingBatch(
        torch.from_numpy(pixels),
        torch.from_numpy(rows),
        torch.from_numpy(epochs),
        refused,
        None if position is None else torch.from_numpy(position),
        profiles_ignored,
    )
