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

from imagetok.data.image_rows import ImageRows, open_rows
from imagetok.data.image_stream import ImageStream, open_image_stream
from imagetok.data.prefetcher import Prefetcher, StopSignal, Workers
from imagetok.data.sample_order import EpochOrder, SampleBatches
from imagetok.data.shuffle_stream import HEADER, ShuffleSettings, ShuffleStream, StreamSample
from imagetok.data.training_batch import TrainingBatch, join_batches, split_batch
from imagetok.data.training_images import TrainingImages, TrainTransform
from imagetok.errors import ConfigError, InvalidValueError
from imagetok.images import Preprocessor
from imagetok.run_config import RunConfig

STEPS_AHEAD = 2
"""Number of steps kept ready besides the one in progress."""


@dataclass(frozen=True)
class Loading:
    """What is loaded, and how a step is made of it.

    Attributes:
        functions: From an item to a batch, one for each worker.
        items: The items of all steps, in order.
        items_per_step: Items of a step.
        join: From the batches of a step's items to its micro-batches.
        stop: Ends the functions early.
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
        in_processes: Whether each function runs in a process of its own; otherwise there is one
            function, which runs in the feed's thread.
        pin_memory: Whether to put pixels where this process's GPU copies from in the background.

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
        """End the thread and the processes; closing it twice is harmless."""
        self._stop.set()
        if self._workers is not None:
            self._workers.close()
        super().close()


def _steps(loading: Loading, batches: Iterator[TrainingBatch]) -> Iterator[list[TrainingBatch]]:
    """The micro-batches of step after step."""
    while step := list(islice(batches, loading.items_per_step)):
        yield loading.join(step)


def _pinned(steps: Iterator[list[TrainingBatch]], device: int) -> Iterator[list[TrainingBatch]]:
    """The same steps in page-locked memory."""
    torch.accelerator.set_device_index(device)  # each thread has its own
    for step in steps:
        yield [batch.pin_memory() for batch in step]


class TrainingData(ABC):
    """The images of a run.

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
            start_step: First step; on resuming, the number of steps done.
            steps: Number of steps from there on.
            rank: This process's rank.
            world_size: Number of ranks.
            position: Streaming only, and needed there from the second step on: the whole run's
                position after step `start_step - 1`, which is its ranks' positions concatenated
                in rank order. It does not matter how many ranks there were.
            pin_memory: Whether batches go to a GPU.

        Returns:
            An iterator over the steps; close it, or use it as a context manager.

        Raises:
            ConfigError: The batch or the shuffle streams do not divide over the ranks.
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
        functions = [MappedLoader(self._images, stop)] * max(1, self._config.data.num_workers)
        return Loading(functions, batches, batches.accumulation, list, stop)


class MappedLoader:
    """Loads micro-batches of rows that are read one by one.

    Args:
        images: The samples.
        stop: Ends loading early when set.
    """

    def __init__(self, images: TrainingImages, stop: StopSignal) -> None:
        self._images, self._stop = images, stop

    def __call__(self, numbers: list[int]) -> TrainingBatch:
        """The batch of the samples of these numbers.

        Raises:
            DataError: A row, and those drawn in its place, cannot be read.
            LoadingStopped: The stop signal was set.
        """
        samples = []
        for number in numbers:
            self._stop.check()
            samples.append(self._images[number])
        return TrainingBatch(
            pixels=torch.stack([sample["pixels"] for sample in samples]),
            rows=torch.tensor([sample["row"] for sample in samples]),
            epochs=torch.tensor([sample["epoch"] for sample in samples]),
            refused=tuple(message for sample in samples for message in sample["refused"]),
            profiles_ignored=sum(sample["profiles_ignored"] for sample in samples),
        )


class StreamedData(TrainingData):
    """Rows read file by file, shuffled by the order of files and within a buffer.

    Args:
        config: The run.
        images: Its rows.
        preprocessor: The tokenizer's own.
    """

    def __init__(self, config: RunConfig, images: ImageStream, preprocessor: Preprocessor) -> None:
        self.name, self.fingerprint = images.name, images.fingerprint
        self._config = config
        self._settings = ShuffleSettings(
            images,
            TrainTransform(preprocessor, config.data.crop_scale, config.data.flip),
            config.train.seed,
            config.num_lanes,
            max(1, config.data.window // config.num_lanes),
        )

    def _loading(self, batches: SampleBatches, position: Tensor | None) -> Loading:
        count, rank, world_size = self._settings.num_streams, batches.rank, batches.world_size
        if count % world_size:
            raise ConfigError(
                f"{count} shuffle streams do not divide over {world_size} ranks; set data.lanes to "
                "a multiple of the ranks that divides train.batch_size"
            )
        if position is not None or batches.start_step:
            position = self._check(position, batches.start_step)
        streams = range(rank * count // world_size, (rank + 1) * count // world_size)
        num_workers = min(max(1, self._config.data.num_workers), len(streams))
        stop, functions = StopSignal(), []
        # Each worker has consecutive streams, so that the workers' parts in order are the batch.
        for worker in range(num_workers):
            first, end = (len(streams) * (worker + side) // num_workers for side in (0, 1))
            numbers, size = streams[first:end], batches.batch_size // count
            functions.append(StreamedLoader(self._settings, numbers, size, position, stop))
        items = range(batches.steps * num_workers)
        divide = partial(_divide, batches.accumulation)
        return Loading(functions, items, num_workers, divide, stop)

    def _check(self, position: Tensor | None, start_step: int) -> Tensor:
        expected = (self._settings.num_streams, HEADER + self._settings.buffer_size)
        found = None if position is None else tuple(position.shape)
        if position is None or found != expected:
            raise InvalidValueError(
                f"a streamed run goes on at step {start_step} from the position {expected} of all "
                f"its shuffle streams after the step before, found {found}; data.lanes, "
                "data.window and train.batch_size must be those of the interrupted run"
            )
        return position.cpu()


class StreamedLoader:
    """Loads what some shuffle streams contribute to each step, step after step.

    Args:
        settings: What the streams share.
        numbers: The streams.
        samples_per_stream: Samples of one stream in a step.
        position: Where all streams of the run go on, int64 (L, 4 + buffer_size); None begins.
        stop: Ends loading early when set.
    """

    def __init__(
        self,
        settings: ShuffleSettings,
        numbers: range,
        samples_per_stream: int,
        position: Tensor | None,
        stop: StopSignal,
    ) -> None:
        self._settings, self._stop, self._samples_per_stream = settings, stop, samples_per_stream
        self._positions = {
            number: None if position is None else position[number].clone() for number in numbers
        }
        self._streams: list[ShuffleStream] = []

    def __call__(self, item: object) -> TrainingBatch:
        """The part of the next step, whatever the item.

        Raises:
            DataError: A file is damaged, or there is nothing that can be read.
            LoadingStopped: The stop signal was set.
        """
        if not self._streams:
            self._streams = [
                ShuffleStream(self._settings, number, position, self._stop)
                for number, position in self._positions.items()
            ]
        return join_batches([self._take(stream) for stream in self._streams])

    def _take(self, stream: ShuffleStream) -> TrainingBatch:
        samples: list[StreamSample] = [stream.draw() for _ in range(self._samples_per_stream)]
        refused, stream.refused = tuple(stream.refused), []
        return TrainingBatch(
            pixels=torch.stack([sample.pixels for sample in samples]),
            rows=torch.tensor([sample.row for sample in samples]),
            epochs=torch.tensor([sample.epoch for sample in samples]),
            refused=refused,
            profiles_ignored=sum(sample.profiles_ignored for sample in samples),
            position=stream.position()[None],
        )


def open_training(
    config: RunConfig, preprocessor: Preprocessor, cache_dir: str | Path | None = None
) -> TrainingData:
    """Open the images that a run trains on.

    Args:
        config: The run.
        preprocessor: The tokenizer's own.
        cache_dir: Where `datasets` keeps what it draws, downloads and converts.

    Raises:
        DataError: The dataset, the split or the column cannot be used.
    """
    ref = config.data.ref(config.data.split)
    if ref.streaming:
        return StreamedData(config, open_image_stream(ref, cache_dir), preprocessor)
    return MappedData(config, open_rows(ref, cache_dir), preprocessor)


def _divide(accumulation: int, parts: list[TrainingBatch]) -> list[TrainingBatch]:
    return split_batch(join_batches(parts), accumulation)
