"""What a run says of itself: records, trackers, pictures, warnings and the progress bar."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from accelerate import Accelerator
from tqdm.auto import tqdm

from imagetok.data import ImageRows
from imagetok.evaluation import Evaluation, evaluate, reconstruction_grid
from imagetok.metrics import perplexity, usage
from imagetok.outputs import is_counts
from imagetok.run_config import RunConfig
from imagetok.tokenizer import ImageTokenizer
from imagetok.training.folder import SAMPLES, save_picture
from imagetok.training.records import Records
from imagetok.training.totals import StepTotals
from imagetok.training.trackers import Trackers

MAX_WARNINGS = 20
"""Unreadable rows that are shown; all of them are recorded."""

logger = logging.getLogger(__name__)


class Reporter:
    """Writes what is measured; on all ranks, where only the main one writes.

    Args:
        config: The run.
        accelerator: The run's processes.
        folder: The run's folder.
        evaluation_rows: What is validated on and drawn.
        start_step: First step; records of it and later ones are dropped.
        progress: Show bars on the main process.
    """

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        folder: Path,
        evaluation_rows: ImageRows,
        start_step: int,
        progress: bool,
    ) -> None:
        self._settings, self._folder, self._rows = config.train, folder, evaluation_rows
        self._writes = accelerator.is_main_process
        self._num_warned, self._max_error_rate = 0, config.data.max_error_rate
        self._progress = progress and self._writes
        self._losses = Records(folder / "losses.jsonl", start_step, self._writes)
        self._metrics = Records(folder / "metrics.jsonl", start_step, self._writes)
        self._trackers = Trackers(accelerator, config, folder, start_step)
        self._bar = tqdm(
            total=config.train.steps,
            initial=start_step,
            desc="train",
            unit="step",
            disable=not self._progress,
        )

    def write_losses(self, step: int, totals: StepTotals) -> None:
        """One line of `losses.jsonl`: the same bytes in equal runs."""
        self._losses.write(step, totals.losses())

    def log(self, step: int, totals: StepTotals, figures: Mapping[str, float]) -> None:
        """One line of `metrics.jsonl`, the trackers' share, and the bar's figures.

        Args:
            step: The step that was made.
            totals: Its losses and metrics.
            figures: What else there is to say of it.
        """
        figures = {**totals.means, **figures}
        text = f"loss {totals.means['loss']:.4f}, PSNR {totals.means['psnr']:.2f} dB"
        sums = totals.statistics.sums if totals.statistics is not None else {}
        for name in filter(is_counts, sums):
            level = name.removesuffix("counts")
            used = usage(sums[name])
            figures[f"codebook/{level}usage"] = used
            figures[f"codebook/{level}perplexity"] = perplexity(sums[name])
            text += f", codes used {used:.0%}"
        self._write_metrics(step, figures)
        self._bar.set_postfix_str(
            f"{text}, {figures['time/images_per_second']:.0f} images/s", refresh=False
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
            done: Steps done.
            limit: Most images; None takes all.
            poll: As of `imagetok.evaluation.evaluate`.
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
        share = figures["codebook_usage"]
        if share is not None and share < self._settings.usage_warning and self._writes:
            logger.warning(
                "warning: codebook usage is %.1f %% of %d codes over %d validation images after "
                "step %d, under the threshold of %.0f %% (train.usage_warning): the codebook is "
                "collapsing or larger than the data needs",
                100 * share,
                tokenizer.codebook_size,
                figures["num_images"],
                done,
                100 * self._settings.usage_warning,
            )
        return figures

    def draw_samples(self, tokenizer: ImageTokenizer, done: int) -> None:
        """The same fixed pictures above their reconstructions, as a PNG and to the trackers."""
        if self._writes:
            picture = reconstruction_grid(tokenizer, self._rows)
            save_picture(picture, self._folder / SAMPLES / f"step-{done:08d}.png")
            self._trackers.log_picture("reconstructions", picture, done - 1)

    def note_unreadable(self, step: int, messages: Sequence[str]) -> None:
        """Name rows that could not be read: all in `metrics.jsonl`, the first ones as warnings."""
        self._metrics.write(step, {"data/unreadable": list(messages)})
        for message in messages:
            self._num_warned += 1
            if self._writes and self._num_warned <= MAX_WARNINGS:
                logger.warning("warning: %s; another row takes its place", message)
            if self._writes and self._num_warned == MAX_WARNINGS:
                logger.warning("warning: further unreadable rows are named in metrics.jsonl only")

    def flush(self) -> None:
        """Hand the records to the system."""
        self._losses.flush()
        self._metrics.flush()

    def sync(self) -> None:
        """Wait until the flushed records are on disk; from any thread."""
        self._losses.sync()
        self._metrics.sync()

    def close(self) -> None:
        """Close records, trackers and bar."""
        self._bar.close()
        self._losses.close()
        self._metrics.close()
        self._trackers.close()

    def _write_metrics(self, step: int, figures: Mapping[str, float]) -> None:
        self._metrics.write(step, figures)
        self._trackers.log(figures, step)
