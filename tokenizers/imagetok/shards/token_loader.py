"""`TokenLoader`: torch's DataLoader over a `TokenDataset`, which knows what was taken from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from imagetok.errors import ImagetokError
from imagetok.shards.token_dataset import Item, State, TokenDataset


class TokenLoader(DataLoader[Item | ImagetokError]):
    """Loads a `TokenDataset` in processes of its own, and counts the items that were taken.

    Loading processes work ahead, so that only the consumer's side knows how far it has come. See
    `imagetok.shards.token_dataset` for an example.

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


def _identity(item: Item) -> Item:
    return item
