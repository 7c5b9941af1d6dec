"""The training loop: read, step, and once in a while validate, draw and save.

One function for all systems, one process or many.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from imagetok import distributed
from imagetok.config import RunConfig
from imagetok.data import (
    EpochOrder,
    ImageRows,
    SampleBatches,
    TrainingImages,
    TrainingSample,
    TrainTransform,
    open_images,
)
from imagetok.errors import DataError
from imagetok.evaluate import Evaluation, evaluate, reconstruction_grid
from imagetok.metrics import perplexity, usage
from imagetok.tokenizer import ImageTokenizer
from imagetok.training.checkpoint import save_checkpoint
from imagetok.training.folder import check_folder, export_tokenizer, save_picture, start_folder
from imagetok.training.initialization import initialize_bottleneck
from imagetok.training.plan import plan_run
from imagetok.training.records import Records
from imagetok.training.setup import build_accelerator
from imagetok.training.stepper import Stepper
from imagetok.training.totals import StepTotals

LOG_EVERY = 10
"""Steps between lines of `metrics.jsonl` and renewals of the progress bar's figures."""

Batch = dict[str, Tensor]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What a run left.

    Attributes:
        output_dir: The run's folder.
        tokenizer_dir: The trained tokenizer in it.
        evaluation: Its figures on the evaluation split.
    """

    output_dir: Path
    tokenizer_dir: Path
    evaluation: Evaluation


def train(config: RunConfig, output_dir: str | Path, *, progress: bool = True) -> TrainResult:
    """Train a tokenizer.

    Args:
        config: The run.
        output_dir: Folder to write; it must not hold a run yet.
        progress: Show progress bars on the main process.

    Returns:
        Where everything is, and the final figures; the same on every rank.

    Raises:
        ConfigError: The config does not fit the machine, or the folder holds a run.
        DataError: The data cannot be read as asked.
        TrainingError: The loss or the gradients are not finite.
        UnwritableFileError: The disk is full or the folder cannot be written.
    """
    folder = Path(output_dir)
    check_folder(folder)
    plan_run(config)  # whatever cannot be built is refused before anything is read or written
    accelerator = build_accelerator(config.train)
    # One process fills the cache of a dataset before the others read it.
    with accelerator.main_process_first():
        rows = _open(config, config.data.split)
        evaluation_rows = _open(config, config.data.evaluation_split)
    if accelerator.is_main_process:
        start_folder(folder, config, rows)
    accelerator.wait_for_everyone()
    with logging_redirect_tqdm():
        run = _Run(config, accelerator, rows, evaluation_rows, folder, progress)
        try:
            run.train_all()
            return run.finish()
        finally:
            run.close()


def _open(config: RunConfig, split: str) -> ImageRows:
    data = config.data
    return open_images(
        data.name,
        split,
        subset=data.subset,
        revision=data.revision,
        image_column=data.image_column,
    )


class _Run:
    """A run's parts, and what happens once in a while."""

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        rows: ImageRows,
        evaluation_rows: ImageRows,
        folder: Path,
        progress: bool,
    ) -> None:
        settings = config.train
        self.config, self.settings, self.accelerator = config, settings, accelerator
        self.rows, self.evaluation_rows, self.folder = rows, evaluation_rows, folder
        self.progress = progress and accelerator.is_main_process
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            tokenizer = ImageTokenizer.from_config(config.tokenizer)
        tokenizer.to(accelerator.device)
        self.images = TrainingImages(
            rows,
            TrainTransform(tokenizer.preprocessor, config.data.crop_scale, config.data.flip),
            EpochOrder(len(rows), settings.seed),
            settings.seed,
        )
        initialize_bottleneck(tokenizer, self.images, settings.seed)
        self.stepper = Stepper(settings, accelerator, tokenizer)
        writes = accelerator.is_main_process
        self.losses = Records(folder / "losses.jsonl", 0, writes)
        self.metrics = Records(folder / "metrics.jsonl", 0, writes)

    def train_all(self) -> None:
        """All steps."""
        settings, steps = self.settings, self.settings.steps
        batches: Iterator[Batch] = iter(self._loader())
        logged, seconds = 0, 0.0
        with tqdm(total=steps, desc="train", unit="step", disable=not self.progress) as bar:
            for step in range(steps):
                started = time.perf_counter()
                done = step + 1
                log = done % LOG_EVERY == 0 or done == steps
                micro_batches = [_next_batch(batches) for _ in range(settings.accumulation)]
                totals = self.stepper.step(step, micro_batches, measure=log)
                self.losses.write(step, totals.losses())
                seconds += time.perf_counter() - started
                if log:
                    speed = (done - logged) * settings.batch_size / seconds
                    self._log(step, totals, speed)
                    bar.set_postfix_str(_describe_step(totals, speed), refresh=False)
                    bar.update(done - logged)
                    logged, seconds = done, 0.0
                # After the last step the whole split is evaluated.
                if _is_due(done, settings.evaluate_every) and done < steps:
                    self._validate(done)
                if _is_due(done, settings.samples_every) or done == steps:
                    self._draw_samples(done)
                if _is_due(done, settings.checkpoint_every) or done == steps:
                    self._save(done)

    def finish(self) -> TrainResult:
        """Export the tokenizer with its figures over the whole evaluation split."""
        tokenizer, steps = self.stepper.evaluated, self.settings.steps
        figures = evaluate(tokenizer, self.evaluation_rows, progress=self.progress)
        self._record_figures(steps, "evaluation", figures)
        target = self.folder / "tokenizer"
        if self.accelerator.is_main_process:
            picture = reconstruction_grid(tokenizer, self.evaluation_rows)
            figures = export_tokenizer(tokenizer, target, figures, picture)
        return TrainResult(self.folder, target, distributed.broadcast_object(figures))

    def close(self) -> None:
        """Close the records."""
        self.losses.close()
        self.metrics.close()

    def _loader(self) -> DataLoader[TrainingSample]:
        settings, workers = self.settings, self.config.data.num_workers
        return DataLoader(
            self.images,
            batch_sampler=SampleBatches(
                start_step=0,
                steps=settings.steps,
                batch_size=settings.batch_size,
                rank=self.accelerator.process_index,
                world_size=self.accelerator.num_processes,
                accumulation=settings.accumulation,
            ),
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
            pin_memory=self.accelerator.device.type == "cuda",
            generator=torch.Generator(),  # not torch's own, whose state belongs to the caller
        )

    # Once in a while

    def _log(self, step: int, totals: StepTotals, images_per_second: float) -> None:
        figures = {
            **totals.means,
            **self.stepper.scheduled(step),
            "time/images_per_second": images_per_second,
        }
        if totals.statistics is not None:
            figures["codebook/usage"] = usage(totals.statistics.counts)
            figures["codebook/perplexity"] = perplexity(totals.statistics.counts)
        self.metrics.write(step, figures)
        self.metrics.flush()
        self.losses.flush()

    def _validate(self, done: int) -> None:
        figures = evaluate(
            self.stepper.evaluated,
            self.evaluation_rows,
            limit=self.settings.evaluation_images,
            progress=self.progress,
        )
        self._record_figures(done, "validation", figures)

    def _record_figures(self, done: int, group: str, figures: Evaluation) -> None:
        numbers = {key: value for key, value in figures.items() if isinstance(value, float | int)}
        self.metrics.write(done - 1, {f"{group}/{key}": value for key, value in numbers.items()})
        share = figures["codebook_usage"]
        collapsed = share is not None and share < self.settings.usage_warning
        if collapsed and self.accelerator.is_main_process:
            logger.warning(
                "warning: codebook usage is %.1f %% of %d codes over %d validation images after "
                "step %d, under the threshold of %.0f %% (train.usage_warning): the codebook is "
                "collapsing or larger than the data needs",
                100 * share,
                self.stepper.tokenizer.codebook_size,
                figures["num_images"],
                done,
                100 * self.settings.usage_warning,
            )

    def _draw_samples(self, done: int) -> None:
        if self.accelerator.is_main_process:
            picture = reconstruction_grid(self.stepper.evaluated, self.evaluation_rows)
            save_picture(picture, self.folder / "samples" / f"step-{done:08d}.png")

    def _save(self, done: int) -> None:
        if self.accelerator.is_main_process:
            # What a resumed run keeps of the records is on disk before the checkpoint is.
            self.losses.flush(to_disk=True)
            self.metrics.flush(to_disk=True)
            scaler = self.accelerator.scaler
            save_checkpoint(
                self.folder / "checkpoints",
                done,
                self.stepper.tokenizer,
                self.stepper.optimizer,
                self.stepper.average,
                {
                    "config": self.config.to_dict(),
                    "data_fingerprint": self.rows.fingerprint,
                    "scaler": None if scaler is None else scaler.state_dict(),
                    "skipped_in_a_row": self.stepper.skipped_in_a_row,
                },
                self.settings.keep_last,
            )
        self.accelerator.wait_for_everyone()


def _next_batch(batches: Iterator[Batch]) -> Batch:
    try:
        return next(batches)
    except DataError as error:
        # A loading process puts its traceback in front of the message.
        raise DataError(str(error).rpartition("DataError: ")[2].strip()) from error


def _describe_step(totals: StepTotals, images_per_second: float) -> str:
    """What the progress bar shows."""
    text = f"loss {totals.means['loss']:.4f}, PSNR {totals.means['psnr']:.2f} dB"
    if totals.statistics is not None:
        text += f", codes used {usage(totals.statistics.counts):.0%}"
    return f"{text}, {images_per_second:.0f} images/s"


def _is_due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
