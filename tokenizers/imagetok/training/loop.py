"""The training loop: forward, one weighted sum of losses, backward, update.

One function for all systems, one process or many. What a step does is a function of the config, the
step and the rows alone (`imagetok.keys`); the state it changes is weights, their average, optimizer
and bottleneck, which is what a checkpoint holds.
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from imagetok.build import build_schedule
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
from imagetok.errors import TrainingError
from imagetok.evaluate import Evaluation, evaluate, reconstruction_grid
from imagetok.files import atomic_path
from imagetok.keys import make_keys
from imagetok.metrics import perplexity, psnr, usage
from imagetok.tokenizer import ImageTokenizer
from imagetok.training.average import WeightAverage
from imagetok.training.checkpoint import save_checkpoint
from imagetok.training.folder import export_tokenizer, start_folder
from imagetok.training.initialization import initialize_bottleneck
from imagetok.training.optimizer import build_learning_rate, build_optimizer, set_learning_rate
from imagetok.training.records import Records
from imagetok.training.setup import build_accelerator
from imagetok.training.totals import StepTotals

LOG_EVERY = 10
"""Steps between lines of `metrics.jsonl` and renewals of the progress bar's figures."""

MAX_SKIPPED_STEPS = 20
"""Steps in a row whose float16 gradients may overflow before the run stops."""

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
        Where everything is, and the final figures.

    Raises:
        ConfigError: The config does not fit the machine, or the folder holds a run.
        DataError: The data cannot be read as asked.
        TrainingError: The loss or the gradients are not finite.
    """
    accelerator = build_accelerator(config.train)
    # One process fills the cache of a dataset before the others read it.
    with accelerator.main_process_first():
        rows = _open(config, config.data.split)
        evaluation_rows = _open(config, config.data.evaluation_split)
    folder = Path(output_dir)
    if accelerator.is_main_process:
        start_folder(folder, config, rows)
    accelerator.wait_for_everyone()
    with logging_redirect_tqdm():
        run = _Run(config, accelerator, rows, evaluation_rows, folder, progress)
        run.train_all()
        return run.finish()


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
    """A run's parts, and what happens every step and once in a while."""

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
            self.tokenizer = ImageTokenizer.from_config(config.tokenizer)
        self.tokenizer.to(accelerator.device)
        self.images = TrainingImages(
            rows,
            TrainTransform(self.tokenizer.preprocessor, config.data.crop_scale, config.data.flip),
            EpochOrder(len(rows), settings.seed),
            settings.seed,
        )
        initialize_bottleneck(self.tokenizer, self.images, settings.seed)

        self.optimizer = build_optimizer(self.tokenizer, settings.optimizer)
        self.model: nn.Module = accelerator.prepare_model(self.tokenizer)
        self.stepper = accelerator.prepare_optimizer(self.optimizer)
        decay = settings.ema_decay
        self.average = None if decay is None else WeightAverage(self.tokenizer, decay)
        self.learning_rate = build_learning_rate(settings.optimizer, settings.steps)
        self.temperature = build_schedule(settings.temperature, settings.steps)
        self.loss_weights = {
            name: build_schedule(value, settings.steps)
            for name, value in settings.loss_weights.items()
        }
        writes = accelerator.is_main_process
        self.losses = Records(folder / "losses.jsonl", 0, writes)
        self.metrics = Records(folder / "metrics.jsonl", 0, writes)
        self.skipped_in_a_row = 0

    def train_all(self) -> None:
        """All steps."""
        settings = self.settings
        batches = iter(self._loader())
        bar = tqdm(total=settings.steps, desc="train", unit="step", disable=not self.progress)
        logged_at = time.perf_counter()
        for step in range(settings.steps):
            done = step + 1
            log = done % LOG_EVERY == 0 or done == settings.steps
            totals = self.step(step, [next(batches) for _ in range(settings.accumulation)], log)
            self.losses.write(step, totals.losses())
            if log:
                now = time.perf_counter()
                speed = (done - bar.n) * settings.batch_size / (now - logged_at)
                self._log(step, totals, speed)
                bar.set_postfix_str(_describe_step(totals, speed), refresh=False)
                bar.update(done - bar.n)
                logged_at = now
            if _is_due(done, settings.evaluate_every):
                self._validate(done)
            if _is_due(done, settings.samples_every) or done == settings.steps:
                self._draw_samples(done)
            if _is_due(done, settings.checkpoint_every) or done == settings.steps:
                self._save(done)
        bar.close()

    def step(self, step: int, batches: list[dict[str, Tensor]], measure: bool) -> StepTotals:
        """One optimizer step over this rank's micro-batches."""
        set_learning_rate(self.optimizer, self.learning_rate(step))
        values = {"temperature": self.temperature(step)}
        weights = {name: schedule(step) for name, schedule in self.loss_weights.items()}
        totals = StepTotals(self.accelerator.num_processes * len(batches))
        for batch in batches:
            x = batch["pixels"].to(self.accelerator.device, self.tokenizer.dtype) / 255
            keys = make_keys(self.settings.seed, step, batch["row"].tolist(), "noise")
            last = batch is batches[-1]
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                out = self.model(x, values, keys)
                terms = [weights.get(name, 1.0) * loss for name, loss in out.losses.items()]
                loss = torch.stack(terms).sum()
                self.accelerator.backward(loss / len(batches))
            totals.add({"loss": loss, **out.losses, **out.metrics}, out.statistics)
            if measure:
                totals.add({"psnr": psnr(out.x_hat, x).mean()})
        totals.merge()
        self._update(step, totals)
        return totals

    def _update(self, step: int, totals: StepTotals) -> None:
        """Change weights, bottleneck and average, or nothing at all."""
        if not totals.is_finite():
            raise TrainingError(
                f"the loss is not finite at step {step}: {totals.losses()}; lower the learning "
                "rate, or train in bf16 or fp32"
            )
        limit = self.settings.optimizer.clip_norm
        norm = self.accelerator.clip_grad_norm_(self.tokenizer.parameters(), limit or math.inf)
        totals.means["optim/grad_norm"] = float(norm)
        if not math.isfinite(totals.means["optim/grad_norm"]):
            self._skip(step)
        self.stepper.step()
        self.stepper.zero_grad()
        if not math.isfinite(totals.means["optim/grad_norm"]):
            return
        self.skipped_in_a_row = 0
        if totals.statistics is not None:
            self.tokenizer.bottleneck.update(totals.statistics, step)
        if self.average is not None:
            self.average.update_parameters(self.tokenizer)

    def _skip(self, step: int) -> None:
        """Count a step whose gradients overflowed, which float16's scaler leaves out."""
        self.skipped_in_a_row += 1
        allowed = MAX_SKIPPED_STEPS if self.settings.precision == "fp16" else 0
        if self.skipped_in_a_row > allowed:
            raise TrainingError(
                f"the gradients are not finite at step {step} ({self.skipped_in_a_row} in a row); "
                "lower the learning rate, or train in bf16 or fp32"
            )

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
        )

    # Once in a while

    def _log(self, step: int, totals: StepTotals, images_per_second: float) -> None:
        figures = {
            **totals.means,
            "optim/lr": self.learning_rate(step),
            "schedule/temperature": self.temperature(step),
            **{f"weight/{name}": value(step) for name, value in self.loss_weights.items()},
            "time/images_per_second": images_per_second,
        }
        if totals.statistics is not None:
            figures["codebook/usage"] = usage(totals.statistics.counts)
            figures["codebook/perplexity"] = perplexity(totals.statistics.counts)
        self.metrics.write(step, figures)
        self.metrics.flush()
        self.losses.flush()

    def _evaluated(self) -> ImageTokenizer:
        """The tokenizer to evaluate and export."""
        return self.tokenizer if self.average is None else self.average.tokenizer

    def _validate(self, done: int) -> None:
        limit = self.settings.evaluation_images
        figures = evaluate(
            self._evaluated(), self.evaluation_rows, limit=limit, progress=self.progress
        )
        self.metrics.write(
            done - 1,
            {f"validation/{k}": v for k, v in figures.items() if isinstance(v, float | int)},
        )
        self._warn_of_collapse(figures, done)

    def _warn_of_collapse(self, figures: Evaluation, done: int) -> None:
        share = figures["codebook_usage"]
        if share is not None and share < self.settings.usage_warning:
            logger.warning(
                "codebook usage is %.1f %% of %d codes over %d validation images after step %d, "
                "under the threshold of %.0f %% (train.usage_warning): the codebook is collapsing "
                "or larger than the data needs",
                100 * share,
                self.tokenizer.codebook_size,
                figures["num_images"],
                done,
                100 * self.settings.usage_warning,
            )

    def _draw_samples(self, done: int) -> None:
        if self.accelerator.is_main_process:
            picture = reconstruction_grid(self._evaluated(), self.evaluation_rows)
            _save_picture(picture, self.folder / "samples" / f"step-{done:08d}.png")

    def _save(self, done: int) -> None:
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            save_checkpoint(
                self.folder / "checkpoints",
                done,
                self.tokenizer,
                self.optimizer,
                self.average,
                {
                    "config": self.config.to_dict(),
                    "data_fingerprint": self.rows.fingerprint,
                    "scaler": None if scaler is None else scaler.state_dict(),
                    "skipped_in_a_row": self.skipped_in_a_row,
                },
                self.settings.keep_last,
            )
        self.accelerator.wait_for_everyone()

    def finish(self) -> TrainResult:
        """Export the tokenizer with its figures over the whole evaluation split."""
        self.losses.close()
        figures = evaluate(self._evaluated(), self.evaluation_rows, progress=self.progress)
        self.metrics.write(
            self.settings.steps - 1,
            {f"evaluation/{k}": v for k, v in figures.items() if isinstance(v, float | int)},
        )
        self.metrics.close()
        self._warn_of_collapse(figures, self.settings.steps)
        target = self.folder / "tokenizer"
        if self.accelerator.is_main_process:
            picture = reconstruction_grid(self._evaluated(), self.evaluation_rows)
            figures = export_tokenizer(self._evaluated(), target, figures, picture)
        self.accelerator.wait_for_everyone()
        return TrainResult(self.folder, target, figures)


def _describe_step(totals: StepTotals, images_per_second: float) -> str:
    """What the progress bar shows."""
    text = f"loss {totals.means['loss']:.4f}, PSNR {totals.means['psnr']:.2f} dB"
    if totals.statistics is not None:
        text += f", codes used {usage(totals.statistics.counts):.0%}"
    return f"{text}, {images_per_second:.0f} images/s"


def _is_due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _save_picture(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")
