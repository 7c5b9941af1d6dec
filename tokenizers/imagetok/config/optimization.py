"""What changes over a run's steps, and the optimizer: configs that runs and learners share."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from imagetok import schedules
from imagetok.config.strict_config import Config

Count = Annotated[int, Field(ge=1, le=2**40)]
CountOrNone = Annotated[int, Field(ge=0, le=2**40)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class ScheduleConfig(Config):
    """A value that changes with the step; a plain number stands for `constant`.

    Attributes:
        type: Shape of the change.
        start: Value up to step `begin`.
        end: Value from step `begin + steps` on.
        steps: Steps that the change takes; None lasts to the end of the run.
        begin: Step at which the change begins.
    """

    type: Literal["linear", "cosine", "exponential"]
    start: float
    end: float
    steps: Count | None = None
    begin: CountOrNone = 0

    @model_validator(mode="after")
    def _exponential_ends_are_positive(self) -> Self:
        if self.type == "exponential" and min(self.start, self.end) <= 0:
            raise ValueError(
                f"an exponential schedule needs positive ends, got {self.start} and {self.end}"
            )
        return self


def _shape(value: Any) -> str:
    return "schedule" if isinstance(value, dict | ScheduleConfig) else "number"


Scheduled = Annotated[
    Annotated[float, Tag("number")] | Annotated[ScheduleConfig, Tag("schedule")],
    Discriminator(_shape),
]
"""A number, or a value that changes with the step."""


def least_value(value: float | ScheduleConfig) -> float:
    """The least value that a schedule takes: it is at an end, as schedules are monotone."""
    return min(value.start, value.end) if isinstance(value, ScheduleConfig) else value


def is_always_zero(value: float | ScheduleConfig) -> bool:
    """Whether a number, or a value that changes with the step, is zero at every step."""
    ends = (value.start, value.end) if isinstance(value, ScheduleConfig) else (value,)
    return not any(ends)


def build_schedule(value: float | ScheduleConfig, run_steps: int) -> schedules.Schedule:
    """The schedule that a config describes, for a run of `run_steps`; a number is constant."""
    if not isinstance(value, ScheduleConfig):
        return schedules.constant(value)
    shape = {
        "linear": schedules.linear,
        "cosine": schedules.cosine,
        "exponential": schedules.exponential,
    }[value.type]
    steps = max(1, run_steps - value.begin) if value.steps is None else value.steps
    return shape(value.start, value.end, steps, value.begin)


class OptimizerConfig(Config):
    """AdamW and its learning rate.

    Attributes:
        lr: Learning rate, a number or a schedule.
        warmup_steps: Steps of a linear warm-up that comes before it.
        betas: Decay of the first and second moment.
        epsilon: Added to the denominator.
        weight_decay: Decoupled weight decay of matrices and kernels; vectors and codebooks have
            none.
        clip_norm: Largest gradient norm; None does not clip.
        fused: Change each parameter in one pass over memory: the same step, rounded otherwise.
    """

    later_keys: ClassVar[frozenset[str]] = frozenset({"fused"})

    lr: Scheduled = 3e-4
    warmup_steps: CountOrNone = 0
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    fused: bool = False

    @model_validator(mode="after")
    def _lr_is_not_negative(self) -> Self:
        if least_value(self.lr) < 0:
            raise ValueError(f"lr must not be negative, got {least_value(self.lr)}")
        return self
