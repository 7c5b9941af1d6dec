"""Training samples of a map-style dataset, each a function of (seed, sample number) alone.

A row that cannot be read is replaced by another one, drawn by a key of seed, epoch, row and
attempt, so that the replacement is the same on every rank, in every worker and after every
interruption.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset

from imagetok.data.batches import TrainingBatch
from imagetok.data.order import EpochOrder
from imagetok.data.rows import ImageRows
from imagetok.data.transforms import TrainTransform
from imagetok.data.unreadable import name_some, prepare_picture
from imagetok.errors import DataError, InvalidValueError
from imagetok.keys import make_key

MAX_DRAWS = 20
"""Rows drawn in place of one that cannot be read before the run stops."""


class TrainingSample(TypedDict):
    """One sample.

    Entries: pixels uint8 (C, H, W), the row and the epoch that they come from, and messages that
    name the rows that could not be read in their place.
    """

    pixels: Tensor
    row: int
    epoch: int
    refused: tuple[str, ...]


class TrainingImages(Dataset[TrainingSample]):
    """Training samples by their number in the run.

    Args:
        rows: The pictures.
        transform: Random crop and flip.
        order: Which row each sample is; for as many rows as there are.
        seed: The run's seed, for the transform's keys and for replacements.

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
            DataError: Neither its row nor any drawn in its place can be read.
        """
        epoch, first = self.order.locate(sample)
        row, refused = first, []
        for draw in range(MAX_DRAWS + 1):
            try:
                pixels = self._load(row, epoch)
            except DataError as error:
                refused.append(str(error))
                row = make_key(self.seed, epoch, first, f"redraw/{draw}") % len(self.rows)
            else:
                return TrainingSample(pixels=pixels, row=row, epoch=epoch, refused=tuple(refused))
        raise DataError(
            f"neither {self.rows.describe(first)} nor {MAX_DRAWS} rows drawn in its place can be "
            f"read: {name_some(refused)}"
        )

    def _load(self, row: int, epoch: int) -> Tensor:
        key = make_key(self.seed, epoch, row, "augment")
        return prepare_picture(
            self.rows.picture(row),
            self.rows.describe(row),
            lambda picture: self.transform(picture, key),
        )


def collate(samples: Sequence[TrainingSample]) -> TrainingBatch:
    """A micro-batch of samples, in their order."""
    return TrainingBatch(
        pixels=torch.stack([sample["pixels"] for sample in samples]),
        rows=torch.tensor([sample["row"] for sample in samples]),
        epochs=torch.tensor([sample["epoch"] for sample in samples]),
        refused=tuple(message for sample in samples for message in sample["refused"]),
    )
