"""What a job needs before any work: its arguments checked, its tokenizer, and its `Job`."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import PIL
import pyarrow as pa
import torch

from imagetok._version import __version__
from imagetok.arguments import read_count
from imagetok.errors import InvalidValueError
from imagetok.networks import MlpEncoder
from imagetok.shards.job import Job
from imagetok.shards.settings import (
    InputFile,
    InputSource,
    Numerics,
    TokenizerSource,
    Units,
    Versions,
)
from imagetok.tokenizer import ImageTokenizer
from imagetok.tokenizing.job_input import InputChoice, JobInput
from imagetok.tokenizing.ranks import Share, find_device

RESIZES = ("crop", "native")


def check_arguments(
    batch_size: int,
    workers: int,
    threads: int | None,
    limit: int | None,
    rows_per_shard: int,
    max_error_rate: float,
    resize: str,
) -> None:
    """Refuse arguments before any work.

    Raises:
        InvalidTypeError: A number is not an integer.
        InvalidValueError: It is out of range, or `resize` is unknown.
    """
    read_count("batch_size", batch_size, 1)
    read_count("workers", workers, 0)
    read_count("rows_per_shard", rows_per_shard, 1)
    for name, value in (("threads", threads), ("limit", limit)):
        if value is not None:
            read_count(name, value, 1)
    if not 0 <= max_error_rate <= 1:
        raise InvalidValueError(f"max_error_rate is {max_error_rate}, expected a share in [0, 1]")
    if resize not in RESIZES:
        raise InvalidValueError(f"unknown resize {resize!r}; choose one of: {', '.join(RESIZES)}")


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Within the context, let torch compute with this many threads; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def load_tokenizer(
    tokenizer: ImageTokenizer | str | os.PathLike[str],
    revision: str | None,
    device: str,
    dtype: str,
    share: Share,
) -> ImageTokenizer:
    """The tokenizer, which is loaded here if it is given by name.

    Raises:
        NotDiscreteError: The tokenizer is continuous.
        InvalidValueError: A revision is given for a tokenizer that is loaded already.
    """
    if not isinstance(tokenizer, ImageTokenizer):
        model = ImageTokenizer.from_pretrained(
            tokenizer, revision=revision, device=find_device(device, share), dtype=dtype
        )
    elif revision is None:
        model = tokenizer
    else:
        raise InvalidValueError(
            f"tokenizer_revision is {revision!r}, but the tokenizer is loaded already; load it "
            "at that revision"
        )
    if model.codebook_size < 1:  # raises where there is no codebook
        raise InvalidValueError("the tokenizer has no codes")
    return model


def native_factors(tokenizer: ImageTokenizer) -> tuple[int, int]:
    """Pixels (height, width) that a position stands for, for images that keep their sizes.

    Raises:
        InvalidValueError: The encoder takes images of one size only.
    """
    if isinstance(tokenizer.encoder, MlpEncoder):
        raise InvalidValueError(
            "resize is native, and this tokenizer takes images of "
            f"{tokenizer.image_size} only; choose resize crop"
        )
    factor = tokenizer.downsample_factor
    return factor, factor


def describe_job(
    tokenizer: ImageTokenizer,
    rows: JobInput,
    choice: InputChoice,
    *,
    resize: str,
    batch_size: int,
) -> Job:
    """What fixes the bytes of a job, as `job.json` records it.

    Args:
        tokenizer: A discrete tokenizer on its device and in its dtype.
        rows: The input.
        choice: The choice that opened it.
        resize: `crop` or `native`.
        batch_size: Images encoded at once.

    Raises:
        ImagetokError: The tokenizer is continuous, or an entry cannot be used.
    """
    by_file = bool(rows.files)
    limited = math.inf if choice.limit is None else choice.limit
    taken = None if rows.num_rows is None else min(rows.num_rows, limited)
    values = {
        "tokenizer": _tokenizer_source(tokenizer).to_dict(),
        "input": InputSource(
            name=choice.display_name,
            subset=choice.subset,
            revision=rows.revision,
            split=choice.split,
            image_column=rows.image_column,
            fingerprint=rows.fingerprint,
            streaming=by_file,
            num_rows=rows.num_rows,
            limit=choice.limit,
        ).to_dict(),
        "units": Units(
            rows_per_shard=choice.rows_per_shard,
            count=None if taken is None else rows.num_units,
            files=tuple(
                InputFile(name=file, size=size)
                for file, size in zip(rows.files, rows.sizes, strict=True)
            ),
        ).to_dict(),
        "output": {"resize": resize, "keep": list(rows.kept)},
        "features": rows.kept.to_dict(),
        "numerics": _numerics(tokenizer, batch_size).to_dict(),
    }
    return Job.from_dict(values)


def _tokenizer_source(tokenizer: ImageTokenizer) -> TokenizerSource:
    name, revision = "unsaved", tokenizer.revision
    if tokenizer.origin is not None:
        # The path of a folder tells something about the machine, its name does not.
        name = tokenizer.origin.name if revision else tokenizer.origin.folder.resolve().name
    return TokenizerSource(
        name=name,
        revision=revision,
        fingerprint=tokenizer.fingerprint,
        codebook_size=tokenizer.codebook_size,
        grid_size=tokenizer.grid_size,
        image_size=tokenizer.image_size,
    )


def _numerics(tokenizer: ImageTokenizer, batch_size: int) -> Numerics:
    on_cpu = tokenizer.device.type == "cpu"
    return Numerics(
        device=tokenizer.device.type,
        dtype=str(tokenizer.dtype).removeprefix("torch."),
        batch_size=batch_size,
        # The host's threads decide nothing where another device computes.
        threads=torch.get_num_threads() if on_cpu else 1,
        search="torch",
        image_decoder="pillow",
        versions=Versions(
            imagetok=__version__,
            torch=str(torch.__version__),
            numpy=np.__version__,
            pillow=PIL.__version__,
            pyarrow=pa.__version__,
        ),
    )
