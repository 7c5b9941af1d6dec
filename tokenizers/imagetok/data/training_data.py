"""`TrainingData`: the images of a run, as a feed of micro-batches for each rank.

    open_training --> TrainingData --feed--> Feed: the micro-batches of step after step

Which samples a step has, and what they look like, depends on config and data alone: neither on
ranks nor on loading processes nor on interruptions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imagetok.data.batches import TrainingBatch, join_batches, split_batch
from imagetok.data.dataset_ref import DatasetRef
from imagetok.data.lanes import HEADER, Lane, LanePlan
from imagetok.data.order import EpochOrder, SampleBatches
from imagetok.data.prefetcher import Prefetcher, StopSignal, Workers
from imagetok.data.rows import ImageRows, open_rows
from imagetok.data.samples import TrainingImages, collate
from imagetok.data.streams import PictureStream, open_image_stream
from imagetok.data.transforms import TrainTransform
from imagetok.errors import ConfigError, InvalidValueError
from imagetok.images import Preprocessor
from imagetok.run_config import RunConfig

STEPS_AHEAD = 2
"""Steps that lie ready besides the one in work."""


@dataclass(frozen=True)
class Loading:
    """What is loaded, and how a step is made of it.

    Attributes:
        functions: From an item to a batch, one for each worker.
        items: The items of all steps, in order.
        items_per_step: Items of a step.
        join: From the batches of a step's items to its micro-batches.
        stop: What ends the functions early.
    """

    functions: Sequence[Callable[[Any], TrainingBatch]]
    items: Iterable[Any]
    items_per_step: int
    join: Callable[[list[TrainingBatch]], list[TrainingBatch]]
    stop: StopSignal


class Feed(Prefetcher[list[TrainingBatch]]):
    """The micro-batches of each step, loaded ahead; a context manager that ends loading.

    Args:
        loading: What is loaded.
        in_processes: Whether each function runs in a process of its own, and not all of them one
            after another in this feed's thread.
        pin_memory: Whether pixels are put where this process's GPU copies from in the background.

    Attributes:
        waited: Seconds that the consumer has waited for data so far.
    """

    def __init__(
        self, loading: Loading, in_processes: bool = False, pin_memory: bool = False
    ) -> None:
        self._workers: Workers[Any, TrainingBatch] | None = None
        if in_processes:
            self._workers = Workers(loading.functions, in_processes=True)
            batches = self._workers.map(loading.items)
        else:
            (function,) = loading.functions
            batches = map(function, loading.items)
        steps = _steps(loading, batches)
        if pin_memory:
            steps = _pinned(steps, torch.accelerator.current_device_index())
        super().__init__(steps, STEPS_AHEAD, stop=loading.stop)

    def close(self) -> None:
        """End the thread and the processes; closing twice is no error."""
        self._stop.set()
        if self._workers is not None:
            self._workers.close()
        super().close()


def _steps(loading: Loading, batches: Iterator[TrainingBatch]) -> Iterator[list[TrainingBatch]]:
    """The micro-batches of step after step."""
    while step := list(islice(batches, loading.items_per_step)):
        yield loading.join(step)


def _pinned(steps: Iterator[list[TrainingBatch]], device: int) -> Iterator[list[TrainingBatch]]:
    """The same steps in page-locked memory, from where a GPU copies in the background."""
    torch.accelerator.set_device_index(device)  # each thread has its own
    for step in steps:
        yield [batch.pin_memory() for batch in step]


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
        in_processes = self._config.data.num_workers > 0
        return Feed(self._loading(batches, position), in_processes, pin_memory)

    @abstractmethod
    def _loading(self, batches: SampleBatches, position: Tensor | None) -> Loading:
        """What loads the batches."""


class BatchLoader:
    """Loads micro-batches of rows that are read one by one.

    Args:
        images: The samples.
        stop: Ends loading early.
    """

    def __init__(self, images: TrainingImages, stop: StopSignal) -> None:
        self._images, self._stop = images, stop

    def __call__(self, samples: list[int]) -> TrainingBatch:
        """The batch of these sample numbers.

        Raises:
            DataError: A row, and those in its place, cannot be read.
            LoadingStopped: Nobody wants it any more.
        """
        loaded = []
        for sample in samples:
            self._stop.check()
            loaded.append(self._images[sample])
        return collate(loaded)


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

    def _loading(self, batches: SampleBatches, position: Tensor | None) -> Loading:
        del position  # the step says it all
        stop = StopSignal()
        functions = [BatchLoader(self._images, stop)] * max(1, self._config.data.num_workers)
        return Loading(functions, batches, batches.accumulation, list, stop)


class StreamLoader:
    """Loads the part of each step that some lanes yield, step after step.

    Args:
        plan: What the lanes share.
        lanes: Those of this part.
        samples_per_lane: Samples of one lane in a step.
        position: Where all lanes go on, int64 (num_lanes, 4 + window); None begins.
        stop: Ends loading early.
    """

    def __init__(
        self,
        plan: LanePlan,
        lanes: range,
        samples_per_lane: int,
        position: Tensor | None,
        stop: StopSignal,
    ) -> None:
        self._plan, self._stop, self._samples_per_lane = plan, stop, samples_per_lane
        self._begun = [(lane, None if position is None else position[lane]) for lane in lanes]
        self._lanes: list[Lane] = []

    def __call__(self, item: object) -> TrainingBatch:
        """The part of the next step, whatever the item.

        Raises:
            DataError: A file is damaged, or there is nothing that can be read.
            LoadingStopped: Nobody wants it any more.
        """
        if not self._lanes:
            self._lanes = [Lane(self._plan, *begun, self._stop) for begun in self._begun]
        return join_batches([self._take(lane) for lane in self._lanes])

    def _take(self, lane: Lane) -> TrainingBatch:
        samples = [lane.draw() for _ in range(self._samples_per_lane)]
        refused, lane.refused = tuple(lane.refused), []
        return TrainingBatch(
            pixels=torch.stack([sample.pixels for sample in samples]),
            rows=torch.tensor([sample.row for sample in samples]),
            epochs=torch.tensor([sample.epoch for sample in samples]),
            refused=refused,
            position=lane.position()[None],
        )


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

    def _loading(self, batches: SampleBatches, position: Tensor | None) -> Loading:
        count, rank, world_size = self._plan.num_lanes, batches.rank, batches.world_size
        if count % world_size:
            raise ConfigError(
                f"{count} lanes do not divide over {world_size} ranks; set data.lanes to a "
                "multiple of the ranks that divides train.batch_size"
            )
        lanes = range(rank * count // world_size, (rank + 1) * count // world_size)
        if position is not None or batches.start_step:
            position = self._check(position, batches.start_step)
        # Each worker has consecutive streams, so that the workers' parts in order are the batch.
        num_workers = min(max(1, self._config.data.num_workers), len(lanes))
        stop, functions = StopSignal(), []
        for worker in range(num_workers):
            first, end = (len(lanes) * (worker + side) // num_workers for side in (0, 1))
            functions.append(
                StreamLoader(
                    self._plan, lanes[first:end], batches.batch_size // count, position, stop
                )
            )
        items = range(batches.steps * num_workers)
        return Loading(functions, items, num_workers, partial(_divide, batches.accumulation), stop)

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
