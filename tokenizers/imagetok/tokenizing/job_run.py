"""`tokenize_dataset`: a dataset to shards of token ids, exactly once a row.

    JobInput --units--> JobFolder.claim --> tokenize_rows --> UnitWriter   (each rank on its own)
                                      all units there --> finalize --> Manifest

Ranks take units by number and never talk; who has none left helps the others, or waits. A process
that ends in whatever way leaves whole shards or none, and the same command goes on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagetok.errors import JobStopped, TokenizingError
from imagetok.shards.folder import JobFolder
from imagetok.shards.manifest import Manifest, finalize
from imagetok.shards.schema import ShardSchema
from imagetok.tokenizer import ImageTokenizer
from imagetok.tokenizing.batch_encoder import Encoder
from imagetok.tokenizing.image_preparation import Preparation
from imagetok.tokenizing.job_input import InputChoice, JobInput, open_input
from imagetok.tokenizing.job_progress import JobProgress
from imagetok.tokenizing.job_setup import (
    check_arguments,
    describe_job,
    load_tokenizer,
    native_factors,
    torch_threads,
)
from imagetok.tokenizing.loading import Loader
from imagetok.tokenizing.ranks import Share, find_share
from imagetok.tokenizing.unit_runner import tokenize_rows
from imagetok.training.signals import StopSignals, watch_launcher

MAX_THREADS = 16
"""Most loading threads; more wait for each other."""

_PATIENCE = 0.5
"""Seconds between looks at units that other processes are at work on."""


def tokenize_dataset(
    tokenizer: ImageTokenizer | str | os.PathLike[str],
    dataset: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    tokenizer_revision: str | None = None,
    subset: str | None = None,
    revision: str | None = None,
    split: str = "train",
    image_column: str | None = None,
    keep: Sequence[str] = (),
    rows_per_shard: int = 16384,
    batch_size: int = 32,
    workers: int = 0,
    threads: int | None = None,
    device: str = "auto",
    dtype: str = "float32",
    limit: int | None = None,
    resize: str = "crop",
    streaming: bool = False,
    max_error_rate: float = 0.01,
    rank: int | None = None,
    world_size: int | None = None,
    allow_mixed_numerics: bool = False,
    progress: bool = True,
) -> Manifest:
    """Tokenize a dataset, together with the other processes of the job.

    The same call goes on with a job that was interrupted, and finds one that is done. A process
    that has nothing left to do waits for the others, and takes over what they leave behind.

    Args:
        tokenizer: A discrete one, or the folder or Hub repository of a saved one.
        dataset: As `imagetok.data.open_images` takes it.
        output_dir: Folder to fill; new, empty, or of the same job.
        tokenizer_revision: Commit, branch or tag of a tokenizer on the Hub. The job records the
            commit, and goes on with no other.
        subset: Configuration name of a dataset that has several.
        revision: Commit, branch or tag of a dataset on the Hub.
        split: A split, a slice or a sum of these; of a streamed dataset a split.
        image_column: Column of the pictures; None finds the only one with an Image feature.
        keep: Columns to carry along, as they are.
        rows_per_shard: Rows of a shard.
        batch_size: Pictures encoded at once; the last batch of a shard is filled up.
        workers: Processes that decode pictures; 0 takes threads of this process.
        threads: Of the encoder on a CPU; None leaves them as they are.
        device: Where a tokenizer that is named by its folder computes: `auto` takes the process's
            own GPU, where there is one.
        dtype: Its networks' dtype: float32, bfloat16 or float16.
        limit: Most rows that are taken, from the first on.
        resize: `crop` brings pictures to the tokenizer's size; `native` keeps each one's own, sides
            rounded down to the factor by a centre crop.
        streaming: Read files in sequence instead of row by row.
        max_error_rate: Largest share of rows that may be refused.
        rank: This process's place among those of the job; None asks the launcher's environment.
        world_size: Number of processes; likewise.
        allow_mixed_numerics: Go on with a job that was begun under other numeric settings.
        progress: Show a bar on rank 0.

    Returns:
        The manifest, once all processes have done their part.

    Raises:
        NotDiscreteError: The tokenizer is continuous.
        InvalidTypeError, InvalidValueError: An argument cannot be used.
        DataError: The input or a column cannot be used, or the folder is of another job.
        TokenizingError: Too many rows were refused, the input changed meanwhile, or loading failed.
        UnwritableFileError: The disk is full, or the like.
        JobStopped: SIGTERM, SIGINT or SIGUSR1 came.
    """
    check_arguments(batch_size, workers, threads, limit, rows_per_shard, max_error_rate, resize)
    share = find_share(rank, world_size)
    with torch_threads(threads):
        model = load_tokenizer(tokenizer, tokenizer_revision, device, dtype, share)
        factors = native_factors(model) if resize == "native" else None
        choice = InputChoice(
            os.fspath(dataset),
            subset,
            revision,
            split,
            image_column,
            tuple(keep),
            limit,
            rows_per_shard,
            streaming,
        )
        signals = StopSignals()
        with watch_launcher(signals):
            rows = open_input(choice)
            job = describe_job(model, rows, choice, resize=resize, batch_size=batch_size)
            work = _Work(
                rows,
                job.schema,
                Encoder(model, batch_size),
                Preparation(model.preprocessor, factors, rows.root),
                workers,
                share,
                progress and share.rank == 0,
            )
            # Until here there is nothing to leave in order: signals end the process.
            with signals, JobFolder.open(output_dir, job, allow_mixed_numerics) as folder:
                figures = work.run(folder, signals) if _is_left(folder) else None
                return _finish(folder, rows, figures, max_error_rate)


@dataclass(frozen=True)
class _Work:
    """One process's work on a job."""

    rows: JobInput
    schema: ShardSchema
    encoder: Encoder
    preparation: Preparation
    workers: int
    share: Share
    show: bool

    def run(self, folder: JobFolder, signals: StopSignals) -> dict[str, Any]:
        """Do units until none is left; gives the figures of the process."""
        done = 0

        def poll() -> None:
            if signals.pending is not None:
                raise JobStopped(signals.pending, done)

        rank, world_size = self.share.rank, self.share.world_size
        own = [unit for unit in folder.missing_units(rank, world_size) if unit % world_size == rank]
        threads = min(MAX_THREADS, len(os.sched_getaffinity(0)))
        with (
            Loader(
                self.preparation, self.workers, threads, self.encoder.batch_size, poll
            ) as loader,
            JobProgress(folder.job, own, loader, self.show) as progress,
        ):
            for unit in _units(folder, rank, world_size, poll):
                with folder.claim(unit) as writer:
                    if writer is None:
                        continue
                    progress.begin(unit)
                    file = self.rows.files[unit] if self.rows.files else None
                    loaded = loader.load(self.rows.read(unit))
                    tokenize_rows(loaded, self.encoder, self.schema, file, writer, progress)
                done += 1
                progress.end(unit)
            return {**progress.figures(), "units": done}


def _is_left(folder: JobFolder) -> bool:
    return next(folder.missing_units(), None) is not None


def _units(
    folder: JobFolder, rank: int, world_size: int, poll: Callable[[], None]
) -> Iterator[int]:
    """Units to try, until all are done.

    One that another process is at work on is tried again: that process may end before it is done.
    """
    left = []
    for unit in folder.missing_units(rank, world_size):
        poll()
        yield unit
        left.append(unit)
    while left := [unit for unit in left if not folder.is_complete(unit)]:
        for unit in left:
            poll()
            yield unit
        time.sleep(_PATIENCE)


def _finish(
    folder: JobFolder,
    rows: JobInput,
    figures: dict[str, Any] | None,
    max_error_rate: float,
) -> Manifest:
    """Write the manifest of a job whose units are all there; `figures` are None if they were."""
    if figures is not None and rows.fingerprint_now() != rows.fingerprint:
        raise TokenizingError(
            f"'{rows.name}' changed while it was read, so that shards may hold rows of both "
            "states; leave it alone and tokenize it into a new folder"
        )
    manifest = finalize(folder.folder, figures)
    check_totals(manifest, folder.folder, folder.job.input.name, max_error_rate)
    return manifest


def check_totals(manifest: Manifest, folder: Path, name: str, max_error_rate: float) -> None:
    """Refuse a finished job whose rows were refused too often.

    Raises:
        TokenizingError: No row was read, or too large a share of them was refused.
    """
    totals = manifest.totals
    if not totals.rows_in:
        raise TokenizingError(f"'{name}' has no rows")
    if totals.refused > max_error_rate * totals.rows_in or not totals.rows:
        raise TokenizingError(
            f"{totals.refused} of {totals.rows_in} rows were refused, more than the share of "
            f"{max_error_rate:g} that may be (--max-error-rate); the reasons stand in "
            f"'{folder / 'errors'}'"
        )
