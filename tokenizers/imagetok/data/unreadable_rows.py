"""Rows that cannot be read: how they are named, and how many are too many."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from imagetok.errors import DataError, ImagetokError

LEAST_SEEN = 1000
"""Fewest samples that the share of unreadable rows is taken of, so that one bad row among the first
ones does not stop a run.
"""

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


def allowed_rows(limit: float, seen: int) -> float:
    """How many of the samples seen so far may be unreadable.

    Args:
        limit: Largest share, of at least 1,000 samples; 0 allows none.
        seen: Samples so far, over all ranks.
    """
    return limit * max(seen, LEAST_SEEN)


def check_error_share(refused: int, seen: int, limit: float, last: Sequence[str]) -> None:
    """Stop a run in which more rows could not be read than it allows.

    Args:
        refused: Rows that could not be read so far, over all ranks.
        seen: Samples so far, over all ranks.
        limit: Largest share, `data.max_error_rate`, as for `allowed_rows`.
        last: Messages about the rows refused last.

    Raises:
        DataError: There are more; the message names the last ones.
    """
    allowed = allowed_rows(limit, seen)
    if refused > allowed:
        raise DataError(
            f"{refused} rows could not be read in {seen} samples, more than data.max_error_rate="
            f"{limit:g} allows ({allowed:g}); mend the data or raise the limit. The last ones: "
            f"{name_some(last)}"
        )
