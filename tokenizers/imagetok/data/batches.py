"""Pictures of rows as tensors: one sample at a time for training, in batches for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset

from imagetok.data.order import EpochOrder
from imagetok.data.rows import ImageRows
from imagetok.data.transforms import TrainTransform
from imagetok.errors import DataError, ImagetokError, InvalidValueError
from imagetok.images import Preprocessor
from imagetok.keys import make_key


class TrainingSample(TypedDict):
    """One sample: pixels uint8 (C, H, W), and the row and the epoch that it comes from."""

    pixels: Tensor
    row: int
    epoch: int


class TrainingImages(Dataset[TrainingSample]):
    """Training samples by their number in the run.

    Args:
        rows: The pictures.
        transform: Random crop and flip.
        order: Which row each sample is; for as many rows as there are.
        seed: The run's seed, for the transform's keys.

    Raises:
        InvalidValueError: `order` is for another number of rows.
    """

    def __init__(
        self, rows: ImageRows, transform: TrainTransform, order: EpochOrder, seed: int
    ) -> None:
        if order.num_rows != len(rows):
            raise InvalidValueError(
                f"the order is for {order.num_rows} rows, '{rows.name}' has {len(rows)}"
            )
        self.rows, self.transform, self.order, self.seed = rows, transform, order, seed

    def __getitem__(self, sample: int) -> TrainingSample:
        """The sample of a number, from 0.

        Raises:
            DataError: Its picture cannot be read; the message names row, file and reason.
        """
        epoch, row = self.order.locate(sample)
        key = make_key(self.seed, epoch, row, "augment")
        pixels = _load(self.rows, row, lambda picture: self.transform(picture, key))
        return TrainingSample(pixels=pixels, row=row, epoch=epoch)


def evaluation_batches(
    rows: ImageRows, preprocessor: Preprocessor, batch_size: int, indices: Iterable[int]
) -> Iterator[tuple[list[int], Tensor]]:
    """Pictures under the evaluation transform, in the order asked for.

    Args:
        rows: The pictures.
        preprocessor: The tokenizer's own.
        batch_size: Pictures a batch; the last one may have fewer.
        indices: The rows.

    Yields:
        The rows of a batch, and their pixels, uint8 (B, C, H, W).

    Raises:
        DataError: A picture cannot be read; the message names row, file and reason.
        InvalidValueError: `batch_size` is under 1.
    """
    if batch_size < 1:
        raise InvalidValueError(f"batch_size is at least 1, got {batch_size}")
    remaining = iter(indices)
    while batch := list(islice(remaining, batch_size)):
        pictures = [_load(rows, row, lambda picture: preprocessor(picture)[0]) for row in batch]
        yield batch, torch.stack(pictures)


def _load(rows: ImageRows, row: int, prepare: Callable[[object], Tensor]) -> Tensor:
    picture = rows.picture(row)
    try:
        return prepare(picture)
    except ImagetokError as error:
        path = picture["path"]
        file = f", file '{path}'" if path and picture["bytes"] is not None else ""
        raise DataError(f"{rows.describe(row)}{file} cannot be read: {error}") from error
