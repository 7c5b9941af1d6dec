"""One optimizer step: forward, weighted terms, backward, update, for all learners together.

    for each micro-batch:
        tokenizer forward ── output ──► terms of all objectives ──► weighted sum ──► backward
                               └─ detached ─► each further learner's own loss ────► backward
    sums over micro-batches and ranks: losses, metrics, statistics, gradients at the last layer
    everything finite on every rank ──► all learners, the bottleneck and the average are updated
    anything not finite             ──► nothing changes anywhere

What a step does is a function of the config, the step and the rows alone (`imagetok.keys`); the
state that it changes is what a checkpoint holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from imagetok.config import build_schedule
from imagetok.data import TrainingBatch
from imagetok.errors import TrainingError
from imagetok.images import to_unit
from imagetok.keys import make_keys
from imagetok.launch import collectives
from imagetok.metrics import psnr
from imagetok.objectives import GradientBalance, Objective, TokenizerTerms
from imagetok.outputs import Statistics, TokenizerOutput, is_counts
from imagetok.run_config import TrainConfig
from imagetok.schedules import constant
from imagetok.tokenizer import ImageTokenizer
from imagetok.training.checkpoint import AVERAGE, MODEL, OPTIMIZER, TrainedParts
from imagetok.training.learner import Learner, WeightAverage

MAX_SKIPPED_STEPS = 20
"""Number of steps in a row with overflowing float16 gradients that stops the run."""


class Stepper:
    """A tokenizer, what else learns beside it, and everything that a step needs and changes.

    Args:
        settings: How the tokenizer is trained.
        accelerator: The run's processes and precision.
        tokenizer: On the accelerator's device, with its bottleneck initialised.
        objectives: What is minimised besides the tokenizer's own terms, by name; on the
            accelerator's device.

    Attributes:
        tokenizer: The bare model.
        average: Averaged weights, or None.
        learner: The tokenizer's learner.
        learners: That one, followed by those of the objectives that have one.
    """

    def __init__(
        self,
        settings: TrainConfig,
        accelerator: Accelerator,
        tokenizer: ImageTokenizer,
        objectives: Mapping[str, Objective] | None = None,
    ) -> None:
        self.settings, self.accelerator, self.tokenizer = settings, accelerator, tokenizer
        self._bottleneck_learns = "bottleneck" not in settings.freeze
        groups, steps = tokenizer.parameter_groups(), settings.steps
        self.learner = Learner(
            "tokenizer", tokenizer, settings.optimizer, steps, accelerator, groups=groups
        )
        self.learners = [self.learner]
        for name, objective in (objectives or {}).items():
            if (config := objective.learner) is not None:
                arguments = name, objective, config.optimizer, steps, accelerator
                self.learners.append(Learner(*arguments, start_step=config.start_step))
        decay = settings.ema_decay
        self.average = None if decay is None else WeightAverage(tokenizer, decay)
        self._temperature = build_schedule(settings.temperature, steps)
        own = TokenizerTerms(settings.loss_weights)
        self._objectives = [
            (each, {name: build_schedule(weight, steps) for name, weight in each.weights.items()})
            for each in (own, *(objectives or {}).values())
        ]
        balanced = any(objective.balance for objective, _ in self._objectives)
        layer = cast(nn.Module, tokenizer.decoder.last_layer)
        self._balance = GradientBalance(layer) if balanced else None

    @property
    def evaluated(self) -> ImageTokenizer:
        """The tokenizer to evaluate and export."""
        return self.tokenizer if self.average is None else self.average.tokenizer

    # A step

    def step(
        self,
        step: int,
        batches: Sequence[TrainingBatch],
        measure: bool = False,
        counts: Mapping[str, Tensor] | None = None,
    ) -> StepTotals:
        """Take one optimizer step over this rank's micro-batches.

        Args:
            step: Number of the step, from 0.
            batches: The micro-batches.
            measure: Whether to take the PSNR of the reconstructions as well.
            counts: float64 vectors to be summed over the ranks in the same collective.

        Raises:
            TrainingError: A loss or a gradient is not finite; nothing was changed.
        """
        active = [learner for learner in self.learners if learner.is_active(step)]
        totals = StepTotals(self.accelerator.num_processes * len(batches))
        for batch in batches:
            x = batch.pixels.to(self.accelerator.device, non_blocking=True)
            x = to_unit(x, self.tokenizer.dtype)
            keys = make_keys(self.settings.seed, step, batch.rows.tolist(), "noise")
            place = _MicroBatch(step, x, keys, len(batches), last=batch is batches[-1])
            output = self._tokenizer_pass(place, totals)
            for learner in active[1:]:
                self._objective_pass(learner, place, output, totals)
            if measure:
                totals.add({"psnr": psnr(output.x_hat, x).mean()})
        totals.merge(counts)
        self._update(step, active, totals)
        return totals

    def _tokenizer_pass(self, batch: _MicroBatch, totals: StepTotals) -> TokenizerOutput:
        """Forward and backward of the tokenizer; the detached output."""
        values = {"temperature": self._temperature(batch.step)}
        with ExitStack() as stack:
            stack.enter_context(self.learner.micro_batch(last=batch.last))
            for learner in self.learners[1:]:
                stack.enter_context(learner.frozen())
            output: TokenizerOutput = self.learner.wrapped(batch.x, values, batch.keys)
            terms = self._terms(output, batch)
            weighted = [term.weight * term.value for term in terms if term.is_learnt]
            loss = torch.stack(weighted).sum()
            gradients = self._last_layer_gradients(terms)
            self.learner.backward(loss / batch.num_parts)
        losses = {term.name: term.value.detach() for term in terms}
        figures = {"loss": loss, **losses, **output.metrics}
        totals.add(figures, self._used(output.statistics), gradients)
        return replace(output, mean=output.mean.detach(), losses=losses)

    def _objective_pass(
        self, learner: Learner, batch: _MicroBatch, output: TokenizerOutput, totals: StepTotals
    ) -> None:
        """Forward and backward of an objective that learns, on the tokenizer's detached output."""
        with learner.micro_batch(last=batch.last):
            losses: dict[str, Tensor] = learner.wrapped(output, batch.x, batch.step)
            learner.backward(torch.stack(list(losses.values())).sum() / batch.num_parts)
        totals.add(losses)

    def _terms(self, output: TokenizerOutput, batch: _MicroBatch) -> list[_Term]:
        """The terms of the tokenizer's loss from all objectives, with their weights."""
        terms: list[_Term] = []
        for objective, weights in self._objectives:
            with self.accelerator.autocast():
                found = objective.terms(output, batch.x, batch.step)
            for name, value in found.items():
                weight = weights.get(name, constant(1.0))(batch.step)
                is_learnt = name not in objective.unused_terms()
                is_balanced = objective.balance is not None and is_learnt
                if self._balance is not None and is_balanced:
                    weight *= self._balance.factor(name)
                terms.append(_Term(name, value, weight, is_learnt, is_balanced))
        return terms

    def _last_layer_gradients(self, terms: Sequence[_Term]) -> dict[str, Tensor]:
        """What the balance of the next step is measured by; nothing where no term is balanced."""
        if self._balance is None:
            return {}
        reference = [t.weight * t.value for t in terms if t.is_learnt and not t.is_balanced]
        balanced = {t.name: t.value for t in terms if t.is_balanced}
        return self._balance.gradients(reference, balanced, self.learner.scale)

    def _used(self, statistics: Statistics | None) -> Statistics | None:
        """The statistics that are needed: of a frozen bottleneck only how often codes occur."""
        if statistics is None or self._bottleneck_learns:
            return statistics
        return Statistics({name: s for name, s in statistics.sums.items() if is_counts(name)})

    def _update(self, step: int, active: Sequence[Learner], totals: StepTotals) -> None:
        """Change all learners, the bottleneck and the average, or nothing at all."""
        if not totals.is_finite():
            for learner in active:
                learner.discard_gradients()
            raise TrainingError(
                f"the loss is not finite at step {step} on {_name(totals.ranks_not_finite())}: "
                f"{totals.losses()}; lower the learning rate, or train in bf16 or fp32"
            )
        norms = {learner.name: learner.clip() for learner in active}
        is_finite = all(map(math.isfinite, norms.values()))
        for learner in active:
            totals.means[self._log_name(learner, "grad_norm")] = norms[learner.name]
            if is_finite:
                learner.update(step)
            else:
                learner.skip(overflowed=not math.isfinite(norms[learner.name]))
            totals.means[self._log_name(learner, "skipped_steps")] = learner.skipped
        if not is_finite:
            self._check_skipped(step, active)
            return
        restarted: dict[str, Tensor] = {}
        if totals.statistics is not None and self._bottleneck_learns:
            restarted = self.tokenizer.bottleneck.update(totals.statistics, step)
        if self.average is not None:
            self.average.take_in(self.tokenizer, restarted)
        if self._balance is not None:
            totals.means |= {f"balance/{name}": f for name, f in self._balance.factors.items()}
            self._balance.update(totals.gradients)

    def _check_skipped(self, step: int, active: Sequence[Learner]) -> None:
        """Stop after too many overflows in a row, or after one that no gradient scaler can mend."""
        allowed = MAX_SKIPPED_STEPS if self.settings.precision == "fp16" else 1
        for learner in active:
            if learner.skipped_in_a_row >= allowed:
                whose = "" if learner is self.learner else f" of the {learner.name}"
                raise TrainingError(
                    f"the gradients{whose} are not finite at step {step} on every rank "
                    f"({learner.skipped_in_a_row} in a row); lower the learning rate, or train in "
                    "bf16 or fp32"
                )

    # What logs and checkpoints hold

    def scheduled(self, step: int) -> dict[str, float]:
        """The values that schedules have in a step, by the names of logs."""
        return {
            **{self._log_name(each, "lr"): each.learning_rate(step) for each in self.learners},
            "schedule/temperature": self._temperature(step),
            **{
                f"weight/{name}": weight(step)
                for _, weights in self._objectives
                for name, weight in weights.items()
            },
        }

    def _log_name(self, learner: Learner, figure: str) -> str:
        return f"optim/{figure}" if learner is self.learner else f"optim/{learner.name}/{figure}"

    @property
    def parts(self) -> TrainedParts:
        """What a checkpoint holds the tensors of, by the names of its files."""
        modules: dict[str, nn.Module] = {MODEL: self.tokenizer}
        optimizers = {OPTIMIZER: (self.learner.module, self.learner.optimizer)}
        if self.average is not None:
            modules[AVERAGE] = self.average
        for learner in self.learners[1:]:
            modules[learner.name] = learner.module
            optimizers[f"{learner.name}-{OPTIMIZER}"] = learner.module, learner.optimizer
        return TrainedParts(modules, optimizers)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds besides tensors, JSON-like."""
        state, further = self.learner.state(), self.learners[1:]
        if further:
            state["learners"] = {learner.name: learner.state() for learner in further}
        if self._balance is not None:
            state["balance"] = dict(self._balance.factors)
        return state

    def restore_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.learner.restore_state(state)
        for learner in self.learners[1:]:
            learner.restore_state(state["learners"][learner.name])
        if self._balance is not None:
            self._balance.factors = dict(state["balance"])


class StepTotals:
    """Means of scalars and sums of counts and statistics over the micro-batches of all ranks.

    All micro-batches are of one size, so that the mean of their means is that of their samples.

    Args:
        num_parts: Number of micro-batches of all ranks together.

    Attributes:
        means: Means of the scalars, once merged.
        counts: Sums of the counts, once merged.
        gradients: Means of the gradients, once merged.
        statistics: What `bottleneck.update` takes, once merged; None if no micro-batch has any.
    """

    def __init__(self, num_parts: int) -> None:
        self._num_parts = num_parts
        self._scalars: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}
        self._statistics: list[Statistics] = []
        self.means: dict[str, float] = {}
        self.counts: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        self.statistics: Statistics | None = None

    def add(
        self,
        scalars: Mapping[str, Tensor],
        statistics: Statistics | None = None,
        gradients: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        """Add what a pass over a micro-batch yields: means over its samples, and statistics."""
        for sums, values in ((self._scalars, scalars), (self._gradients, gradients)):
            for name, value in values.items():
                value = value.detach()
                sums[name] = sums[name] + value if name in sums else value
        if statistics is not None:
            self._statistics.append(statistics)

    def merge(self, counts: Mapping[str, Tensor] | None = None) -> None:
        """Add up all ranks, in one collective for each dtype.

        Args:
            counts: float64 vectors of this rank, to be summed in the same collective.
        """
        names, counts = list(self._scalars), counts or {}
        # On the CPU: not every device has float64.
        sums = {"scalars": torch.stack([self._scalars[name].cpu().double() for name in names])}
        sums |= {f"counts/{name}": vector for name, vector in counts.items()}
        sums |= {f"gradients/{name}": gradient for name, gradient in self._gradients.items()}
        parts = self._statistics
        for name in parts[0].sums if parts else ():
            sums[f"statistics/{name}"] = torch.stack([part.sums[name] for part in parts]).sum(0)
        sums = collectives.all_reduce_sum(sums)
        means = (sums["scalars"] / self._num_parts).tolist()
        self.means = dict(zip(names, means, strict=True))
        self.counts = {name: sums[f"counts/{name}"] for name in counts}
        self.gradients = {n: sums[f"gradients/{n}"] / self._num_parts for n in self._gradients}
        if parts:
            samples = {
                name: torch.cat([part.samples[name] for part in parts]) for name in parts[0].samples
            }
            self.statistics = Statistics(
                {name: sums[f"statistics/{name}"] for name in parts[0].sums},
                {name: collectives.gather_equal(rows) for name, rows in samples.items()},
            )

    def is_finite(self) -> bool:
        """Whether the loss is finite on every rank; the same answer on all of them."""
        return all(math.isfinite(value) for value in self.losses().values())

    def ranks_not_finite(self) -> list[int]:
        """The ranks whose own losses are not finite; a collective."""
        own = [value for name, value in self._scalars.items() if name.startswith("loss")]
        finite = collectives.gather_objects(bool(torch.stack(own).isfinite().all()))
        return [rank for rank, is_finite in enumerate(finite) if not is_finite]

    def losses(self) -> dict[str, float]:
        """The weighted sum `loss` and the unweighted terms `loss/...`."""
        return {name: mean for name, mean in self.means.items() if name.startswith("loss")}


@dataclass(frozen=True)
class _MicroBatch:
    """What the passes of a micro-batch are given.

    Attributes:
        step: Number of the step.
        x: Images, float (B, C, H, W) in [0, 1].
        keys: int64 (B,), the key of each sample's noise.
        num_parts: Number of micro-batches of this rank in the step.
        last: Whether it is the last one.
    """

    step: int
    x: Tensor
    keys: Tensor
    num_parts: int
    last: bool


@dataclass(frozen=True)
class _Term:
    """A term of the tokenizer's loss.

    Attributes:
        name: Its name, `loss/...`.
        value: The unweighted scalar.
        weight: What it is multiplied by in this step, its balance included.
        is_learnt: Whether it takes part in the gradient, rather than in the logs alone.
        is_balanced: Whether its weight follows the size of its gradient.
    """

    name: str
    value: Tensor
    weight: float
    is_learnt: bool
    is_balanced: bool


def _name(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) != 1)} {', '.join(map(str, ranks)) or 'unknown'}"
