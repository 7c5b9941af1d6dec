"""`DatasetRef`: which dataset, and how it is read.

    DatasetRef --open_rows--> ImageRows                  row by row
               --open_image_stream--> ImageStream        file by file

It says where rows come from and nothing about what is made of them. Nothing is opened or looked up
here; whoever opens the dataset finds out whether it exists.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Literal, get_args

from imagetok.config.strict_config import Config
from imagetok.display_names import BUILTIN_PREFIX, display_name
from imagetok.errors import InvalidValueError

Labels = Literal["auto", "path", "parent", "none"]
Metadata = Literal["auto", "strict"]

_PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,12})?)%")


@dataclass(frozen=True)
class DatasetRef:
    """Which rows of which dataset.

    Attributes:
        name: `builtin:shapes` or `builtin:digits`, with options as in
            `builtin:shapes?size=128&count=500`; a folder of images, with or without folders for
            classes and splits, or of zip archives of them; a parquet, arrow or tar (WebDataset)
            file or a folder of such; a folder written by `save_to_disk`; or a dataset on the Hub.
            Where a folder has no splits, all of it is `train`.
        split: A split, a slice (`train[:100]`, `train[90%:]`), or a sum of these with `+`.
        subset: Configuration name of a dataset that has several.
        revision: Commit, branch or tag of a dataset on the Hub.
        image_column: Column of the images, an Image or binary one; None finds the only column
            with an Image feature.
        streaming: Read files in sequence instead of row by row, with nothing downloaded or
            converted beforehand. Built-in datasets, those written by `save_to_disk` and images
            that are files of their own need no conversion and are read row by row anyway.
        split_dirs: Whether the folders directly below a folder of images are its splits; None
            decides by their names, as the guide to data says.
        labels: Where the label of an image in a folder comes from: the name of the folder that it
            lies in (`parent`), that folder's path below the split (`path`), nowhere (`none`), or
            `auto`, which is `parent` where there are at least two such folders.
        metadata: With `strict`, an image that a metadata file beside it does not name is refused
            instead of having nulls in the columns of that file.
        sidecars: Read columns from the text and JSON files beside images of the same stem.
        holdout: Share of the `train` split, as in `10%`, that becomes the split `holdout`: the
            rows that a keyed hash of their identity chooses, so that adding rows moves none.
        stratify: Hold out the same share of every label, at least one row of each on either side;
            or, as an integer, this many rows of each label, in place of a share.
        holdout_salt: Another text gives another choice of the same size.

    Raises:
        InvalidValueError: The entries about the holdout cannot be used together.
    """

    name: str
    split: str = "train"
    subset: str | None = None
    revision: str | None = None
    image_column: str | None = None
    streaming: bool = False
    split_dirs: bool | None = None
    labels: Labels = "auto"
    metadata: Metadata = "auto"
    sidecars: bool = False
    holdout: str | None = None
    stratify: bool | int = False
    holdout_salt: str = ""

    def __post_init__(self) -> None:
        for key, kind in (("labels", Labels), ("metadata", Metadata)):
            if (found := getattr(self, key)) not in get_args(kind):
                raise InvalidValueError(
                    f"{key} is {found!r}; choose one of: {', '.join(get_args(kind))}"
                )
        if self.holdout is not None and not 0 < self.holdout_share < 1:
            raise InvalidValueError(
                f"holdout is {self.holdout!r}; expected a share between 0% and 100%, as in 10%"
            )
        if self.stratify is True and self.holdout is None:
            raise InvalidValueError(
                "stratify needs the share to hold out; set holdout, as in 10%, or give stratify "
                "the number of rows of each label"
            )
        if self.stratify is not True and self.stratify and self.holdout is not None:
            raise InvalidValueError(
                f"stratify holds out {self.stratify} rows of each label and holdout "
                f"{self.holdout} of all; leave one of them out"
            )
        if self.stratify < 0:
            raise InvalidValueError(
                f"stratify is {self.stratify}; expected true, false or a number of rows from 1 on"
            )
        if self.stratify and self.streaming:
            raise InvalidValueError(
                "stratify ranks all rows of a label, which a streamed dataset does not know; "
                "leave stratify or streaming out"
            )
        if self.holdout_salt and not self.holds_out:
            raise InvalidValueError(
                f"holdout_salt is {self.holdout_salt!r}, and nothing is held out; set holdout"
            )
        if len(self.holdout_salt.encode()) > 64:
            raise InvalidValueError("holdout_salt has more than 64 bytes; choose a shorter one")

    @property
    def holds_out(self) -> bool:
        """Whether the `train` split is divided into `train` and `holdout`."""
        return self.holdout is not None or bool(self.stratify)

    @property
    def holdout_share(self) -> Fraction:
        """The share that is held out; 0 where it is not given or no percentage."""
        found = _PERCENT.fullmatch(self.holdout or "")
        return Fraction(found[1]) / 100 if found else Fraction(0)

    def reading(self) -> dict[str, Any]:
        """The entries that say how rows are found and divided, by name; see `ReadingConfig`."""
        return {key: getattr(self, key) for key in ReadingConfig.model_fields}

    def chosen_reading(self) -> dict[str, Any]:
        """Those of the entries of `reading` that are not left at their defaults."""
        fields = ReadingConfig.model_fields
        return {key: value for key, value in self.reading().items() if value != fields[key].default}

    @property
    def is_builtin(self) -> bool:
        """Whether it is one of the datasets that come with imagetok."""
        return self.name.startswith(BUILTIN_PREFIX)

    @property
    def display_name(self) -> str:
        """The name without the folders of a local dataset, which say much about the machine."""
        return display_name(self.name)


class ReadingConfig(Config):
    """The entries of a `DatasetRef` that say how rows are found and divided, for other models.

    A run and a job have them among their own; `DatasetRef` says what they mean and checks them.
    """

    later_keys: ClassVar[frozenset[str]] = frozenset(
        {"split_dirs", "labels", "metadata", "sidecars", "holdout", "stratify", "holdout_salt"}
    )

    split_dirs: bool | None = None
    labels: Labels = "auto"
    metadata: Metadata = "auto"
    sidecars: bool = False
    holdout: str | None = None
    stratify: bool | int = False
    holdout_salt: str = ""

    def reading(self) -> dict[str, Any]:
        """These entries by name, for a `DatasetRef`."""
        return {key: getattr(self, key) for key in ReadingConfig.model_fields}
