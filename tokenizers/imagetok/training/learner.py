"""A learner: a module and everything that its learning needs and changes; and averaged weights.

A run steps one or several of them together: the tokenizer, and each objective that learns. All are
stepped or none is, so that what one of them meets (a loss that is not finite, an overflow) leaves
all of them as they were. The average follows the tokenizer.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel

from imagetok.bottlenecks import ParameterGroup
from imagetok.config import OptimizerConfig, build_schedule
from imagetok.launch import collectives
from imagetok.schedules import Schedule, warmup
from imagetok.tokenizer import ImageTokenizer

logger = logging.getLogger(__name__)


class Learner:
    """A module with its optimizer, learning rate, clipping, gradient scaler and skip counts.

    Args:
        name: Name in logs and checkpoints.
        module: What learns, on the accelerator's device.
        config: AdamW and its learning rate.
        run_steps: Number of steps of the run.
        accelerator: The run's processes and precision.
        groups: How parameters are learnt, by name, where the defaults do not apply.
        start_step: Step before which the module is untouched.

    Attributes:
        optimizer: The optimizer of the module's parameters.
        wrapped: The module as its training pass calls it: distributed, and in the run's precision.
        skipped: Number of steps left out because this learner's gradients overflowed.
        skipped_in_a_row: The same since the last step that counted.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        config: OptimizerConfig,
        run_steps: int,
        accelerator: Accelerator,
        *,
        groups: Mapping[str, ParameterGroup] | None = None,
        start_step: int = 0,
    ) -> None:
        self.name, self.module, self.start_step = name, module, start_step
        self.optimizer = build_optimizer(module, config, groups or {})
        self.skipped = self.skipped_in_a_row = 0
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._clip_norm = config.clip_norm or math.inf
        steps = max(1, run_steps - start_step)
        self._learning_rate = build_learning_rate(config, steps)
        if config.warmup_steps > steps and collectives.rank() == 0:
            logger.warning(
                "warning: the %s warms up for %d steps (warmup_steps) and learns for %d: its "
                "learning rate comes to %.0f %% of what lr asks for",
                name,
                config.warmup_steps,
                steps,
                100 * steps / config.warmup_steps,
            )
        # A scaler of its own, as gradients of different losses overflow at different scales.
        self._scaler: torch.amp.GradScaler | None = copy.deepcopy(accelerator.scaler)
        with warnings.catch_warnings():
            # Newer versions of torch have another name for it, which Accelerate does not pass on.
            warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
            self.wrapped: nn.Module = accelerator.prepare_model(module)

    def is_active(self, step: int) -> bool:
        """Whether the learner takes part in a step."""
        return step >= self.start_step

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step."""
        return self._learning_rate(max(0, step - self.start_step))

    @property
    def scale(self) -> float:
        """What losses are multiplied by for the backward pass; 1 without a gradient scaler."""
        return 1.0 if self._scaler is None else self._scaler.get_scale()

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """A forward and backward pass; gradients of all ranks are averaged in the last one."""
        no_sync = getattr(self.wrapped, "no_sync", nullcontext)
        return nullcontext() if last else no_sync()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Within the context no loss has gradients for this learner's parameters."""
        for parameter in self._parameters:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in self._parameters:
                parameter.requires_grad_(True)

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients."""
        scaled: Tensor = loss if self._scaler is None else self._scaler.scale(loss)
        torch.autograd.backward(scaled)

    def clip(self) -> float:
        """Clip the gradients that were added up, and return the norm that they had before."""
        if self._scaler is not None:
            self._scaler.unscale_(self.optimizer)
        return float(nn.utils.clip_grad_norm_(self._parameters, self._clip_norm))

    def update(self, step: int) -> None:
        """Change the parameters by the clipped gradients."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step) * group["lr_factor"]
        if self._scaler is None:
            self.optimizer.step()
        else:
            self._scaler.step(self.optimizer)
            self._scaler.update()
        self.discard_gradients()
        self.skipped_in_a_row = 0

    def skip(self, *, overflowed: bool) -> None:
        """Leave out a step after `clip`.

        Args:
            overflowed: Whether it was this learner's gradients that overflowed; its scaler then
                tries a smaller scale, while that of a learner whose gradients were sound stays.
        """
        if self._scaler is not None:
            if overflowed:
                self._scaler.step(self.optimizer)  # which finds the overflow and changes nothing
            self._scaler.update(None if overflowed else self._scaler.get_scale())
        self.discard_gradients()
        self.skipped += overflowed
        self.skipped_in_a_row += overflowed

    def discard_gradients(self) -> None:
        """Forget the gradients that were added up."""
        self.optimizer.zero_grad()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds besides tensors, JSON-like."""
        return {
            "scaler": None if self._scaler is None else self._scaler.state_dict(),
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def restore_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        if self._scaler is not None and state["scaler"] is not None:
            self._scaler.load_state_dict(state["scaler"])
        self.skipped, self.skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]


def build_optimizer(
    module: nn.Module, config: OptimizerConfig, groups: Mapping[str, ParameterGroup]
) -> AdamW:
    """Build AdamW, whose weight decay is on matrices and kernels only unless groups say otherwise.

    Args:
        module: Its parameters that require gradients are learnt.
        config: Settings.
        groups: How parameters are learnt, by name in the module, where the defaults do not apply.
    """
    members: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, True): [], (1.0, False): []}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            group = groups.get(name, ParameterGroup())
            decays = parameter.ndim >= 2 if group.decay is None else group.decay
            members.setdefault((group.lr_factor, decays), []).append(parameter)
    return AdamW(
        [
            {
                "params": parameters,
                "weight_decay": config.weight_decay if decays else 0.0,
                "lr_factor": lr_factor,
            }
            for (lr_factor, decays), parameters in members.items()
        ],
        lr=0.0,
        betas=config.betas,
        eps=config.epsilon,
        fused=config.fused or None,  # None leaves the choice of the loop over parameters to torch
    )


def build_learning_rate(config: OptimizerConfig, steps: int) -> Schedule:
    """The learning rate as a function of the step, warm-up included.

    Args:
        config: Settings.
        steps: Number of steps that the learning lasts.
    """
    return warmup(build_schedule(config.lr, steps), config.warmup_steps)


class WeightAverage(AveragedModel):
    """Exponential moving average of the weights, which is what gets evaluated and exported.

    It starts as a copy of the model, and `take_in` follows every step. Buffers are copied, the
    averaged codebook among them: they are averages already. The decay rises with the number n of
    averaged steps, min(decay, (1 + n) / (10 + n)), so that the first weights do not linger.

    Args:
        model: The model as it is at the first step.
        decay: Decay per step, in [0, 1).
    """

    def __init__(self, model: ImageTokenizer, decay: float) -> None:
        @torch.no_grad()
        def average(
            averaged: Sequence[Tensor], current: Sequence[Tensor], num_averaged: Tensor | int
        ) -> None:
            count = int(num_averaged)
            rate = min(decay, (1 + count) / (10 + count))
            torch._foreach_lerp_(list(averaged), list(current), 1 - rate)

        super().__init__(model, multi_avg_fn=average)

    @property
    def tokenizer(self) -> ImageTokenizer:
        """The averaged model."""
        return cast(ImageTokenizer, self.module)

    @torch.no_grad()
    def take_in(self, model: ImageTokenizer, restarted: Mapping[str, Tensor]) -> None:
        """Take in the weights of the model after a step.

        Frozen weights keep their bits, and so does a codebook that is copied.

        Args:
            model: The model.
            restarted: What `bottleneck.update` returned, by parameter name. Rows that began anew
                have no past that could be averaged: they are copied.
        """
        self.update_parameters(model)
        for weight, current in zip(self.module.parameters(), model.parameters(), strict=True):
            if not current.requires_grad:
                weight.copy_(current)  # the average of -0.0 is 0.0
        averaged = self.tokenizer.bottleneck
        for name, rows in restarted.items():
            averaged.get_parameter(name)[rows] = model.bottleneck.get_parameter(name)[rows]
        if any(current.requires_grad for current in model.bottleneck.parameters()):
            averaged.constrain()
