"""Rows that cannot be read: how they are named, and how many are too many."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from imagetok.errors import DataError, ImagetokError

LEAST_SEEN = 1000
"""Samples that a share is taken of at least: a bad row among the first ones stops no run."""

_NAMED = 3


def prepare_picture(
    picture: Mapping[str, Any], name: str, prepare: Callable[[object], Tensor]
) -> Tensor:
    """Read and transform a picture.

    Args:
        picture: `{"bytes": ..., "path": ...}`.
        name: What messages call its row.
        prepare: From the picture to pixels.

    Raises:
        DataError: The picture is refused; the message names row, file and reason.
    """
    try:
        return prepare(picture)
    except ImagetokError as error:
        path = picture["path"]
        file = f", file '{path}'" if path and picture["bytes"] is not None else ""
        raise DataError(f"{name}{file} cannot be read: {error}") from error


def name_some(messages: Sequence[str]) -> str:
    """The last few of several messages, and how many there are."""
    named = "; ".join(messages[-_NAMED:])
    return named if len(messages) <= _NAMED else f"{named} (the last of {len(messages)})"


def check_error_share(refused: int, seen: int, limit: float, last: Sequence[str]) -> None:
    """Stop when more rows could not be read than the run allows.

    Args:
        refused: Rows that could not be read so far, over all ranks.
        seen: Samples of the steps so far, over all ranks.
        limit: Largest share, `data.max_error_rate`; of at least 1,000 samples. 0 stops at the
            first row.
        last: Messages of the rows refused last.

    Raises:
        DataError: There are more; the message names the last ones.
    """
    allowed = limit * max(seen, LEAST_SEEN)
    if refused > allowed:
        raise DataError(
            f"{refused} rows could not be read in {seen} samples, more than data.max_error_rate="
            f"{limit:g} allows ({allowed:g}); mend the data or raise the limit. The last ones: "
            f"{name_some(last)}"
        )
