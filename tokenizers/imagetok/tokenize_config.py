"""`TokenizeConfig`: what a tokenizing job does, as `RunConfig` says what a training run does.

All processes of a job have the same configuration; which of them a process is, and where the output
lies, is said separately. What fixes the bytes of the output stands at the top level and goes into
`job.json`, in the form of a `shards.Job`; what does not stands under `process`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from imagetok.arguments import read_count
from imagetok.config.strict_config import Config
from imagetok.dataset_ref import DatasetRef
from imagetok.errors import InvalidTypeError
from imagetok.images import MOST_PIXELS

Count = Annotated[int, Field(ge=1, lt=2**31)]
Text = Annotated[str, Field(min_length=1)]


class ProcessConfig(Config):
    """How a process works on a job: nothing here changes a byte of the output.

    Attributes:
        workers: Processes that decode images; 0 takes threads of this process.
        max_error_rate: Largest share of rows, in [0, 1], that may be refused.
        allow_mixed_numerics: Go on with a job that was begun under other numeric settings; shards
            record those that they were made under.
        progress: Show a bar on rank 0.
    """

    workers: Annotated[int, Field(ge=0, lt=2**31)] = 0
    max_error_rate: Annotated[float, Field(ge=0, le=1)] = 0.01
    allow_mixed_numerics: bool = False
    progress: bool = True


class TokenizeConfig(Config):
    """A tokenizing job.

    Attributes:
        dataset: The rows to tokenize.
        tokenizer: Folder or Hub repository of a saved tokenizer; None where one is handed over
            that is loaded already.
        tokenizer_revision: Commit, branch or tag of a tokenizer on the Hub. The job records the
            commit.
        keep: Columns to carry along as they are, in this order.
        limit: Most rows to take, counted from the first; None takes all.
        resize: `crop` brings images to the tokenizer's size; `native` keeps each one's own, with
            the sides rounded down to the factor by a centre crop.
        max_pixels: Most pixels of an image; a row with more is refused. None takes the tokenizer's
            own limit, which is 50 million unless it was loaded with another one.
        rows_per_shard: Rows of the input that a shard stands for.
        batch_size: Images encoded at once; the last batch of a shard is padded.
        dtype: Type that the networks compute in: float32, bfloat16 or float16.
        device: Where a tokenizer that is given by name computes; `auto` takes the process's own
            GPU, where there is one. The job records the kind of device.
        threads: Threads of the encoder on a CPU; None leaves torch's setting.
        compile: Compile the encoder first. The job records it; images have one size, so that
            resize is `crop`.
        process: What does not change the output.
    """

    dataset: DatasetRef
    tokenizer: Text | None = None
    tokenizer_revision: str | None = None
    keep: tuple[str, ...] = ()
    limit: Count | None = None
    resize: Literal["crop", "native"] = "crop"
    max_pixels: Annotated[int, Field(ge=1, le=MOST_PIXELS)] | None = None
    rows_per_shard: Count = 16384
    batch_size: Count = 32
    dtype: Text = "float32"
    device: Text = "auto"
    threads: Count | None = None
    compile: bool = False
    process: ProcessConfig = ProcessConfig()

    @model_validator(mode="after")
    def _has_one_size(self) -> Self:
        if self.compile and self.resize == "native":
            raise ValueError(
                "compile is for images of one size, and resize is 'native'; leave compile out, or "
                "choose resize 'crop'"
            )
        return self

    @classmethod
    def from_options(cls, dataset: str | os.PathLike[str], **options: Any) -> Self:
        """Build from options that stand side by side, as `tokenize_dataset` and the command do.

        Args:
            dataset: Name of the dataset.
            options: Other entries of the dataset, entries of `process`, and those of this model,
                all by their names; what is missing has its default.

        Raises:
            InvalidTypeError: A name is neither text nor a path, or a count is not an integer.
            InvalidValueError: A count is out of range.
            ConfigError: Another option cannot be used, or there is none of that name.
        """
        source: dict[str, Any] = {"name": _read_name("dataset", dataset)}
        process: dict[str, Any] = {}
        job: dict[str, Any] = {"dataset": source, "process": process}
        for name, value in options.items():
            group = source if name in _DATASET_OPTIONS else job
            group = process if name in ProcessConfig.model_fields else group
            group[name] = _READERS[name](value) if name in _READERS else value
        return cls.from_dict(job)


def _read_name(option: str, value: object) -> str:
    if not isinstance(value, str | os.PathLike):
        raise InvalidTypeError(f"{option} must be a name or a path, got {type(value).__name__}")
    return os.fspath(value)


def _read_optional_count(option: str, value: int | None) -> int | None:
    return None if value is None else read_count(option, value, 1)


_DATASET_OPTIONS = {field.name for field in fields(DatasetRef)} - {"name"}

_READERS: dict[str, Callable[[Any], Any]] = {
    "streaming": bool,
    "tokenizer": partial(_read_name, "tokenizer"),
    "keep": list,
    "limit": partial(_read_optional_count, "limit"),
    "max_pixels": partial(_read_optional_count, "max_pixels"),
    "rows_per_shard": partial(read_count, "rows_per_shard", least=1),
    "batch_size": partial(read_count, "batch_size", least=1),
    "dtype": lambda dtype: str(dtype).removeprefix("torch."),
    "device": str,
    "threads": partial(_read_optional_count, "threads"),
    "compile": bool,
    "workers": partial(read_count, "workers", least=0),
    "allow_mixed_numerics": bool,
    "progress": bool,
}
"""How options become entries, where callers in Python may give more types than a file holds."""
