"""Schedules: pure functions of the optimizer step.

Temperature, loss weights and the learning rate change over training as a function of the step
alone, so that a resumed run needs no schedule state. With t = clamp((step - begin) / steps, 0, 1):

    linear       start + (end - start) t
    cosine       end + (start - end) (1 + cos(pi t)) / 2
    exponential  start (end / start)^t

The dVAE of Ramesh et al. (Zero-Shot Text-to-Image Generation, 2021, arXiv 2102.12092, App. A.2)
uses `cosine` for all three: temperature 1 to 1/16 over 150,000 steps, KL weight 0 to 6.6 over
5,000, learning rate 1e-4 to 1.25e-6 over 1,200,000; the authors report that annealing the
temperature linearly diverged.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from imagetok.errors import InvalidValueError

Schedule = Callable[[int], float]


def constant(value: float) -> Schedule:
    """The same value at every step."""
    return lambda step: value


def _interpolate(
    start: float, end: float, steps: int, begin: int, between: Callable[[float], float]
) -> Schedule:
    if steps < 1 or begin < 0:
        raise InvalidValueError(
            f"a schedule needs steps >= 1 and begin >= 0, got steps={steps}, begin={begin}"
        )

    def value(step: int) -> float:
        if step <= begin:
            return start
        if step >= begin + steps:
            return end
        return between((step - begin) / steps)

    return value


def linear(start: float, end: float, steps: int, begin: int = 0) -> Schedule:
    """From `start` at step `begin` to `end` at step `begin + steps`, in equal steps."""
    return _interpolate(start, end, steps, begin, lambda t: start + (end - start) * t)


def cosine(start: float, end: float, steps: int, begin: int = 0) -> Schedule:
    """From `start` to `end` along half a cosine: slow at both ends."""
    return _interpolate(
        start, end, steps, begin, lambda t: end + (start - end) * (1 + math.cos(math.pi * t)) / 2
    )


def exponential(start: float, end: float, steps: int, begin: int = 0) -> Schedule:
    """From `start` to `end` by an equal factor every step; both must be positive."""
    if start <= 0 or end <= 0:
        raise InvalidValueError(
            f"an exponential schedule needs positive ends, got start={start}, end={end}"
        )
    return _interpolate(start, end, steps, begin, lambda t: start * (end / start) ** t)


def warmup(schedule: Schedule, steps: int) -> Schedule:
    """`schedule` times a linear rise from 1/steps at step 0 to 1 at step `steps - 1`."""
    if steps <= 0:
        return schedule
    return lambda step: schedule(step) * min(1.0, (step + 1) / steps)
