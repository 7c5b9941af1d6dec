"""Training samples of a map-style dataset, each a function of (seed, sample number) alone.

    sample number --EpochOrder--> (epoch, row) --key--> crop, flip --TrainTransform--> pixels

A row that cannot be read is replaced by another one, drawn by a key of seed, epoch, row and
attempt, so that the replacement is the same on every rank, in every worker and after every
interruption.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset

from imagetok.data.image_rows import ImageRows
from imagetok.data.sample_order import EpochOrder
from imagetok.data.unreadable_rows import name_some, prepare_image
from imagetok.errors import DataError, InvalidValueError
from imagetok.images import Box, Preprocessor, center_box
from imagetok.keys import generator, make_key

MAX_DRAWS = 20
"""Rows drawn in place of one that cannot be read before the run stops."""


@dataclass(frozen=True)
class TrainTransform:
    """An image as training sees it under a key.

    Attributes:
        preprocessor: Decides size, channels, filter and background.
        crop_scale: Crops have the shape of `image_size`. Their side is drawn uniformly from this
            range of shares of the largest one that fits, their place uniformly. None takes the
            preprocessor's own centre crop.
        flip: Whether to mirror left and right with probability one half.

    Raises:
        InvalidValueError: `crop_scale` is not a range (low, high) within (0, 1].
    """

    preprocessor: Preprocessor
    crop_scale: tuple[float, float] | None = None
    flip: bool = False

    def __post_init__(self) -> None:
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise InvalidValueError(
                f"crop_scale {self.crop_scale} is not a range (low, high) within (0, 1]"
            )

    def __call__(self, image: object, key: int, notes: list[str] | None = None) -> Tensor:
        """Read, crop, resize and perhaps mirror an image.

        Args:
            image: Anything that `imagetok.images.read_image` takes.
            key: Decides crop and flip, from `imagetok.keys`.
            notes: A list that gets a message where a colour profile cannot be applied.

        Returns:
            uint8 tensor (C, H, W) on the CPU.

        Raises:
            ImagetokError: The image is refused.
        """
        preprocessor = self.preprocessor
        pixels = preprocessor.read(image, notes)
        pixels = preprocessor.fit(pixels, self._draw_box(pixels.shape[1], pixels.shape[2], key))
        return pixels.flip(-1) if self.flip and _draw(key, "flip") < 0.5 else pixels

    def _draw_box(self, height: int, width: int, key: int) -> Box | None:
        """The box of a random crop; None for the preprocessor's own."""
        if self.crop_scale is None:
            return None
        low, high = self.crop_scale
        share, down, across = (_draw(key, f"crop/{part}") for part in ("side", "top", "left"))
        share = low + (high - low) * share
        largest = center_box(height, width, self.preprocessor.image_size)[2:]
        box_height, box_width = (max(1, round(side * share)) for side in largest)
        top = int(down * (height - box_height + 1))
        left = int(across * (width - box_width + 1))
        return top, left, box_height, box_width


class TrainingSample(TypedDict):
    """One sample.

    Entries: pixels, uint8 (C, H, W); the row and the epoch that they come from; refused, messages
    about the rows that could not be read before this one took their place; and profiles_ignored, 1
    where the image's colour profile could not be applied, otherwise 0.
    """

    pixels: Tensor
    row: int
    epoch: int
    refused: tuple[str, ...]
    profiles_ignored: int


class TrainingImages(Dataset[TrainingSample]):
    """Training samples by their number in the run.

    A run has as many as it asks for, so torch's DataLoader needs a sampler, such as
    `batch_sampler=SampleBatches(...)`. Its default collation stacks samples only while every row
    can be read, because `refused` must be equally long in all of them; `collate_fn=list` takes any.

    Args:
        rows: The images.
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
        """A sample.

        Args:
            sample: Its number in the run, from 0.

        Raises:
            DataError: Neither its row nor any drawn in its place can be read.
        """
        epoch, first = self.order.locate(sample)
        row, refused = first, []
        for draw in range(MAX_DRAWS + 1):
            notes = list[str]()
            try:
                pixels = self._load(row, epoch, notes)
            except DataError as error:
                refused.append(str(error))
                row = make_key(self.seed, epoch, first, f"redraw/{draw}") % len(self.rows)
            else:
                return TrainingSample(
                    pixels=pixels,
                    row=row,
                    epoch=epoch,
                    refused=tuple(refused),
                    profiles_ignored=len(notes),
                )
        raise DataError(
            f"neither {self.rows.describe(first)} nor {MAX_DRAWS} rows drawn in its place can be "
            f"read: {name_some(refused)}"
        )

    def _load(self, row: int, epoch: int, notes: list[str]) -> Tensor:
        key = make_key(self.seed, epoch, row, "augment")
        return prepare_image(
            self.rows.image(row),
            self.rows.describe(row),
            lambda image: self.transform(image, key, notes),
        )


def _draw(key: int, purpose: str) -> float:
    """A uniform number in [0, 1)."""
    random = generator(make_key(key, 0, 0, purpose))
    return float(torch.rand((), generator=random, dtype=torch.float64))
