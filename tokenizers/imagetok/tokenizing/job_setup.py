"""What a job needs before any work: its tokenizer, its threads and its entry in `job.json`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np
import PIL
import pyarrow as pa
import torch

from imagetok._version import __version__
from imagetok.codesearch import TORCH, backend_in_environment, search_backend
from imagetok.display_names import run_name
from imagetok.errors import InvalidValueError, NotDiscreteError
from imagetok.images import color_library
from imagetok.launch import RankInfo, find_device
from imagetok.networks import Encoder
from imagetok.shards.job import (
    JOB_FILE,
    InputFile,
    InputSource,
    Job,
    Numerics,
    Output,
    TokenizerSource,
    Units,
    Versions,
    read_job,
)
from imagetok.tokenize_config import TokenizeConfig
from imagetok.tokenizer import ImageTokenizer
from imagetok.tokenizing.job_input import JobInput


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
    config: TokenizeConfig, ranks: RankInfo, tokenizer: ImageTokenizer | None
) -> ImageTokenizer:
    """The tokenizer of a job, which is loaded here unless it is handed over.

    Args:
        config: The job.
        ranks: Which of the job's processes this one is.
        tokenizer: A tokenizer that is loaded already.

    Raises:
        NotDiscreteError: The tokenizer is continuous.
        CompilationError: It is to be compiled, and there is no compiler.
        InvalidValueError: No tokenizer is given, or a revision for one that is loaded already.
    """
    if tokenizer is None:
        if config.tokenizer is None:
            raise InvalidValueError("there is no tokenizer; name one, or hand over a loaded one")
        tokenizer = ImageTokenizer.from_pretrained(
            config.tokenizer,
            revision=config.tokenizer_revision,
            device=find_device(config.device, ranks),
            dtype=config.dtype,
        )
    elif config.tokenizer_revision is not None:
        raise InvalidValueError(
            f"tokenizer_revision is {config.tokenizer_revision!r}, but the tokenizer is loaded "
            "already; load it at that revision"
        )
    if not tokenizer.is_discrete:
        raise NotDiscreteError(
            "the tokenizer is continuous and has no ids to write; choose a VQ-VAE or a dVAE"
        )
    return tokenizer.compile(batch_size=config.batch_size) if config.compile else tokenizer


def native_factors(tokenizer: ImageTokenizer) -> tuple[int, int]:
    """Pixels (height, width) that a position stands for, for images that keep their sizes.

    Raises:
        InvalidValueError: The encoder takes images of one size only.
    """
    encoder = cast(Encoder, tokenizer.encoder)
    if encoder.fixed_size:
        raise InvalidValueError(
            "resize is native, and this tokenizer takes images of "
            f"{tokenizer.image_size} only; choose resize crop"
        )
    return encoder.factors


def begun_search(folder: str | os.PathLike[str]) -> str | None:
    """The backend that a job in a folder has to go on with; None where there is a choice.

    A job that torch searched for is not changed by a compiler that has come since, unless the user
    asks for another backend.

    Raises:
        UnreadableFileError: The folder's job.json cannot be read.
    """
    if backend_in_environment() is not None or not Path(folder, JOB_FILE).exists():
        return None
    return TORCH if read_job(folder).numerics.search == TORCH else None


def describe_job(config: TokenizeConfig, tokenizer: ImageTokenizer, rows: JobInput) -> Job:
    """What fixes the bytes of a job, as `job.json` records it.

    Args:
        config: The job.
        tokenizer: A discrete tokenizer on its device and in its dtype.
        rows: The input.

    Raises:
        ImagetokError: The tokenizer is continuous, or an entry cannot be used.
    """
    taken = None if rows.num_rows is None else min(rows.num_rows, config.limit or rows.num_rows)
    values = {
        "tokenizer": _tokenizer_source(tokenizer).to_dict(),
        "input": InputSource(
            name=config.dataset.display_name,
            subset=config.dataset.subset,
            revision=rows.revision,
            split=config.dataset.split,
            image_column=rows.image_column,
            fingerprint=rows.fingerprint,
            streaming=bool(rows.files),
            num_rows=rows.num_rows,
            limit=config.limit,
            **config.dataset.reading(),
        ).to_dict(),
        "units": Units(
            rows_per_shard=config.rows_per_shard,
            count=None if taken is None else rows.num_units,
            files=tuple(
                InputFile(name=file, size=size)
                for file, size in zip(rows.files, rows.sizes, strict=True)
            ),
        ).to_dict(),
        "output": Output(
            resize=config.resize,
            keep=tuple(rows.kept),
            max_pixels=config.max_pixels or tokenizer.max_pixels,
        ).to_dict(),
        "features": rows.kept.to_dict(),
        "numerics": _numerics(tokenizer, config.batch_size).to_dict(),
    }
    return Job.from_dict(values)


def _tokenizer_source(tokenizer: ImageTokenizer) -> TokenizerSource:
    name, revision, run = "unsaved", tokenizer.revision, None
    if tokenizer.origin is not None:
        # The path of a folder says something about the machine, its name does not.
        name = tokenizer.origin.name if revision else tokenizer.origin.folder.resolve().name
        run = None if revision else run_name(tokenizer.origin.folder)
    return TokenizerSource(
        name=name,
        revision=revision,
        fingerprint=tokenizer.take_fingerprint(),
        codebook_size=tokenizer.codebook_size,
        grid_size=tokenizer.grid_size,
        image_size=tokenizer.image_size,
        codebook_sizes=tokenizer.codebook_sizes if tokenizer.depth > 1 else None,
        run=run,
    )


def _numerics(tokenizer: ImageTokenizer, batch_size: int) -> Numerics:
    on_cpu, preprocessor = tokenizer.device.type == "cpu", tokenizer.preprocessor
    return Numerics(
        device=tokenizer.device.type,
        dtype=str(tokenizer.dtype).removeprefix("torch."),
        batch_size=batch_size,
        # The host's threads decide nothing where another device computes.
        threads=torch.get_num_threads() if on_cpu else 1,
        search=search_backend(tokenizer.device),
        image_decoder="pillow",
        versions=Versions(
            imagetok=__version__,
            torch=str(torch.__version__),
            numpy=np.__version__,
            pillow=PIL.__version__,
            pyarrow=pa.__version__,
            littlecms=None if preprocessor.color_profile == "ignore" else color_library(),
        ),
        compiled=tokenizer.is_compiled,
    )
