"""`tokenize_dataset`: from a dataset to shards of token ids, each row exactly once.

    JobInput --units--> JobFolder.claim --> tokenize_rows --> UnitWriter   (each rank on its own)
                                     all units there --> finalize --> Manifest

Ranks take units by number and do not communicate. One that has none left helps the others, or waits
for them. However a process ends, it leaves whole shards or none, and the same command goes on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from imagetok.codesearch import use_backend
from imagetok.data.unreadable_rows import allowed_rows
from imagetok.errors import JobStopped, TokenizingError
from imagetok.launch import RankInfo, StopSignals, find_rank_info, watch_launcher
from imagetok.shards.job_folder import JobFolder
from imagetok.shards.manifest import Manifest, finalize
from imagetok.shards.shard_schema import ShardSchema
from imagetok.tokenize_config import TokenizeConfig
from imagetok.tokenizer import ImageTokenizer
from imagetok.tokenizing.batch_encoder import BatchEncoder
from imagetok.tokenizing.chunk_loader import ChunkLoader
from imagetok.tokenizing.image_preparation import Preparation
from imagetok.tokenizing.job_input import JobInput, open_input
from imagetok.tokenizing.job_progress import JobProgress
from imagetok.tokenizing.job_setup import (
    begun_search,
    describe_job,
    load_tokenizer,
    native_factors,
    torch_threads,
)
from imagetok.tokenizing.narrow_dtype import count_changed_ids
from imagetok.tokenizing.unit_runner import tokenize_rows

MAX_THREADS = 16
"""Most loading threads; with more of them they only wait for each other."""

_PATIENCE = 0.5
"""Seconds between looks at units that other processes are working on."""


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
    compile: bool = False,
    limit: int | None = None,
    resize: str = "crop",
    max_pixels: int | None = None,
    streaming: bool = False,
    max_error_rate: float = 0.01,
    rank: int | None = None,
    world_size: int | None = None,
    allow_mixed_numerics: bool = False,
    progress: bool = True,
    **reading: Any,
) -> Manifest:
    """Tokenize a dataset, together with the other processes of the job.

    The same call goes on with a job that was interrupted, and recognizes one that is done. A
    process that has nothing left to do waits for the others, and takes over what they leave behind.

    Args:
        tokenizer: A discrete tokenizer, or the folder or Hub repository of a saved one.
        dataset: A name or folder that `imagetok.data.open_images` takes.
        output_dir: Folder to fill; new, empty, or of the same job.
        tokenizer_revision: Commit, branch or tag of a tokenizer on the Hub. The job records the
            commit and does not go on with another one.
        subset: Configuration name, where a dataset has several.
        revision: Commit, branch or tag of a dataset on the Hub.
        split: A split, a slice or a sum of these; if streamed, the name of a split.
        image_column: Column of the images; None finds the only one with an Image feature.
        keep: Columns to carry along as they are.
        rows_per_shard: Rows of a shard.
        batch_size: Images encoded at once; the last batch of a shard is padded.
        workers: Processes that decode images; 0 takes threads of this process.
        threads: Threads of the encoder on a CPU; None leaves torch's setting.
        device: Where a tokenizer that is given by name computes; `auto` takes the process's own
            GPU, where there is one.
        dtype: Type that its networks compute in: float32, bfloat16 or float16.
        compile: Compile the encoder first, which takes some seconds and makes it faster; the job
            records it. Images have one size, so that `resize` is `crop`.
        limit: Most rows to take, counted from the first.
        resize: `crop` brings images to the tokenizer's size; `native` keeps each one's own, with
            the sides rounded down to the factor by a centre crop.
        max_pixels: Most pixels of an image; a row with more is refused. None takes the tokenizer's
            own limit, which is 50 million unless it was loaded with another one.
        streaming: Read files in sequence instead of row by row.
        max_error_rate: Largest share of rows, in [0, 1], that may be refused.
        rank: Number of this process among those of the job; None asks the launcher's environment.
        world_size: Number of processes; None asks the launcher's environment.
        allow_mixed_numerics: Go on with a job that was begun under other numeric settings.
        progress: Show a bar on rank 0.
        reading: As in `open_images`.

    Returns:
        The manifest, once all processes have done their part.

    Raises:
        NotDiscreteError: The tokenizer is continuous.
        InvalidTypeError, InvalidValueError: An argument cannot be used.
        DataError: The input or a column cannot be used, or the folder belongs to another job.
        TokenizingError: Too many rows were refused, the input changed meanwhile, or loading failed.
        UnwritableFileError: The disk is full, or the folder cannot be written.
        JobStopped: SIGTERM, SIGINT or SIGUSR1 came.
    """
    loaded = tokenizer if isinstance(tokenizer, ImageTokenizer) else None
    config = TokenizeConfig.from_options(
        dataset,
        **({} if loaded is not None else {"tokenizer": tokenizer}),
        tokenizer_revision=tokenizer_revision,
        subset=subset,
        revision=revision,
        split=split,
        image_column=image_column,
        keep=keep,
        rows_per_shard=rows_per_shard,
        batch_size=batch_size,
        workers=workers,
        threads=threads,
        device=device,
        dtype=dtype,
        compile=compile,
        limit=limit,
        resize=resize,
        max_pixels=max_pixels,
        streaming=streaming,
        max_error_rate=max_error_rate,
        allow_mixed_numerics=allow_mixed_numerics,
        progress=progress,
        **reading,
    )
    return run_job(config, output_dir, find_rank_info(rank, world_size), loaded)


def run_job(
    config: TokenizeConfig,
    output_dir: str | os.PathLike[str],
    ranks: RankInfo,
    tokenizer: ImageTokenizer | None = None,
) -> Manifest:
    """Do a process's part of a job, and wait for the others.

    Args:
        config: The job.
        output_dir: Folder to fill; new, empty, or of the same job.
        ranks: Which of the job's processes this one is.
        tokenizer: A tokenizer that is loaded already; None loads the one that `config` names.

    Returns:
        The manifest; errors as in `tokenize_dataset`.
    """
    with torch_threads(config.threads):
        model = load_tokenizer(config, ranks, tokenizer)
        factors = native_factors(model) if config.resize == "native" else None
        signals = StopSignals()
        with watch_launcher(signals):
            rows = open_input(
                config.dataset,
                keep=config.keep,
                limit=config.limit,
                rows_per_unit=config.rows_per_shard,
            )
            with use_backend(begun_search(output_dir)):
                job = describe_job(config, model, rows)
            preprocessor = replace(model.preprocessor, max_pixels=job.output.max_pixels)
            process = _Process(
                config,
                ranks,
                rows,
                job.schema,
                BatchEncoder(model, config.batch_size, job.numerics.search),
                Preparation(preprocessor, factors, rows.root),
            )
            mixed = config.process.allow_mixed_numerics
            # Until here there is nothing to leave in order, so that signals end the process.
            with signals, JobFolder.open(output_dir, job, mixed) as folder:
                is_left = next(folder.missing_units(), None) is not None
                figures = process.work(folder, signals) if is_left else None
                return process.finish(folder, figures)


@dataclass(frozen=True)
class _Process:
    """What one process works on a job with.

    Attributes:
        config: The job.
        ranks: Which of the job's processes this one is.
        rows: The input.
        schema: Columns of the shards.
        encoder: Makes the ids.
        preparation: Makes the pixels.
    """

    config: TokenizeConfig
    ranks: RankInfo
    rows: JobInput
    schema: ShardSchema
    encoder: BatchEncoder
    preparation: Preparation

    def work(self, folder: JobFolder, signals: StopSignals) -> dict[str, Any]:
        """Do units until none is left.

        Returns:
            The figures of this process, for the manifest.

        Raises:
            JobStopped: A signal came.
        """
        done = 0

        def poll() -> None:
            if signals.pending is not None:
                raise JobStopped(signals.pending, done)

        rank, world_size, settings = self.ranks.rank, self.ranks.world_size, self.config.process
        own = [unit for unit in folder.missing_units(rank, world_size) if unit % world_size == rank]
        threads = min(MAX_THREADS, len(os.sched_getaffinity(0)))
        with (
            ChunkLoader(
                self.preparation, settings.workers, threads, self.encoder.batch_size, poll
            ) as loader,
            JobProgress(folder.job, own, loader, settings.progress and rank == 0) as progress,
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

    def finish(self, folder: JobFolder, figures: dict[str, Any] | None) -> Manifest:
        """Write the manifest of a job whose units are all there.

        Args:
            folder: The job's folder.
            figures: What this process did; None if nothing was left to do.

        Raises:
            TokenizingError: The input changed, or too many rows were refused.
        """
        rows, job = self.rows, folder.job
        if figures is not None and rows.fingerprint_now() != rows.fingerprint:
            raise TokenizingError(
                f"'{rows.name}' changed while it was read, so that shards may hold rows of both "
                "states; leave it alone and tokenize it into a new folder"
            )
        count = partial(count_changed_ids, job, rows, self.preparation, self.encoder)
        manifest = finalize(folder.folder, figures, count)
        check_totals(manifest, folder.folder, job.input.name, self.config.process.max_error_rate)
        return manifest


def _units(
    folder: JobFolder, rank: int, world_size: int, poll: Callable[[], None]
) -> Iterator[int]:
    """Units to try, until all are done.

    One that another process works on is tried again, because that process may end before it is
    done.
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


def check_totals(manifest: Manifest, folder: Path, name: str, max_error_rate: float) -> None:
    """Refuse a finished job whose rows were refused too often.

    Args:
        manifest: The job's manifest.
        folder: The job's folder.
        name: What messages call the input.
        max_error_rate: Largest share of rows, in [0, 1], that may be refused.

    Raises:
        TokenizingError: The input has no rows, none could be read, or too many were refused.
    """
    totals = manifest.totals
    if not totals.rows_in:
        raise TokenizingError(f"'{name}' has no rows")
    allowed = allowed_rows(max_error_rate, totals.rows_in, all_seen=True)
    if totals.refused > allowed or not totals.rows:
        raise TokenizingError(
            f"{totals.refused} of {totals.rows_in} rows were refused, more than the share of "
            f"{max_error_rate:g} that may be (--max-error-rate); the reasons stand in "
            f"'{folder / 'errors'}'"
        )
