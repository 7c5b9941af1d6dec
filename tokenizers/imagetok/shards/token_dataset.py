"""`TokenDataset` and its `TokenLoader`: ids for training, shuffled, divided and resumable.

    dataset = TokenDataset("tokens", seed=0, batch_size=64)
    loader = TokenLoader(dataset, num_workers=4)
    if checkpoint:
        loader.load_state_dict(checkpoint["data"])
    for epoch in range(dataset.epoch, 10):
        dataset.set_epoch(epoch)
        for batch in loader:
            train(batch["ids"], batch["caption"])       # int64 (64, n), list of 64
            checkpoint = {"data": loader.state_dict()}  # of what was taken, not of what lies ready

The rows of a rank are numbered in their order (see `imagetok.shards.row_order`). A batch is the
next `batch_size` of them; loading process w of n makes batches w, w + n, ..., and torch takes them
from the processes in turn. So what is read does not depend on the number of processes, and the
number of rows taken says where to go on. A process reads those row groups of a shuffle buffer that
hold rows of its own batches, and keeps these rows.

The ranks' numbers of rows differ by at most one, so that a rank may have one batch more than
another. Where that matters, `drop_last` leaves out the rows after the last full batch that all
ranks have, different ones in every epoch. Nothing else is left out, and nothing comes twice. Do not
pass a loader of it to `Accelerator.prepare`, which would divide the rows over the ranks once more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Features
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from imagetok.arguments import read_count
from imagetok.errors import ImagetokError, InvalidTypeError, InvalidValueError
from imagetok.launch import find_reader_ranks
from imagetok.shards.row_order import Numbers, RowOrder
from imagetok.shards.shard_reader import GatheredRows, ShardReader
from imagetok.shards.token_folder import open_folder

if TYPE_CHECKING:
    from imagetok.tokenizer import ImageTokenizer

Item = dict[str, Any]

State = dict[str, int | str | bool]

ROWS_AT_ONCE = 256
"""Number of rows that are converted together where they are yielded one by one."""


class TokenDataset(IterableDataset[Item]):
    """Rows of a tokenized dataset, one by one or in batches; see the module for an example.

    A batch is a dict of `ids`, int64 tensor (B, n) in [0, codebook_size) and raster order, where n
    is h * w, or h * w * depth with the codes of a position one after another; `row`, int64 tensor
    (B,), the row in the input, or in its `file`, a list of B names, if it was streamed; and the
    other columns as lists of B Python values. Where images kept their own sizes, `ids` is a list of
    B tensors (n,), and `grid` a list of B pairs (h, w).

    Without `batch_size`, items are rows: `ids` (n,), `row` an integer, and so on. Then give
    torch's DataLoader `batch_size=None`, too: batches that it collates itself hold different rows
    for a different number of loading processes.

    Args:
        folder: Folder of a complete tokenized dataset, or its name `user/name` on the Hub.
        split: Split to read; None is the only one of a folder, the first one of a repository.
        rank: Rank of this process; None takes it from `torch.distributed`, or from the environment
            variable RANK that launchers set, or is 0.
        world_size: Number of ranks; given together with `rank`, or not at all.
        seed: Seed of the order.
        batch_size: Number of rows of a batch; the last one may have fewer. None yields single rows.
        window: Number of rows of the shuffle buffer, which all loading processes of a rank together
            hold in memory, in the shards' narrow types.
        shuffle: Whether every epoch has a new order; otherwise rows come as in the input.
        drop_last: Leave out the rows after the last full batch that every rank has.
        tokenizer: Tokenizer that must have made the ids, or its fingerprint.
        columns: Columns to read besides ids and row: kept ones, `height` and `width`; None takes
            all kept ones.
        revision: Branch, tag or commit on the Hub; None is the main branch.
        token: Token for private repositories on the Hub; None takes the one that is logged in.

    Attributes:
        batch_size: As given.
        features: Features of all columns of the dataset; `features["label"].int2str` gives the
            names of labels.
        moves: Number of times that another starting point was chosen.

    Raises:
        UnreadableFileError: The folder is not a complete tokenized dataset, or a shard is missing
            or differs in size from the manifest. While iterating: a shard is damaged.
        HubAccessError, HubError: As for `open_folder`.
        DataError: The dataset has another split or tokenizer, or lacks a column. While iterating:
            a shard belongs to another job.
        InvalidTypeError: An argument has the wrong type.
        InvalidValueError: A number is out of range, or only one of rank and world_size is given.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        split: str | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        window: int = 65536,
        shuffle: bool = True,
        drop_last: bool = False,
        tokenizer: ImageTokenizer | str | None = None,
        columns: Sequence[str] | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> None:
        super().__init__()
        opened = open_folder(folder, split=split, revision=revision, token=token)
        if tokenizer is not None:
            opened.check_tokenizer(tokenizer)
        opened.check_sizes()
        if batch_size is not None:
            read_count("batch_size", batch_size, 1)
        self.batch_size = batch_size
        self.features: Features = opened.job.schema.features
        self._reader = ShardReader(opened, opened.columns(columns))
        self._order = RowOrder(
            [shard.rows for shard in opened.manifest.shards],
            read_count("seed", seed, 0),
            *find_reader_ranks(rank, world_size),
            read_count("window", window, 1),
            shuffle,
        )
        self._end = self._order.num_rows
        if drop_last:
            self._end = self._order.common_rows - self._order.common_rows % (batch_size or 1)
        # Epoch and first row, shared with loading processes that live longer than an epoch.
        self._start: Tensor = torch.zeros(2, dtype=torch.int64)
        self._start.share_memory_()  # type: ignore[no-untyped-call]
        self.moves = 0

    @property
    def epoch(self) -> int:
        """Epoch of the next pass."""
        return int(self._start[0])

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass, which begins at the epoch's first row.

        If a state from the middle of this epoch was loaded, the pass goes on from there.

        Raises:
            InvalidTypeError: `epoch` is not an integer.
            InvalidValueError: `epoch` is negative.
        """
        if read_count("epoch", epoch, 0) != self.epoch:
            self._go_to(epoch, 0)

    def state_dict(self, taken: int) -> State:
        """State of a consumer; `TokenLoader.state_dict` counts the items itself.

        Args:
            taken: Number of items of this pass, batches or rows, that the consumer has taken.

        Returns:
            The epoch, the number of this rank's rows taken in it, and what fixes their order;
            JSON-like, and the same on every rank that has taken as many.
        """
        start = int(self._start[1])
        rows = start + read_count("taken", taken, 0) * (self.batch_size or 1)
        return {"epoch": self.epoch, "rows": min(rows, self._end), **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next pass go on from a state; the batch size may differ from before.

        Raises:
            InvalidTypeError: `state` is not a state of a TokenDataset.
            InvalidValueError: `state` belongs to another dataset or order.
        """
        identity = self._identity()
        if not isinstance(state, Mapping) or set(state) != {"epoch", "rows", *identity}:
            raise InvalidTypeError(f"not a state of a TokenDataset: {state!r}")
        wrong = [
            f"{name}: {state[name]} there, {value} here"
            for name, value in identity.items()
            if state[name] != value
        ]
        if wrong:
            raise InvalidValueError(
                f"the state belongs to another order of rows ({'; '.join(wrong)}); open the "
                "dataset as it was then, or begin an epoch with set_epoch"
            )
        self._go_to(read_count("epoch", state["epoch"], 0), read_count("rows", state["rows"], 0))

    def rewind(self) -> None:
        """Let the next pass begin at the first row of its epoch."""
        self._go_to(self.epoch, 0)

    def __len__(self) -> int:
        """Number of items of an epoch of this rank: batches, or rows without `batch_size`."""
        return -(-self._end // (self.batch_size or 1))

    def __iter__(self) -> Iterator[Item]:
        epoch, start = self._start.tolist()
        worker = get_worker_info()
        number, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        part = _WorkerPart(self._order, self._reader, epoch, start, self._end, number, count)
        return part.rows() if self.batch_size is None else part.batches(self.batch_size)

    def _identity(self) -> State:
        """What fixes the order of this rank's rows, except for the rank itself."""
        order = self._order
        return {
            "job": self._reader.dataset.manifest.job,
            "seed": order.seed,
            "world_size": order.world_size,
            "window": order.buffer_size,
            "shuffle": order.shuffle,
        }

    def _go_to(self, epoch: int, row: int) -> None:
        self._start.copy_(torch.tensor([epoch, row]))
        self.moves += 1


class TokenLoader(DataLoader[Item | ImagetokError]):
    """Loads a `TokenDataset` in processes of its own, and counts the items that were taken.

    Loading processes work ahead, so that only the consumer's side knows how far it has come.

    Args:
        dataset: The dataset to load.
        options: Options of torch's DataLoader, such as `num_workers` or `pin_memory`, except those
            that concern batches, which the dataset makes.
    """

    def __init__(self, dataset: TokenDataset, **options: Any) -> None:
        # torch's own conversion looks at every caption and finds nothing to convert.
        options = {"collate_fn": _identity, **options}
        super().__init__(_ErrorsAsItems(dataset), batch_size=None, **options)
        self._tokens = dataset
        self._taken, self._moves, self._complete = 0, dataset.moves, False

    def __iter__(self) -> Iterator[Item]:  # type: ignore[override]
        tokens = self._tokens
        if self._complete and self._moves == tokens.moves:
            tokens.rewind()  # the next pass is whole, even if this one began in the middle
        self._taken, self._moves, self._complete = 0, tokens.moves, False
        for item in super().__iter__():
            if isinstance(item, ImagetokError):
                raise item
            self._taken += 1
            yield item
        self._complete = True

    def state_dict(self) -> State:
        """State after the last item that the consumer has taken."""
        return self._tokens.state_dict(self._taken if self._moves == self._tokens.moves else 0)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next pass go on from a state; errors as `TokenDataset.load_state_dict`."""
        self._tokens.load_state_dict(state)


class _ErrorsAsItems(IterableDataset[Item | ImagetokError]):
    """Yields an error as the last item: torch would put a traceback in front of its message."""

    def __init__(self, dataset: TokenDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Item | ImagetokError]:
        try:
            yield from self._dataset
        except ImagetokError as error:
            yield type(error)(str(error))  # without its cause, which may not be picklable


@dataclass(frozen=True)
class _WorkerPart:
    """What one loading process reads in a pass over a rank's rows.

    Attributes:
        order: Order of the rank's rows.
        reader: Reads the rows.
        epoch: Number of the epoch.
        start: Row that the pass begins at.
        end: Row that the pass ends before.
        worker: Number of the process, in [0, num_workers).
        num_workers: Number of processes.
    """

    order: RowOrder
    reader: ShardReader
    epoch: int
    start: int
    end: int
    worker: int
    num_workers: int

    def batches(self, size: int) -> Iterator[Item]:
        """Yield every `num_workers`-th batch of `size` rows, from number `worker` on."""
        begun: Item = {}
        for positions, gathered in self._buffers(size):
            cuts = np.flatnonzero(np.diff((positions - self.start) // size)) + 1
            for low, high in pairwise([0, *cuts.tolist(), len(positions)]):
                batch = gathered.batch(low, high)
                # A batch may begin in one buffer and end in the next.
                begun = _join(begun, batch) if begun else batch
                following = int(positions[high - 1]) + 1
                if following == self.end or (following - self.start) % size == 0:
                    yield begun
                    begun = {}

    def rows(self) -> Iterator[Item]:
        """Yield every `num_workers`-th row, from number `worker` on."""
        for positions, gathered in self._buffers(1):
            for low in range(0, len(positions), ROWS_AT_ONCE):
                batch = gathered.batch(low, min(low + ROWS_AT_ONCE, len(positions)))
                yield from _rows_of(batch)

    def _buffers(self, size: int) -> Iterator[tuple[Numbers, GatheredRows]]:
        """Yield the rows that this process takes of each buffer, and their ascending positions."""
        for buffer in self.order.buffers(self.epoch, self.start):
            positions = buffer.start + np.arange(len(buffer.rows))
            mine = (positions - self.start) // size % self.num_workers == self.worker
            mine &= (positions >= self.start) & (positions < self.end)
            if mine.any():
                rows = self.reader.gather(buffer.shards[mine], buffer.rows[mine])
                yield positions[mine], rows


def _join(first: Item, second: Item) -> Item:
    return {
        name: torch.cat([value, second[name]])
        if isinstance(value, torch.Tensor)
        else value + second[name]
        for name, value in first.items()
    }


def _rows_of(batch: Item) -> Iterator[Item]:
    for number, ids in enumerate(batch["ids"]):
        row = {name: values[number] for name, values in batch.items() if name != "ids"}
        # Not a view, which would keep all rows in memory and carry them between processes.
        yield {"ids": ids.clone(), **row, "row": int(row["row"])}


def _identity(item: Item) -> Item:
    return item
