"""What `tokenize_dataset` does before any work: arguments, the tokenizer, threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from imagetok.arguments import read_count
from imagetok.errors import InvalidValueError
from imagetok.networks import MlpEncoder
from imagetok.tokenizer import ImageTokenizer
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
        InvalidTypeError: A number is none.
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
    """Let torch compute with this many threads for a while."""
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
    """The tokenizer, loaded where it is named.

    Raises:
        NotDiscreteError: It is continuous.
        InvalidValueError: A revision is given for one that is loaded already.
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
    """Pixels (height, width) that a position stands for, where pictures keep their sizes.

    Raises:
        InvalidValueError: The encoder takes pictures of one size only.
    """
    if isinstance(tokenizer.encoder, MlpEncoder):
        raise InvalidValueError(
            "resize is native, and this tokenizer takes pictures of "
            f"{tokenizer.image_size} only; choose resize crop"
        )
    factor = tokenizer.downsample_factor
    return factor, factor
