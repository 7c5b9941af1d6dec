"""A tokenizing job: everything that fixes the bytes of a tokenized dataset.

It is written to `job.json` and holds no time, host, rank or path. Its fingerprint is in the footer
of every shard. Numeric settings are kept apart from the fingerprint: they change at most ids whose
two best codes lie within rounding of each other, and a job may be told to go on under others.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from datasets import Features
from pydantic import Field, model_validator

from imagetok.config.strict_config import Config, StrictInteger
from imagetok.dataset_ref import ReadingConfig
from imagetok.errors import ConfigError, UnreadableFileError
from imagetok.files import naming_os_errors
from imagetok.images import MAX_PIXELS
from imagetok.shards.shard_schema import ShardSchema

DATA, ERRORS = "data", "errors"
JOB_FILE, MANIFEST_FILE, CARD_FILE = "job.json", "manifest.json", "README.md"
SHARD_SUFFIX, ERRORS_SUFFIX = ".parquet", ".jsonl"
MOST_IN_ONE_FOLDER = 5000
UNITS_PER_FOLDER = 1000

Count = Annotated[int, Field(ge=1, le=2**40)]
Size = Annotated[int, Field(ge=1, le=2**31)]
CodebookSize = Annotated[int, Field(ge=1, le=2**32)]
Text = Annotated[str, Field(min_length=1)]


class TokenizerSource(Config):
    """The tokenizer that made the ids.

    Attributes:
        name: Repository on the Hub, or the name of a local folder.
        revision: Commit on the Hub; None for a local folder.
        fingerprint: `ImageTokenizer.fingerprint`.
        codebook_size: Ids lie in [0, codebook_size).
        grid_size: (h, w) of the positions of an image of `image_size`, or (n,) where they form no
            grid.
        image_size: (height, width) in pixels that images are brought to.
        codebook_sizes: Where a position has several codes, the codebook size of each: the ids of
            level i lie in [0, codebook_sizes[i]), and the largest size is codebook_size.
        run: Name of the run that trained the tokenizer, where it was taken from a run's folder; no
            part of what makes a job another one.
    """

    later_keys: ClassVar[frozenset[str]] = frozenset({"codebook_sizes", "run"})

    name: Text
    revision: str | None
    fingerprint: Text
    codebook_size: CodebookSize
    grid_size: Annotated[tuple[Size, ...], Field(min_length=1, max_length=2)]
    image_size: tuple[Size, Size]
    codebook_sizes: Annotated[tuple[CodebookSize, ...], Field(min_length=2)] | None = None
    run: Text | None = None

    @property
    def shown_name(self) -> str:
        """What cards call the tokenizer: its run, since every run saves it under one name."""
        return self.name if self.run is None else self.run

    @model_validator(mode="after")
    def _check_codebook_sizes(self) -> Self:
        if self.codebook_sizes is not None and max(self.codebook_sizes) != self.codebook_size:
            raise ValueError(
                f"codebook_size is {self.codebook_size}, the largest of codebook_sizes is "
                f"{max(self.codebook_sizes)}"
            )
        return self


class InputSource(ReadingConfig):
    """The rows that are tokenized; how they are found and divided, as in `DatasetRef`.

    Attributes:
        name: Dataset as `imagetok.data.open_images` takes it; for a folder or file its bare name,
            without the path.
        subset: Configuration name of a dataset that has several.
        revision: Commit of a dataset on the Hub.
        split: A split, a slice, or a sum of these.
        image_column: Column of the images.
        fingerprint: Hash of the content; see `imagetok.data.data_fingerprint`.
        streaming: Whether files are read in sequence and a row is identified by its file.
        num_rows: Number of rows of the split; None if it is streamed.
        limit: Largest number of rows that are tokenized; None takes all.
    """

    name: Text
    subset: str | None
    revision: str | None
    split: Text
    image_column: Text
    fingerprint: Text
    streaming: bool
    num_rows: Count | None
    limit: Count | None

    @model_validator(mode="after")
    def _check_num_rows(self) -> Self:
        if self.streaming != (self.num_rows is None):
            raise ValueError("num_rows is null where streaming is true, and only there")
        return self


class InputFile(Config):
    """A file of a streamed dataset: its base name, and its size in bytes where that is known."""

    name: Text
    size: Annotated[int, Field(ge=0)] | None


class Units(Config):
    """How rows are divided into units of work.

    Attributes:
        rows_per_shard: Number of input rows that a shard stands for.
        count: Number of units; None takes the number of files.
        files: Files of a streamed dataset, one for each unit.
    """

    rows_per_shard: Count
    count: Count | None
    files: tuple[InputFile, ...]


class Output(Config):
    """What is written about each row.

    Attributes:
        resize: `crop` brings images to the tokenizer's size; `native` keeps each image's own.
        keep: Names of the columns that are carried along, in order.
        max_pixels: Most pixels of an image; a row with more is refused.
    """

    later_keys: ClassVar[frozenset[str]] = frozenset({"max_pixels"})

    resize: Literal["crop", "native"]
    keep: tuple[Text, ...]
    max_pixels: Size = MAX_PIXELS


class Versions(Config):
    """Versions of the libraries that compute; of littlecms only where it converts colours."""

    later_keys: ClassVar[frozenset[str]] = frozenset({"littlecms"})

    imagetok: Text
    torch: Text
    numpy: Text
    pillow: Text
    pyarrow: Text
    littlecms: Text | None = None


class Numerics(Config):
    """Settings under which ids may differ by rounding.

    Attributes:
        device: Kind of the device, such as `cpu`.
        dtype: Dtype of the encoder.
        batch_size: Number of images encoded at once; the last batch is padded to it.
        threads: Number of threads of a process.
        search: Backend of the code search.
        image_decoder: Library that decodes images.
        versions: Versions of the libraries.
        compiled: Whether the encoder runs as compiled code.
    """

    later_keys: ClassVar[frozenset[str]] = frozenset({"compiled"})

    device: Text
    dtype: Text
    batch_size: Count
    threads: Count
    search: Text
    image_decoder: Text
    versions: Versions
    compiled: bool = False


@dataclass(frozen=True)
class ShardPaths:
    """Names of shards and error files, relative to the dataset's folder.

    For the split `train`:

        data/train-00000.parquet        a unit of rows
        data/train-00000-00000.parquet  one part of a unit that is an input file: unit, part
        data/00003/train-03141.parquet  with over 5,000 units: 1,000 per folder
        errors/...jsonl                 under the same names, the rows that could not be read

    Attributes:
        split: First word of each name.
        num_units: Number of units of the job.
        in_parts: Whether a unit is a file of unknown length, which gives several shards.
    """

    split: str
    num_units: int
    in_parts: bool

    def shard(self, unit: int, part: int = 0) -> str:
        """Path of a shard."""
        return f"{DATA}/{self.stem(unit, part)}{SHARD_SUFFIX}"

    def errors(self, unit: int, part: int = 0) -> str:
        """Path of the file that lists a shard's unreadable rows."""
        return f"{ERRORS}/{self.stem(unit, part)}{ERRORS_SUFFIX}"

    def stem(self, unit: int, part: int = 0) -> str:
        """What a shard and its error file share: subfolder, if any, and name without suffix."""
        name = self.name(unit) + (f"-{part:05d}" if self.in_parts else "")
        if self.num_units <= MOST_IN_ONE_FOLDER:
            return name
        return f"{unit // UNITS_PER_FOLDER:05d}/{name}"

    def name(self, unit: int) -> str:
        """Name of a unit."""
        return f"{self.split}-{unit:05d}"

    def parts(self, folder: Path, unit: int) -> list[int]:
        """Parts of a unit that lie in the dataset's `folder`, in ascending order."""
        if not self.in_parts:
            return [0] if (folder / self.shard(unit)).exists() else []
        first = folder / self.shard(unit)
        pattern = re.compile(rf"{re.escape(self.split)}-{unit:05d}-(\d{{5,}}){SHARD_SUFFIX}")
        names = first.parent.iterdir() if first.parent.is_dir() else ()
        found = (pattern.fullmatch(path.name) for path in names)
        return sorted(int(match[1]) for match in found if match)

    def parents(self) -> Iterator[str]:
        """Every folder that shards lie in."""
        if self.num_units <= MOST_IN_ONE_FOLDER:
            yield DATA
        else:
            for start in range(0, self.num_units, UNITS_PER_FOLDER):
                yield f"{DATA}/{start // UNITS_PER_FOLDER:05d}"


class Job(Config):
    """A tokenizing job; see the module and its parts.

    Attributes:
        format_version: Version of the folder's layout.
        tokenizer: What makes the ids.
        input: What they are made from.
        units: How the work is divided.
        output: What is written.
        features: Features of the kept columns, as `datasets.Features.to_dict` gives them.
        numerics: Numeric settings of the process that began the job.
    """

    format_version: Annotated[Literal[1], StrictInteger] = 1
    tokenizer: TokenizerSource
    input: InputSource
    units: Units
    output: Output
    features: dict[str, Any]
    numerics: Numerics

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        if sorted(self.features) != sorted(self.output.keep):
            raise ValueError(
                f"features describes the columns {sorted(self.features)}, output.keep names "
                f"{sorted(self.output.keep)}"
            )
        if self.output.resize == "native" and len(self.tokenizer.grid_size) == 1:
            raise ValueError("output.resize is 'native', but the tokenizer's ids form no grid")
        rows, count = self.num_rows, self.units.count
        if rows is None:
            if self.num_units < 1:
                raise ValueError("units has neither a count nor files")
            if self.units.files and self.num_units != len(self.units.files):
                raise ValueError(f"units.count is {count} for {len(self.units.files)} files")
        elif count != math.ceil(rows / self.units.rows_per_shard):
            raise ValueError(
                f"units.count is {count}, {rows} rows make "
                f"{math.ceil(rows / self.units.rows_per_shard)} of {self.units.rows_per_shard}"
            )
        return self

    @property
    def num_units(self) -> int:
        """Number of units."""
        return self.units.count or len(self.units.files)

    @property
    def num_rows(self) -> int | None:
        """Number of rows that are tokenized or refused; None where only reading tells."""
        if self.input.num_rows is None:
            return None
        return min(self.input.num_rows, self.input.limit or self.input.num_rows)

    def rows_of(self, unit: int) -> range | None:
        """Rows of the input that a unit covers; None where only reading tells."""
        if self.num_rows is None:
            return None
        start = unit * self.units.rows_per_shard
        return range(start, min(start + self.units.rows_per_shard, self.num_rows))

    @property
    def split_name(self) -> str:
        """Split of the tokenized dataset: that of the input, or `train` for a sum of several."""
        word = re.fullmatch(r"(\w+(?:\.\w+)*)(?:\[[^\]]*\])?", self.input.split)
        return word[1] if word and word[1] != "all" else "train"

    @cached_property
    def paths(self) -> ShardPaths:
        """Where the files of the tokenized dataset lie."""
        return ShardPaths(self.split_name, self.num_units, in_parts=self.input.streaming)

    @cached_property
    def kept(self) -> Features:
        """Features of the kept columns, in the order of `output.keep`."""
        try:
            return Features.from_dict({name: self.features[name] for name in self.output.keep})
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ConfigError(f"Job: features cannot be read: {error}") from error

    @cached_property
    def schema(self) -> ShardSchema:  # type: ignore[override]
        """Columns of the shards."""
        return ShardSchema(
            codebook_size=self.tokenizer.codebook_size,
            grid=self.tokenizer.grid_size if self.output.resize == "crop" else None,
            by_file=self.input.streaming,
            kept=self.kept,
            codebook_sizes=self.tokenizer.codebook_sizes or (),
        )

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything but the numeric settings: 64 hexadecimal digits."""
        values = {**self.to_dict(), "numerics": None}
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def read_job(folder: str | os.PathLike[str]) -> Job:
    """Read the job that fills a folder.

    Raises:
        UnreadableFileError: The folder holds no job.json, or a damaged one.
    """
    path = Path(folder) / JOB_FILE
    with naming_os_errors("read", path):
        text = path.read_bytes()
    try:
        return Job.from_json(text)
    except ConfigError as error:
        raise UnreadableFileError(f"'{path}' is not a job of this version: {error}") from error
