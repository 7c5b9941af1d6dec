"""What a narrow dtype changes: ids of a job's first images, against those of float32."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import chain, groupby, islice

import numpy as np
from numpy.typing import NDArray

from imagetok.errors import ImagetokError
from imagetok.shards.job import Job
from imagetok.shards.shard_scan import ChangedIds
from imagetok.tokenizer import ImageTokenizer
from imagetok.tokenizing.batch_encoder import BatchEncoder
from imagetok.tokenizing.image_preparation import Preparation, Prepared
from imagetok.tokenizing.job_input import JobInput

logger = logging.getLogger(__name__)

SAMPLE_ROWS = 32
"""Images that are compared: the first of the job that can be read."""


def count_changed_ids(
    job: Job, rows: JobInput, prepare: Preparation, encoder: BatchEncoder
) -> ChangedIds | None:
    """Encode a job's first images in its dtype and in float32.

    Args:
        job: The job.
        rows: Its input.
        prepare: Makes the pixels.
        encoder: The encoder that the job was done with.

    Returns:
        How many ids differ; None where the job computes in float32, or this process in another
        dtype than the job, or no image can be read, or the float32 weights cannot be had, of which
        the last is logged.
    """
    dtype = str(encoder.tokenizer.dtype).removeprefix("torch.")
    if dtype == "float32" or dtype != job.numerics.dtype:
        return None
    exact = _in_float32(encoder.tokenizer, job.tokenizer.fingerprint)
    if exact is None:
        return None
    images = list(islice(_images(job, rows, prepare, encoder), SAMPLE_ROWS))
    reference = BatchEncoder(exact, encoder.batch_size, encoder.search)
    changed = total = 0
    for batch in _batches(images, encoder):
        expected, found = reference(batch), encoder(batch)
        changed, total = changed + int((expected != found).sum()), total + found.size
    if not total:
        return None
    return ChangedIds(dtype=dtype, rows=len(images), ids=total, changed=changed)


def _in_float32(tokenizer: ImageTokenizer, fingerprint: str) -> ImageTokenizer | None:
    """The tokenizer as its files have it."""
    if tokenizer.origin is None:
        reason = "it was not loaded from files"
    else:
        try:
            exact = ImageTokenizer.from_pretrained(
                tokenizer.origin.folder, device=str(tokenizer.device)
            )
            if exact.take_fingerprint() == fingerprint:
                return exact
            reason = "its files have changed"
        except ImagetokError as error:
            reason = str(error)
    logger.warning(
        "warning: how many ids %s changes is not measured, as the tokenizer cannot be had in "
        "float32: %s",
        tokenizer.dtype,
        reason,
    )
    return None


def _images(
    job: Job, rows: JobInput, prepare: Preparation, encoder: BatchEncoder
) -> Iterator[NDArray[np.uint8]]:
    """The pixels of all images that can be read, in the order of the job."""
    for chunk in chain.from_iterable(map(rows.read, range(job.num_units))):
        for outcome in prepare(chunk.images):
            if isinstance(outcome, Prepared) and not encoder.is_large(outcome.pixels.shape[1:]):
                yield outcome.pixels


def _batches(
    images: Sequence[NDArray[np.uint8]], encoder: BatchEncoder
) -> Iterator[list[NDArray[np.uint8]]]:
    """The images by shape, as many at once as a batch holds."""
    by_shape = sorted(images, key=lambda image: image.shape)
    for shape, same in groupby(by_shape, key=lambda image: image.shape):
        while batch := list(islice(same, encoder.batch_size_of((shape[1], shape[2])))):
            yield batch
