"""What an objective is: named terms of the loss, computed from a live reconstruction.

                    output.mean, x                     the tokenizer's learner minimises
    tokenizer ───────────────────────► terms ───────►  sum of weight * [balance *] term
        │
        │ detached
        └────────────────────────────► forward ─────►  sum of terms, minimised by the objective's
                                                       own learner, where it has one

An objective that learns, such as a discriminator, is a module whose parameters belong to a learner
of its own. The tokenizer's pass sees its bare module with gradients off for those parameters; its
own pass goes through its own DistributedDataParallel, on outputs that are detached.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from imagetok.config.optimization import (
    CountOrNone,
    OptimizerConfig,
    ScheduleConfig,
    Scheduled,
    is_always_zero,
)
from imagetok.config.registry import PartConfig
from imagetok.config.strict_config import Config
from imagetok.outputs import TokenizerOutput

Balance = Literal["last_layer"]


class LearnerConfig(Config):
    """How an objective's own parameters are learnt.

    Attributes:
        optimizer: AdamW and its learning rate; its schedules count from `start_step`.
        start_step: First step that changes them.
    """

    optimizer: OptimizerConfig = OptimizerConfig()
    start_step: CountOrNone = 0


class ObjectiveConfig(PartConfig):
    """Base of all objective configs; a subclass declares its `type` and registers itself.

    Attributes:
        weights: Weight of each `loss/...` term in the tokenizer's loss, a number or a schedule; a
            term that is not named has weight 1.
    """

    kind: ClassVar[str] = "objective"

    weights: Annotated[dict[str, Scheduled], Field(default_factory=dict)]

    @abstractmethod
    def build(self, channels: int, image_size: tuple[int, int]) -> Objective:
        """Build the objective with fresh weights.

        Args:
            channels: Channels of the images.
            image_size: (height, width) of the images in pixels.
        """


class Objective(nn.Module, ABC):
    """Named terms of the tokenizer's loss, and perhaps a learner of its own.

    Every term is a scalar mean over the samples of a batch, keyed `loss/...`, so that micro-batches
    and ranks average to the whole batch; for that reason modules hold no batch statistics. Neither
    `terms` nor `forward` changes any state, and both draw randomness, if any, from `step` and the
    samples alone.

    Args:
        weights: Weight of each term of `terms` by name, a number or a schedule; 1 where a term is
            not named.
        balance: `last_layer` scales each term so that its gradient at the decoder's last layer is
            as large as that of the terms that are not balanced (Esser et al., Taming Transformers
            for High-Resolution Image Synthesis, 2021, arXiv 2012.09841, eq. 7).
        learner: How the objective's own parameters are learnt; None where they are not.

    Attributes:
        keeps_all_terms: Whether a term whose weight is zero at every step takes part in the
            gradient nevertheless. By default it is computed without and only logged.
    """

    keeps_all_terms: ClassVar[bool] = False

    def __init__(
        self,
        weights: Mapping[str, float | ScheduleConfig] | None = None,
        balance: Balance | None = None,
        learner: LearnerConfig | None = None,
    ) -> None:
        super().__init__()
        self.weights, self.balance, self.learner = dict(weights or {}), balance, learner

    @abstractmethod
    def terms(self, output: TokenizerOutput, x: Tensor, step: int) -> dict[str, Tensor]:
        """Terms of the tokenizer's loss.

        Args:
            output: The tokenizer's training pass; `output.mean` is live and not clamped.
            x: The images, float (B, C, H, W) in [0, 1].
            step: Number of the step, from 0.

        Returns:
            Unweighted scalars keyed `loss/...`, of one set of names at every step.
        """

    def unused_terms(self) -> set[str]:
        """Terms that take no part in the gradient: those whose weight is zero at every step."""
        if self.keeps_all_terms:
            return set()
        return {name for name, weight in self.weights.items() if is_always_zero(weight)}

    def forward(self, output: TokenizerOutput, x: Tensor, step: int) -> dict[str, Tensor]:
        """Terms of the objective's own loss, whose sum its learner minimises.

        Args:
            output: The tokenizer's training pass, detached.
            x: The images, float (B, C, H, W) in [0, 1].
            step: Number of the step, from 0.

        Returns:
            Scalars keyed `loss/...`, of one set of names at every step, which reach every parameter
            that learns.
        """
        raise NotImplementedError(f"{type(self).__name__} has a learner and no loss for it")
