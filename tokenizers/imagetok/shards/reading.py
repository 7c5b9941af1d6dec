"""`TokenDataset`: a tokenized dataset for training, shuffled, divided and resumable.

    dataset = TokenDataset("tokens", seed=0, batch_size=64)
    loader = TokenLoader(dataset, num_workers=4)
    if checkpoint:
        loader.load_state_dict(checkpoint["data"])
    for epoch in range(dataset.epoch, 10):
        dataset.set_epoch(epoch)
        for batch in loader:
            train(batch["ids"], batch["caption"])       # int64 (64, n), list of 64
            checkpoint = {"data": loader.state_dict()}  # of what was taken, not of what lies ready

The rows of a rank are numbered in their order (see `imagetok.shards.order`); a batch is the next
`batch_size` of them; loading process w of n makes batches w, w + n, ..., and torch takes them from
the processes in turn. So what is read does not depend on the number of processes, and the number
of rows taken says where to go on. A process reads the row groups of a window that hold rows of its
own batches, and keeps these rows.

Ranks' rows are equal in number to one, so that a rank may have one batch more than another; where
that matters, `drop_last` leaves out the rows behind the last full batch that all ranks have,
others in every epoch. Nothing else is left out, and nothing comes twice. Do not hand a loader of
it to `Accelerator.prepare`, which would divide the rows over the ranks once more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from imagetok.arguments import read_count
from imagetok.errors import InvalidTypeError, InvalidValueError
from imagetok.launch import find_reader_ranks
from imagetok.shards.batching import Item, Pass
from imagetok.shards.opening import Fingerprinted, open_folder
from imagetok.shards.order import ReadingOrder
from imagetok.shards.rows import ShardRows

State = dict[str, int | str | bool]


class TokenDataset(IterableDataset[Item]):
    """Rows of a tokenized dataset, one by one or in batches; see the module for an example.

    A batch is a dict of `ids`, int64 tensor (B, h * w) in [0, codebook_size) and raster order;
    `row`, int64 tensor (B,), the row of the input, or of its `file`, a list of B names, where it
    was streamed; and the other columns as lists of B Python values. Where pictures kept their own
    sizes, `ids` is a list of B tensors (h * w,), and `grid` a list of B (h, w).

    Without `batch_size`, items are rows: `ids` (h * w,), `row` an integer, and so on. torch's
    DataLoader, too, is then to be given `batch_size=None`: batches that it puts together itself
    hold other rows for another number of loading processes.

    Args:
        folder: A complete tokenized dataset: its folder, or its name `user/name` on the Hub.
        split: The split that it must be of; None takes whatever it is of.
        rank: This process's rank; None takes it from `torch.distributed`, or from the environment
            variable RANK that launchers set, or is 0.
        world_size: Number of ranks; given or not like `rank`.
        seed: Of the order.
        batch_size: Rows of a batch, the last one may have fewer; None yields single rows.
        window: Rows that are mixed, and held in memory by all loading processes of a rank
            together, in the shards' narrow types.
        shuffle: Whether there is a new order for every epoch; otherwise rows come as in the input.
        drop_last: Leave out the rows behind the last full batch that every rank has.
        tokenizer: The tokenizer that the ids are to be of, or its fingerprint.
        columns: Columns beside ids and identity: kept ones, `height` and `width`; None takes all
            kept ones.
        revision: Branch, tag or commit on the Hub; None is its main branch.
        token: For private repositories on the Hub; None takes the one that was logged in with.

    Attributes:
        batch_size: As given.
        moves: How many times another place was chosen to begin at.

    Raises:
        UnreadableFileError: The folder is no complete tokenized dataset, or a shard is missing or
            of another size than listed. While iterating: a shard is damaged.
        HubAccessError, HubError: As of `open_folder`.
        DataError: It is of another split or tokenizer, or lacks a column. While iterating: a shard
            is of another job.
        InvalidTypeError: An argument is of the wrong kind.
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
        tokenizer: Fingerprinted | str | None = None,
        columns: Sequence[str] | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> None:
        super().__init__()
        opened = open_folder(folder, revision=revision, token=token)
        if split is not None:
            opened.check_split(split)
        if tokenizer is not None:
            opened.check_tokenizer(tokenizer)
        opened.check_sizes()
        if batch_size is not None:
            read_count("batch_size", batch_size, 1)
        self.batch_size = batch_size
        self._rows = ShardRows(
            opened.path,
            opened.manifest.shards,
            opened.manifest.job,
            opened.job.schema,
            opened.columns(columns),
        )
        self._order = ReadingOrder(
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
        self._place: Tensor = torch.zeros(2, dtype=torch.int64)
        self._place.share_memory_()  # type: ignore[no-untyped-call]
        self.moves = 0

    @property
    def epoch(self) -> int:
        """The epoch that the next pass is of."""
        return int(self._place[0])

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass, which begins at its first row.

        Where a state of the middle of this very epoch was loaded, the pass goes on from there.

        Raises:
            InvalidTypeError: This is no integer.
            InvalidValueError: It is negative.
        """
        if read_count("epoch", epoch, 0) != self.epoch:
            self._go_to(epoch, 0)

    def state_dict(self, taken: int) -> State:
        """Where a consumer stands; `TokenLoader.state_dict` counts by itself.

        Args:
            taken: Items of this pass, batches or rows, that the consumer has taken.

        Returns:
            The epoch, the rows of this rank taken in it, and what fixes their order; JSON-like,
            and the same on every rank that has taken as many.
        """
        start = int(self._place[1])
        rows = start + read_count("taken", taken, 0) * (self.batch_size or 1)
        return {"epoch": self.epoch, "rows": min(rows, self._end), **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next pass go on from a state; batches may be of another size than before.

        Raises:
            InvalidTypeError: This is no state.
            InvalidValueError: It is of another dataset or order.
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
                f"the state is of another order of rows ({'; '.join(wrong)}); open the dataset as "
                "it was then, or begin an epoch with set_epoch"
            )
        self._go_to(read_count("epoch", state["epoch"], 0), read_count("rows", state["rows"], 0))

    def rewind(self) -> None:
        """Let the next pass begin at the first row of its epoch."""
        self._go_to(self.epoch, 0)

    def __len__(self) -> int:
        """Items of a whole epoch of this rank: batches, or rows without `batch_size`."""
        return -(-self._end // (self.batch_size or 1))

    def __iter__(self) -> Iterator[Item]:
        epoch, start = self._place.tolist()
        worker = get_worker_info()
        share = (0, 1) if worker is None else (worker.id, worker.num_workers)
        part = Pass(self._order, self._rows, epoch, start, self._end, *share)
        return part.singles() if self.batch_size is None else part.batches(self.batch_size)

    def _identity(self) -> State:
        """What fixes the order of this rank's rows, the rank aside."""
        order = self._order
        return {
            "job": self._rows.job,
            "seed": order.seed,
            "world_size": order.world_size,
            "window": order.window,
            "shuffle": order.shuffle,
        }

    def _go_to(self, epoch: int, row: int) -> None:
        self._place.copy_(torch.tensor([epoch, row]))
        self.moves += 1
