"""What a manifest says: every shard with its rows, size and sha256, and totals."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

from pydantic import Field

from imagetok.config.strict_config import Config, StrictInteger
from imagetok.shards.paths import DATA, ERRORS, ERRORS_SUFFIX, SHARD_SUFFIX
from imagetok.shards.settings import Numerics, TokenizerSource

Number = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ShardRecord(Config):
    """One shard.

    Attributes:
        path: Below the dataset's folder, with slashes.
        unit: The unit of work that it is of.
        rows: Rows that it holds.
        refused: Rows that belong to it and could not be read.
        tokens: Ids that it holds.
        bytes: Size of its file.
        sha256: Of its file.
        errors_sha256: Of the file that lists its unreadable rows; None where there are none.
        numerics: Numeric settings that it was made with; None where they are the job's.
    """

    path: str
    unit: Number
    rows: Number
    refused: Number
    tokens: Number
    bytes: Number
    sha256: Sha256
    errors_sha256: Sha256 | None
    numerics: Numerics | None

    @property
    def errors_path(self) -> str:
        """Path of the file that lists its unreadable rows, if there are any."""
        stem = self.path.removeprefix(f"{DATA}/").removesuffix(SHARD_SUFFIX)
        return f"{ERRORS}/{stem}{ERRORS_SUFFIX}"


class Totals(Config):
    """Sums over all shards; `rows_in` are `rows` and `refused` together."""

    rows_in: Number
    rows: Number
    refused: Number
    tokens: Number
    bytes: Number
    shards: Number


class Manifest(Config):
    """What a finished tokenized dataset holds.

    Attributes:
        format_version: Of the folder's layout.
        job: Fingerprint of the job.
        tokenizer: What made the ids.
        totals: Sums over all shards.
        throughput: What the process that finished last says of its speed, if it does.
        shards: In the order of units and parts.
    """

    format_version: Annotated[Literal[1], StrictInteger] = 1
    job: Sha256
    tokenizer: TokenizerSource
    totals: Totals
    throughput: dict[str, Any] | None
    shards: tuple[ShardRecord, ...]

    @property
    def fingerprint(self) -> str:
        """Hash of the job and of all shards: 64 hexadecimal digits."""
        hashes = [self.job, *(shard.sha256 for shard in self.shards)]
        return hashlib.sha256(" ".join(hashes).encode()).hexdigest()
