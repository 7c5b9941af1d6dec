"""`TrainingData`: the pictures of a run, as a feed of micro-batches for each rank.

Which samples a step has, and what they look like, depends on config and data alone: neither on
ranks nor on loading processes nor on interruptions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path

from torch import Tensor

from imagetok.data.batches import TrainingBatch, join_batches, split_batch
from imagetok.data.dataset_ref import DatasetRef
from imagetok.data.feed import Feed, Loading
from imagetok.data.lanes import HEADER, LanePlan
from imagetok.data.order import EpochOrder, SampleBatches
from imagetok.data.rows import ImageRows, open_rows
from imagetok.data.samples import TrainingImages
from imagetok.data.steps import LaneParts, MicroBatches
from imagetok.data.streams import PictureStream, open_image_stream
from imagetok.data.transforms import TrainTransform
from imagetok.errors import ConfigError, InvalidValueError
from imagetok.images import Preprocessor
from imagetok.run_config import RunConfig


class TrainingData(ABC):
    """The pictures of a run.

    Attributes:
        name: The name that the dataset was opened by.
        fingerprint: Hash of the content, equal on every machine for equal data.
    """

    name: str
    fingerprint: str
    _config: RunConfig

    def feed(
        self,
        start_step: int,
        steps: int,
        rank: int = 0,
        world_size: int = 1,
        position: Tensor | None = None,
        *,
        pin_memory: bool = False,
    ) -> Feed:
        """Load the micro-batches of one rank.

        Rank r takes samples r*b ... of each global batch, divided in order into
        `train.accumulation` micro-batches.

        Args:
            start_step: First step; the number of steps done, on resuming.
            steps: Number of steps from there on.
            rank: This process's rank.
            world_size: Number of ranks.
            position: Streaming only, and needed there from the second step on: the whole run's
                position after step `start_step - 1`, which is its ranks' positions concatenated
                in rank order. It does not matter how many ranks they were.
            pin_memory: For a GPU.

        Returns:
            An iterator over the steps; close it, or use it as a context manager.

        Raises:
            ConfigError: The batch or the lanes do not divide over the ranks.
            InvalidValueError: `position` is missing or does not fit, or a number is out of range.
        """
        train = self._config.train
        batches = SampleBatches(
            start_step, steps, train.batch_size, rank, world_size, train.accumulation
        )
        loading, num_workers = self._loading(batches, position)
        return Feed(loading, num_workers, pin_memory)

    @abstractmethod
    def _loading(self, batches: SampleBatches, position: Tensor | None) -> tuple[Loading, int]:
        """What loads the batches, and in how many processes."""


class MappedData(TrainingData):
    """Rows in random order, read one by one.

    Args:
        config: The run.
        rows: Its rows.
        preprocessor: The tokenizer's own.
    """

    def __init__(self, config: RunConfig, rows: ImageRows, preprocessor: Preprocessor) -> None:
        self.name, self.fingerprint = rows.name, rows.fingerprint
        self._config = config
        seed = config.train.seed
        transform = TrainTransform(preprocessor, config.data.crop_scale, config.data.flip)
        self._images = TrainingImages(rows, transform, EpochOrder(len(rows), seed), seed)

    def _loading(self, batches: SampleBatches, position: Tensor | None) -> tuple[Loading, int]:
        del position  # the step says it all
        parts = partial(MicroBatches, self._images)
        return Loading(parts, batches, batches.accumulation, list), self._config.data.num_workers


class StreamedData(TrainingData):
    """Rows read file by file, shuffled by order of files and within a window.

    Args:
        config: The run.
        stream: Its rows.
        preprocessor: The tokenizer's own.
    """

    def __init__(
        self, config: RunConfig, stream: PictureStream, preprocessor: Preprocessor
    ) -> None:
        self.name, self.fingerprint = stream.name, stream.fingerprint
        self._config = config
        self._plan = LanePlan(
            stream,
            TrainTransform(preprocessor, config.data.crop_scale, config.data.flip),
            config.train.seed,
            config.num_lanes,
            max(1, config.data.window // config.num_lanes),
        )

    def _loading(self, batches: SampleBatches, position: Tensor | None) -> tuple[Loading, int]:
        count, rank, world_size = self._plan.num_lanes, batches.rank, batches.world_size
        if count % world_size:
            raise ConfigError(
                f"{count} lanes do not divide over {world_size} ranks; set data.lanes to a "
                "multiple of the ranks that divides train.batch_size"
            )
        lanes = range(rank * count // world_size, (rank + 1) * count // world_size)
        if position is not None or batches.start_step:
            position = self._check(position, batches.start_step)[lanes.start : lanes.stop]
        size = batches.batch_size // count
        parts = partial(LaneParts, self._plan, lanes, size, batches.steps, position)
        num_workers = min(self._config.data.num_workers, len(lanes))
        divide = partial(_divide, batches.accumulation)
        return Loading(parts, None, max(1, num_workers), divide), num_workers

    def _check(self, position: Tensor | None, start_step: int) -> Tensor:
        expected = (self._plan.num_lanes, HEADER + self._plan.window)
        found = None if position is None else tuple(position.shape)
        if position is None or found != expected:
            raise InvalidValueError(
                f"a streamed run goes on at step {start_step} from the position {expected} of all "
                f"its lanes after the step before, found {found}; data.lanes, data.window and "
                "train.batch_size must be those of the interrupted run"
            )
        return position.cpu()


def open_training(
    config: RunConfig, preprocessor: Preprocessor, cache_dir: str | Path | None = None
) -> TrainingData:
    """Open the pictures that a run trains on.

    Args:
        config: The run.
        preprocessor: The tokenizer's own.
        cache_dir: Where `datasets` keeps what it draws, downloads and converts.

    Raises:
        DataError: The dataset, the split or the column cannot be used.
    """
    data = config.data
    ref = DatasetRef(
        data.name, data.split, data.subset, data.revision, data.image_column, data.streaming
    )
    if ref.streaming:
        return StreamedData(config, open_image_stream(ref, cache_dir), preprocessor)
    return MappedData(config, open_rows(ref, cache_dir), preprocessor)


def _divide(accumulation: int, parts: list[TrainingBatch]) -> list[TrainingBatch]:
    return split_batch(join_batches(parts), accumulation)
