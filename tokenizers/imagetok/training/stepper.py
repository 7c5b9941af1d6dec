"""One optimizer step: forward, one weighted sum of losses, backward, update.

What a step does is a function of the config, the step and the rows alone (`imagetok.keys`); the
state it changes is weights, their average, optimizer and bottleneck, which is what a checkpoint
holds.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from imagetok.build import build_schedule
from imagetok.config import TrainConfig
from imagetok.errors import TrainingError
from imagetok.keys import make_keys
from imagetok.metrics import psnr
from imagetok.tokenizer import ImageTokenizer
from imagetok.training.average import WeightAverage
from imagetok.training.optimizer import build_learning_rate, build_optimizer, set_learning_rate
from imagetok.training.totals import StepTotals

MAX_SKIPPED_STEPS = 20
"""Steps in a row whose float16 gradients may overflow before the run stops."""


class Stepper:
    """A tokenizer and all that a step needs and changes.

    Args:
        settings: How it is trained.
        accelerator: The run's processes and precision.
        tokenizer: On the accelerator's device, its bottleneck initialised.

    Attributes:
        tokenizer: The bare model.
        optimizer: Its optimizer.
        average: Averaged weights, or None.
        skipped_in_a_row: Steps left out since the last one that counted, in float16.
    """

    def __init__(
        self, settings: TrainConfig, accelerator: Accelerator, tokenizer: ImageTokenizer
    ) -> None:
        self.settings, self.accelerator, self.tokenizer = settings, accelerator, tokenizer
        self.optimizer = build_optimizer(tokenizer, settings.optimizer)
        self.skipped_in_a_row = 0
        with warnings.catch_warnings():
            # Newer versions of torch have another name for it, which Accelerate does not pass on.
            warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
            self._model: nn.Module = accelerator.prepare_model(tokenizer)
        self._scaled_optimizer = accelerator.prepare_optimizer(self.optimizer)
        decay = settings.ema_decay
        self.average = None if decay is None else WeightAverage(tokenizer, decay)
        self._learning_rate = build_learning_rate(settings.optimizer, settings.steps)
        self._temperature = build_schedule(settings.temperature, settings.steps)
        self._loss_weights = {
            name: build_schedule(value, settings.steps)
            for name, value in settings.loss_weights.items()
        }

    @property
    def evaluated(self) -> ImageTokenizer:
        """The tokenizer to evaluate and export."""
        return self.tokenizer if self.average is None else self.average.tokenizer

    def scheduled(self, step: int) -> dict[str, float]:
        """What the schedules say of a step, by the names of logs."""
        return {
            "optim/lr": self._learning_rate(step),
            "schedule/temperature": self._temperature(step),
            **{f"weight/{name}": weight(step) for name, weight in self._loss_weights.items()},
        }

    def step(
        self, step: int, batches: Sequence[Mapping[str, Tensor]], measure: bool = False
    ) -> StepTotals:
        """One optimizer step over this rank's micro-batches.

        Args:
            step: Number of the step, from 0.
            batches: `pixels`, uint8 (B, C, H, W), and `row`, int64 (B,), of each micro-batch.
            measure: Also take the PSNR of the reconstructions.

        Raises:
            TrainingError: The loss or the gradients are not finite; nothing was changed.
        """
        set_learning_rate(self.optimizer, self._learning_rate(step))
        values = {"temperature": self._temperature(step)}
        weights = {name: weight(step) for name, weight in self._loss_weights.items()}
        totals = StepTotals(self.accelerator.num_processes * len(batches))
        for batch in batches:
            x = batch["pixels"].to(self.accelerator.device, self.tokenizer.dtype) / 255
            keys = make_keys(self.settings.seed, step, batch["row"].tolist(), "noise")
            last = batch is batches[-1]
            with nullcontext() if last else self.accelerator.no_sync(self._model):
                out = self._model(x, values, keys)
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
            self.optimizer.zero_grad()
            raise TrainingError(
                f"the loss is not finite at step {step}: {totals.losses()}; lower the learning "
                "rate, or train in bf16 or fp32"
            )
        limit = self.settings.optimizer.clip_norm
        norm = self.accelerator.clip_grad_norm_(self.tokenizer.parameters(), limit or math.inf)
        totals.means["optim/grad_norm"] = float(norm)
        finite = math.isfinite(totals.means["optim/grad_norm"])
        if not finite:
            self._skip(step)
        self._scaled_optimizer.step()
        self._scaled_optimizer.zero_grad()
        if not finite:
            return
        self.skipped_in_a_row = 0
        restarted = None
        if totals.statistics is not None:
            restarted = self.tokenizer.bottleneck.update(totals.statistics, step)
        if self.average is not None:
            self.average.take_in(self.tokenizer, restarted)

    def _skip(self, step: int) -> None:
        """Count a step whose gradients overflowed, which float16's scaler leaves out."""
        self.skipped_in_a_row += 1
        allowed = MAX_SKIPPED_STEPS if self.settings.precision == "fp16" else 0
        if self.skipped_in_a_row > allowed:
            self.optimizer.zero_grad()
            raise TrainingError(
                f"the gradients are not finite at step {step} ({self.skipped_in_a_row} in a row); "
                "lower the learning rate, or train in bf16 or fp32"
            )
