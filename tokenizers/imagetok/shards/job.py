"""What a tokenizing job is, and the folder that it fills.

A job is all that fixes the bytes of a tokenized dataset. It stands in `job.json`, holds no time,
host, rank or path, and its fingerprint stands in the footer of every shard. Numeric settings are
kept apart: they change at most ids whose two best codes lie within rounding of each other, and a
job may be told to go on under others.
"""

from __future__ import annotations

import hashlib
import math
import re
from typing import Annotated, Any, Literal, Self

from datasets import Features
from pydantic import model_validator

from imagetok.config.strict_config import Config, StrictInteger
from imagetok.errors import ConfigError
from imagetok.shards.paths import ShardPaths
from imagetok.shards.schema import ShardSchema
from imagetok.shards.settings import InputSource, Numerics, Output, TokenizerSource, Units


class Job(Config):
    """A tokenizing job; see the module and its parts.

    Attributes:
        format_version: Of the folder's layout.
        tokenizer: What made the ids.
        input: What they were made of.
        units: How the work is divided.
        output: What is written.
        features: The kept columns' features, as `datasets.Features.to_dict` gives them.
        numerics: Settings of the process that began the job.
    """

    format_version: Annotated[Literal[1], StrictInteger] = 1
    tokenizer: TokenizerSource
    input: InputSource
    units: Units
    output: Output
    features: dict[str, Any]
    numerics: Numerics

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if sorted(self.features) != sorted(self.output.keep):
            raise ValueError(
                f"features describes the columns {sorted(self.features)}, output.keep names "
                f"{sorted(self.output.keep)}"
            )
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
        """Units of the job."""
        return self.units.count or len(self.units.files)

    @property
    def num_rows(self) -> int | None:
        """Rows that are tokenized or refused; None where only reading tells."""
        if self.input.num_rows is None:
            return None
        return min(self.input.num_rows, self.input.limit or self.input.num_rows)

    def rows_of(self, unit: int) -> range | None:
        """Rows of a unit; None where only reading tells."""
        if self.num_rows is None:
            return None
        start = unit * self.units.rows_per_shard
        return range(start, min(start + self.units.rows_per_shard, self.num_rows))

    @property
    def split_name(self) -> str:
        """The split that the tokenized dataset has: the input's, `train` for a sum of several."""
        word = re.fullmatch(r"(\w+(?:\.\w+)*)(?:\[[^\]]*\])?", self.input.split)
        return word[1] if word and word[1] != "all" else "train"

    @property
    def paths(self) -> ShardPaths:
        """Where its files lie."""
        return ShardPaths(self.split_name, self.num_units, in_parts=self.input.streaming)

    @property
    def kept(self) -> Features:
        """Features of the kept columns, in order."""
        try:
            features = Features.from_dict({name: self.features[name] for name in self.output.keep})
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ConfigError(f"Job: features cannot be read: {error}") from error
        return features

    @property
    def schema(self) -> ShardSchema:  # type: ignore[override]
        """Columns of its shards."""
        return ShardSchema(
            codebook_size=self.tokenizer.codebook_size,
            grid=self.tokenizer.grid_size if self.output.resize == "crop" else None,
            by_file=self.input.streaming,
            kept=self.kept,
        )

    @property
    def fingerprint(self) -> str:
        """Hash of everything but the numeric settings: 64 hexadecimal digits."""
        text = self.model_copy(update={"numerics": None}).to_json()
        return hashlib.sha256(text.encode()).hexdigest()
