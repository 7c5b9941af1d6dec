"""From a dataset's name to an `Input`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imagetok.data import open_images
from imagetok.data.builtins import PREFIX
from imagetok.data.sources import find_place
from imagetok.tokenizing.inputs import Input, RowsInput, choose_kept
from imagetok.tokenizing.streamed import open_files


@dataclass(frozen=True)
class InputChoice:
    """Which rows of which dataset, and how they are read.

    Attributes:
        name: As `imagetok.data.open_images` takes it.
        subset: Configuration name of a dataset that has several.
        revision: Commit, branch or tag of a dataset on the Hub.
        split: A split, a slice or a sum of these; of a streamed dataset a split.
        image_column: Column of the pictures; None finds the only one with an Image feature.
        keep: Columns to carry along.
        limit: Most rows to take; None takes all.
        rows_per_shard: Rows of a unit that is no file.
        streaming: Read files in sequence instead of row by row. Built-in datasets, those written
            by `save_to_disk` and pictures that are files of their own need no conversion and are
            read row by row anyway.
    """

    name: str
    subset: str | None = None
    revision: str | None = None
    split: str = "train"
    image_column: str | None = None
    keep: Sequence[str] = ()
    limit: int | None = None
    rows_per_shard: int = 16384
    streaming: bool = False

    @property
    def told_name(self) -> str:
        """The name without the folders that a local dataset lies in."""
        path = os.path.expanduser(self.name)
        return Path(path).resolve().name if os.path.exists(path) else self.name


def open_input(choice: InputChoice, cache_dir: str | None = None) -> Input:
    """Open the rows to tokenize; nothing is decoded.

    A dataset on the Hub is read at one commit throughout, which the input names.

    Args:
        choice: Which ones.
        cache_dir: Where `datasets` keeps what it draws, downloads and converts.

    Raises:
        DataError: The dataset, the split or a column cannot be used.
    """
    place = None
    if not choice.name.startswith(PREFIX):
        place = find_place(choice.name, choice.subset, choice.revision).pin(cache_dir)
    if choice.streaming and place is not None and place.kind(cache_dir) == "rows":
        return open_files(
            choice.name,
            place,
            choice.split,
            image_column=choice.image_column,
            keep=choice.keep,
            limit=choice.limit,
            cache_dir=cache_dir,
        )
    revision = choice.revision if place is None else place.revision
    rows = open_images(
        choice.name,
        choice.split,
        subset=choice.subset,
        revision=revision,
        image_column=choice.image_column,
        cache_dir=cache_dir,
    )
    return RowsInput(
        name=choice.name,
        image_column=rows.image_column,
        kept=choose_kept(rows.dataset.features, choice.name, rows.image_column, choice.keep),
        fingerprint=rows.fingerprint,
        root=None if place is None or place.root is None else place.root.resolve(),
        num_rows=len(rows),
        revision=revision,
        rows=rows,
        rows_per_unit=choice.rows_per_shard,
        limit=choice.limit,
    )
