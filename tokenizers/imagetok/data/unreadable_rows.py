"""Rows that cannot be read: how they are named, and how many are too many.

The rule is one everywhere. What has read all its rows, as a job and an evaluation have in the end,
is judged by the share of these. Where more rows are to come, as in training, the share is taken of
no fewer than `LEAST_SEEN`, so that one bad row among the first ones ends nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from imagetok.errors import DataError, ImagetokError

LEAST_SEEN = 1000
"""Fewest rows that a share of unreadable ones is taken of while more rows are to come."""

_NAMED = 3


def prepare_image(
    image: Mapping[str, Any], name: str, prepare: Callable[[object], Tensor]
) -> Tensor:
    """Read and transform an image.

    Args:
        image: `{"bytes": ..., "path": ...}`.
        name: What messages call its row.
        prepare: From the image to pixels.

    Raises:
        DataError: The image is refused; the message names row, file and reason.
    """
    try:
        return prepare(image)
    except ImagetokError as error:
        path = image["path"]
        file = f", file '{path}'" if path and image["bytes"] is not None else ""
        raise DataError(f"{name}{file} cannot be read: {error}") from error


def name_some(messages: Sequence[str]) -> str:
    """The last few of several messages, and how many there are."""
    named = "; ".join(messages[-_NAMED:])
    return named if len(messages) <= _NAMED else f"{named} (the last of {len(messages)})"


def allowed_rows(limit: float, seen: int, *, all_seen: bool) -> float:
    """How many of the rows seen may be unreadable.

    Args:
        limit: Largest share, in [0, 1]; 0 allows none.
        seen: Number of rows, over all ranks.
        all_seen: Whether these are all; otherwise more are to come.
    """
    return limit * (seen if all_seen else max(seen, LEAST_SEEN))


def check_error_share(refused: int, seen: int, limit: float, last: Sequence[str]) -> None:
    """Stop a run in which more rows could not be read than it allows.

    Args:
        refused: Rows that could not be read so far, over all ranks.
        seen: Samples so far, over all ranks.
        limit: Largest share, `data.max_error_rate`; more samples are always to come.
        last: Messages about the rows refused last.

    Raises:
        DataError: There are more; the message names the last ones.
    """
    allowed = allowed_rows(limit, seen, all_seen=False)
    if refused > allowed:
        raise DataError(
            f"{refused} rows could not be read in {seen} samples, more than data.max_error_rate="
            f"{limit:g} allows ({allowed:g}); mend the data or raise the limit. The last ones: "
            f"{name_some(last)}"
        )
