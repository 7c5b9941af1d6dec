"""The `Job` of a tokenizer and an input: what `job.json` says of them."""

from __future__ import annotations

import math

import numpy as np
import PIL
import pyarrow as pa
import torch

from imagetok._version import __version__
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
from imagetok.tokenizing.inputs import Input
from imagetok.tokenizing.opening import InputChoice


def describe_job(
    tokenizer: ImageTokenizer,
    rows: Input,
    choice: InputChoice,
    *,
    resize: str,
    batch_size: int,
) -> Job:
    """What fixes the bytes of a job.

    Args:
        tokenizer: A discrete one, on its device and in its dtype.
        rows: The input.
        choice: What it was opened by.
        resize: `crop` or `native`.
        batch_size: Pictures encoded at once.

    Raises:
        ImagetokError: The tokenizer is continuous, or an entry cannot be used.
    """
    by_file = bool(rows.files)
    limited = math.inf if choice.limit is None else choice.limit
    taken = None if rows.num_rows is None else min(rows.num_rows, limited)
    values = {
        "tokenizer": _tokenizer_source(tokenizer).to_dict(),
        "input": InputSource(
            name=choice.told_name,
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
        # The path of a folder says something of the machine, its name does not.
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
        # Those of the host decide nothing where another device computes.
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
