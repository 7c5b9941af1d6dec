"""What loading processes and threads yield: micro-batches by sample numbers, or parts by lanes.

Both come as data sets of torch's whose items need no collation. An error of ours is an item, not
an exception: a loading process would put its traceback in front of the message.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from imagetok.data.batches import TrainingBatch, join_batches
from imagetok.data.lanes import Lane, LanePlan, LoadingStoppedError, StopSignal
from imagetok.data.samples import TrainingImages, collate
from imagetok.errors import ImagetokError

Item = TrainingBatch | ImagetokError | None
"""A batch, or why there is none; None after the stop signal."""


class MicroBatches(Dataset[Item]):
    """Micro-batches of a map-style dataset, by lists of sample numbers.

    Args:
        images: The samples.
        stop: Ends loading early when set.
    """

    def __init__(self, images: TrainingImages, stop: StopSignal) -> None:
        self._images, self._stop = images, stop

    def __getitem__(self, samples: list[int]) -> Item:
        """The batch of these samples."""
        loaded = []
        try:
            for sample in samples:
                if self._stop.is_set():
                    return None
                loaded.append(self._images[sample])
        except ImagetokError as error:
            return _bare(error)
        return collate(loaded)


class LaneParts(IterableDataset[Item]):
    """Consecutive lanes' parts of every step of a streamed run.

    In a loading process of torch these are its share of the lanes, consecutive too, so that the
    parts of the processes in order are the whole.

    Args:
        plan: What the lanes share.
        lanes: This rank's lanes.
        samples_per_lane: Samples of one lane in a step.
        steps: Number of steps.
        position: Where these lanes go on, int64 (lanes, 4 + window); None begins.
        stop: Ends loading early when set.
    """

    def __init__(
        self,
        plan: LanePlan,
        lanes: range,
        samples_per_lane: int,
        steps: int,
        position: Tensor | None,
        stop: StopSignal,
    ) -> None:
        super().__init__()
        self._plan, self._lanes, self._position, self._stop = plan, lanes, position, stop
        self._samples_per_lane, self._steps = samples_per_lane, steps

    def __iter__(self) -> Iterator[Item]:
        worker = get_worker_info()
        index, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        first, end = (len(self._lanes) * (index + side) // count for side in (0, 1))
        try:
            lanes = [self._open(place) for place in range(first, end)]
            for _ in range(self._steps):
                yield join_batches([self._take(lane) for lane in lanes])
        except LoadingStoppedError:
            return
        except ImagetokError as error:
            yield _bare(error)

    def _open(self, place: int) -> Lane:
        position = None if self._position is None else self._position[place]
        return Lane(self._plan, self._lanes[place], position, self._stop)

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


def _bare(error: ImagetokError) -> ImagetokError:
    """An error without what led to it, which need not survive the way between processes."""
    return type(error)(str(error))
