"""What a run says about itself: records, trackers, sample grids, warnings and the progress bar.

    losses.jsonl      the losses of every step; the same bytes in equal runs
    metrics.jsonl     figures once in a while, times included
    samples/          grids of images above their reconstructions

Both records are append-only files of one JSON object per line, each with a `step`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from PIL import Image
from tqdm.auto import tqdm

from imagetok.data import Feed, ImageRows
from imagetok.errors import UnreadableFileError
from imagetok.evaluation import Evaluation, evaluate, reconstruction_grid
from imagetok.files import naming_os_errors, write_atomic
from imagetok.images.rendering import save_image
from imagetok.launch import collectives
from imagetok.metrics import usage_figures
from imagetok.run_config import RunConfig
from imagetok.tokenizer import ImageTokenizer
from imagetok.training.run_folder import SAMPLES
from imagetok.training.step import StepTotals
from imagetok.training.trackers import Trackers

MAX_WARNINGS = 20
"""Most unreadable rows that are shown; all of them are recorded."""

logger = logging.getLogger(__name__)


class Reporter:
    """Writes what is measured. Every rank has one, and that of the main process writes.

    Args:
        config: The run.
        folder: The run's folder.
        evaluation_rows: The images that are validated on and drawn.
        start_step: First step; records of it and of later ones are dropped.
        progress: Show bars on the main process.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        evaluation_rows: ImageRows,
        start_step: int,
        progress: bool,
    ) -> None:
        self._settings, self._folder, self._rows = config.train, folder, evaluation_rows
        self._writes = collectives.rank() == 0
        self._num_warned, self._max_error_rate = 0, config.data.max_error_rate
        self._progress = progress and self._writes
        self._losses = Records(folder / "losses.jsonl", start_step, self._writes)
        self._metrics = Records(folder / "metrics.jsonl", start_step, self._writes)
        self._trackers = Trackers(config, folder, start_step)
        self._bar = tqdm(
            total=config.train.steps,
            initial=start_step,
            desc="train",
            unit="step",
            disable=not self._progress,
        )

    def write_losses(self, step: int, totals: StepTotals) -> None:
        """Append one line to `losses.jsonl`."""
        self._losses.write(step, totals.losses())

    def log(self, step: int, totals: StepTotals, figures: Mapping[str, float]) -> None:
        """Append one line to `metrics.jsonl`, and renew the trackers and the bar.

        Args:
            step: The step that was taken.
            totals: Its losses and metrics.
            figures: Whatever else there is to say about it.
        """
        codes = usage_figures(totals.statistics.sums if totals.statistics is not None else {})
        self._write_metrics(step, {**totals.means, **figures, **codes})
        used = f", codes used {codes['codebook/usage']:.0%}" if codes else ""
        self._bar.set_postfix_str(
            f"loss {totals.means['loss']:.4f}, PSNR {totals.means['psnr']:.2f} dB{used}, "
            f"{figures['time/images_per_second']:.0f} images/s",
            refresh=False,
        )
        self._bar.update(step + 1 - self._bar.n)
        self.flush()

    def validate(
        self,
        group: str,
        tokenizer: ImageTokenizer,
        done: int,
        limit: int | None,
        poll: Callable[[], None],
    ) -> Evaluation:
        """Measure on the evaluation split, on all ranks together.

        Args:
            group: What the figures are called, `validation` or `evaluation`.
            tokenizer: What is measured.
            done: Number of steps done.
            limit: Largest number of images; None takes all.
            poll: Called between batches, as described at `imagetok.evaluation.evaluate`.
        """
        figures = evaluate(
            tokenizer,
            self._rows,
            limit=limit,
            progress=self._progress,
            poll=poll,
            max_error_rate=self._max_error_rate,
        )
        numbers = {k: v for k, v in figures.items() if isinstance(v, float | int)}
        self._write_metrics(done - 1, {f"{group}/{key}": value for key, value in numbers.items()})
        if self._writes:
            self._warn_of_unused_codes(tokenizer, figures, done)
        return figures

    def draw_samples(self, tokenizer: ImageTokenizer, done: int) -> None:
        """Save what `draw` shows as a PNG, and hand it to the trackers."""
        if self._writes:
            grid = self.draw(tokenizer)
            save_image(grid, self._folder / SAMPLES / f"step-{done:08d}.png")
            self._trackers.log_image("reconstructions", grid, done - 1)

    def draw(self, tokenizer: ImageTokenizer) -> Image.Image:
        """The same fixed images above their reconstructions."""
        return reconstruction_grid(tokenizer, self._rows)

    def note_ignored_profiles(self, step: int, count: int) -> None:
        """Record in `metrics.jsonl` how many images had a profile that could not be applied."""
        self._metrics.write(step, {"data/profiles_ignored": count})

    def note_unreadable(self, step: int, messages: Sequence[str]) -> None:
        """Name unreadable rows: all of them in `metrics.jsonl`, the first ones as warnings."""
        self._metrics.write(step, {"data/unreadable": list(messages)})
        for message in messages:
            self._num_warned += 1
            if self._writes and self._num_warned <= MAX_WARNINGS:
                logger.warning("warning: %s; another row takes its place", message)
            if self._writes and self._num_warned == MAX_WARNINGS:
                logger.warning("warning: further unreadable rows are named in metrics.jsonl only")

    def flush(self) -> None:
        """Hand the records to the operating system."""
        self._losses.flush()
        self._metrics.flush()

    def sync(self) -> None:
        """Wait until the flushed records are on disk; may be called from any thread."""
        self._losses.sync()
        self._metrics.sync()

    def close(self) -> None:
        """Close records, trackers and bar."""
        self._bar.close()
        self._losses.close()
        self._metrics.close()
        self._trackers.close()

    def _warn_of_unused_codes(
        self, tokenizer: ImageTokenizer, figures: Evaluation, done: int
    ) -> None:
        threshold = self._settings.usage_warning
        shares = [v for k, v in figures.items() if k.split("/")[0] == "codebook_usage"]
        share = min((each for each in shares if each is not None), default=1.0)
        if share >= threshold:  # the least of several levels: a single one may collapse
            return
        size, images = tokenizer.codebook_size, figures["num_images"]
        positions = images * tokenizer.num_tokens // tokenizer.depth
        # Codes drawn evenly at so many positions are this share of the codebook on average.
        expected = 1 - math.exp(-positions / size)
        reason = "the codebook is collapsing or larger than the data needs"
        if expected < threshold:
            reason = (
                f"{positions} positions show {expected:.1%} of it at best, so this says little; "
                "validate on more images (train.evaluation_images)"
            )
        logger.warning(
            "warning: codebook usage is %.1f %% of %d codes over %d validation images after "
            "step %d, under the threshold of %.0f %% (train.usage_warning): %s",
            100 * share,
            size,
            images,
            done,
            100 * threshold,
            reason,
        )

    def _write_metrics(self, step: int, figures: Mapping[str, float]) -> None:
        self._metrics.write(step, figures)
        self._trackers.log(figures, step)


class Records:
    """A file of one JSON object per line, each with a `step`.

    Every method raises an UnwritableFileError where the file cannot be written.

    Args:
        path: The file; it is made where it is missing.
        next_step: Lines of this step and later ones are dropped, as a resumed run writes them anew.
        write: Whether this rank writes; False on all ranks except one.

    Raises:
        UnreadableFileError: One of its lines is damaged.
    """

    def __init__(self, path: Path, next_step: int, write: bool = True) -> None:
        self._path = path
        self._file: TextIO | None = None
        if not write:
            return
        with naming_os_errors("write", path):
            before = path.read_bytes() if path.exists() else b""
            write_atomic(path, _lines_before(before, next_step, path))
            self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float | list[str]]) -> None:
        """Append one line; a number that is not finite, which JSON lacks, becomes null."""
        if self._file is None:
            return
        known = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        with naming_os_errors("write", self._path):
            self._file.write(json.dumps({"step": step, **known}, allow_nan=False) + "\n")

    def flush(self) -> None:
        """Hand what was written to the operating system."""
        if self._file is not None:
            with naming_os_errors("write", self._path):
                self._file.flush()

    def sync(self) -> None:
        """Wait until what was flushed is on disk; may be called from any thread."""
        if self._file is not None:
            with naming_os_errors("write", self._path):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close the file; closing it twice is harmless."""
        if self._file is not None:
            with naming_os_errors("write", self._path):
                self._file.close()


def _lines_before(content: bytes, next_step: int, path: Path) -> bytes:
    """The lines of steps before `next_step`; a line that a kill cut short lacks its end."""
    kept = []
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            raise UnreadableFileError(
                f"line {number} of '{path}' is not a record of a step; move the file away"
            ) from None
        if step >= next_step:
            break
        kept.append(line)
    return b"".join(kept)


class Clock:
    """Measures the speed of the steps, and the share of their time spent waiting for data."""

    def __init__(self, feed: Feed, done: int) -> None:
        self._feed, self._done = feed, done
        self._seconds = self._started = 0.0
        self._waited = feed.waited

    def start(self) -> None:
        """Begin a step."""
        self._started = time.perf_counter()

    def stop(self) -> None:
        """End a step; what comes before the next one does not count."""
        self._seconds += time.perf_counter() - self._started

    def read(self, done: int, batch_size: int) -> dict[str, float]:
        """Return the figures since the last reading."""
        seconds = max(self._seconds, 1e-9)
        figures = {
            "time/images_per_second": (done - self._done) * batch_size / seconds,
            "time/data_share": (self._feed.waited - self._waited) / seconds,
        }
        self._done, self._seconds, self._waited = done, 0.0, self._feed.waited
        return figures
