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
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from imagetok.config import build_schedule
from imagetok.data import TrainingBatch
from imagetok.errors import TrainingError
from imagetok.images import to_unit
from imagetok.keys import make_keys
from imagetok.metrics import psnr
from imagetok.outputs import Statistics, is_counts
from imagetok.run_config import TrainConfig
from imagetok.tokenizer import ImageTokenizer
from imagetok.training.average import WeightAverage
from imagetok.training.checkpoint import AVERAGE, MODEL, OPTIMIZER, TrainedParts
from imagetok.training.optimizer import build_learning_rate, build_optimizer, set_learning_rate
from imagetok.training.totals import StepTotals

MAX_SKIPPED_STEPS = 20
"""Steps in a row whose float16 gradients overflow that stop the run."""


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
        skipped: Steps left out in all, in float16.
        skipped_in_a_row: Steps left out since the last one that counted.
    """

    def __init__(
        self, settings: TrainConfig, accelerator: Accelerator, tokenizer: ImageTokenizer
    ) -> None:
        self.settings, self.accelerator, self.tokenizer = settings, accelerator, tokenizer
        groups = tokenizer.parameter_groups()
        self.optimizer = build_optimizer(tokenizer, settings.optimizer, groups)
        self.skipped = self.skipped_in_a_row = 0
        self._bottleneck_learns = "bottleneck" not in settings.freeze
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
    def parts(self) -> TrainedParts:
        """What a checkpoint holds the tensors of."""
        modules: dict[str, nn.Module] = {MODEL: self.tokenizer}
        if self.average is not None:
            modules[AVERAGE] = self.average
        return TrainedParts(modules, {OPTIMIZER: (self.tokenizer, self.optimizer)})

    def counters(self) -> dict[str, Any]:
        """What a checkpoint holds besides tensors, JSON-like."""
        scaler = self.accelerator.scaler
        return {
            "scaler": None if scaler is None else scaler.state_dict(),
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def load_counters(self, state: Mapping[str, Any]) -> None:
        """Go on counting from a checkpoint's state."""
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.skipped, self.skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]

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
        self,
        step: int,
        batches: Sequence[TrainingBatch],
        measure: bool = False,
        counts: Mapping[str, Tensor] | None = None,
    ) -> StepTotals:
        """One optimizer step over this rank's micro-batches.

        Args:
            step: Number of the step, from 0.
            batches: The micro-batches.
            measure: Also take the PSNR of the reconstructions.
            counts: float64 vectors to be summed over the ranks on the same way.

        Raises:
            TrainingError: The loss or the gradients are not finite; nothing was changed.
        """
        set_learning_rate(self.optimizer, self._learning_rate(step))
        values = {"temperature": self._temperature(step)}
        weights = {name: weight(step) for name, weight in self._loss_weights.items()}
        totals = StepTotals(self.accelerator.num_processes * len(batches))
        for batch in batches:
            x = batch.pixels.to(self.accelerator.device, non_blocking=True)
            x = to_unit(x, self.tokenizer.dtype)
            keys = make_keys(self.settings.seed, step, batch.rows.tolist(), "noise")
            last = batch is batches[-1]
            with nullcontext() if last else self.accelerator.no_sync(self._model):
                out = self._model(x, values, keys)
                terms = [weights.get(name, 1.0) * loss for name, loss in out.losses.items()]
                loss = torch.stack(terms).sum()
                self.accelerator.backward(loss / len(batches))
            totals.add({"loss": loss, **out.losses, **out.metrics}, self._used(out.statistics))
            if measure:
                totals.add({"psnr": psnr(out.x_hat, x).mean()})
        totals.merge(counts)
        self._update(step, totals)
        return totals

    def _used(self, statistics: Statistics | None) -> Statistics | None:
        """What of the statistics is wanted: of a frozen bottleneck only how often codes occur."""
        if statistics is None or self._bottleneck_learns:
            return statistics
        counts = {name: s for name, s in statistics.sums.items() if is_counts(name)}
        return Statistics(counts)

    def _update(self, step: int, totals: StepTotals) -> None:
        """Change weights, bottleneck and average, or nothing at all."""
        if not totals.is_finite():
            self.optimizer.zero_grad()
            raise TrainingError(
                f"the loss is not finite at step {step} on {_name(totals.ranks_not_finite())}: "
                f"{totals.losses()}; lower the learning rate, or train in bf16 or fp32"
            )
        limit = self.settings.optimizer.clip_norm
        norm = self.accelerator.clip_grad_norm_(self.tokenizer.parameters(), limit or math.inf)
        totals.means["optim/grad_norm"] = float(norm)
        finite = math.isfinite(totals.means["optim/grad_norm"])
        if not finite:
            self._skip(step)
        self._scaled_optimizer.step()
        self._scaled_optimizer.zero_grad()
        totals.means["optim/skipped_steps"] = self.skipped
        if not finite:
            return
        self.skipped_in_a_row = 0
        restarted: dict[str, Tensor] = {}
        if totals.statistics is not None and self._bottleneck_learns:
            restarted = self.tokenizer.bottleneck.update(totals.statistics, step)
        if self.average is not None:
            self.average.take_in(self.tokenizer, restarted)

    def _skip(self, step: int) -> None:
        """Count a step whose gradients overflowed, which float16's scaler leaves out."""
        self.skipped += 1
        self.skipped_in_a_row += 1
        allowed = MAX_SKIPPED_STEPS if self.settings.precision == "fp16" else 1
        if self.skipped_in_a_row >= allowed:
            self.optimizer.zero_grad()
            raise TrainingError(
                f"the gradients are not finite at step {step} on every rank "
                f"({self.skipped_in_a_row} in a row); lower the learning rate, or train in bf16 "
                "or fp32"
            )


def _name(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) != 1)} {', '.join(map(str, ranks)) or 'unknown'}"
