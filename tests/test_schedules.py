from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from imagetok.config import OptimizerConfig, ScheduleConfig
from imagetok.errors import InvalidValueError
from imagetok.schedules import Schedule, constant, cosine, exponential, linear, warmup

SHAPES = [linear, cosine, exponential]


def test_the_dvae_temperature_is_1_at_the_start_and_a_sixteenth_from_step_150000_on() -> None:
    temperature = cosine(1.0, 1 / 16, steps=150_000)
    assert temperature(0) == 1.0
    assert temperature(149_999) > 1 / 16
    assert [temperature(step) for step in (150_000, 150_001, 3_000_000)] == [1 / 16] * 3


def test_the_dvae_kl_weight_is_0_at_the_start_and_6_6_from_step_5000_on() -> None:
    weight = cosine(0.0, 6.6, steps=5_000)
    assert weight(0) == 0.0
    assert weight(4_999) < 6.6
    assert [weight(step) for step in (5_000, 5_001, 3_000_000)] == [6.6] * 3


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("start", "end"), [(1.0, 1 / 16), (1e-4, 6.6)])
def test_a_schedule_is_monotone_and_stays_between_its_ends(
    shape: Callable[..., Schedule], start: float, end: float
) -> None:
    schedule = shape(start, end, steps=100, begin=10)
    values = [schedule(step) for step in range(130)]
    assert values[:11] == [start] * 11
    assert values[110:] == [end] * 20
    inside = values[10:111]
    assert inside == sorted(inside, reverse=start > end)
    assert len(set(inside)) == 101


def test_midpoints_are_those_computed_by_hand() -> None:
    assert linear(2.0, 4.0, 4, begin=10)(12) == 3.0
    assert cosine(1.0, 1 / 16, 150_000)(75_000) == pytest.approx((1 + 1 / 16) / 2)
    assert cosine(0.0, 6.6, 5_000)(1_250) == pytest.approx(6.6 * (1 - math.sqrt(0.5)) / 2)
    assert exponential(1.0, 1 / 16, 4)(1) == pytest.approx(1 / 2)
    assert exponential(1.0, 1 / 16, 4)(2) == pytest.approx(1 / 4)


def test_a_constant_never_changes() -> None:
    assert {constant(0.25)(step) for step in (0, 1, 10**9)} == {0.25}


def test_warm_up_rises_linearly_to_the_schedule_and_then_follows_it() -> None:
    schedule = warmup(linear(1.0, 0.0, 100), steps=4)
    assert schedule(0) == 0.25
    assert schedule(1) == pytest.approx(0.5 * 0.99)
    assert schedule(3) == pytest.approx(0.97)
    assert schedule(50) == pytest.approx(0.5)
    assert warmup(constant(3.0), steps=0)(0) == 3.0


def test_a_value_depends_on_the_step_alone() -> None:
    schedule = cosine(1.0, 0.1, 50)
    forwards = [schedule(step) for step in range(60)]
    assert [schedule(step) for step in reversed(range(60))] == forwards[::-1]


@pytest.mark.parametrize("shape", SHAPES)
def test_no_steps_and_a_negative_begin_are_refused(shape: Callable[..., Schedule]) -> None:
    with pytest.raises(InvalidValueError, match="steps=0"):
        shape(1.0, 2.0, 0)
    with pytest.raises(InvalidValueError, match="begin=-1"):
        shape(1.0, 2.0, 5, begin=-1)


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0)])
def test_an_exponential_through_zero_is_refused(start: float, end: float) -> None:
    with pytest.raises(InvalidValueError, match="positive"):
        exponential(start, end, 10)


def test_the_config_of_a_learning_rate_is_a_number_or_a_schedule() -> None:
    assert OptimizerConfig.from_json('{"lr": 1}').lr == 1.0
    schedule = OptimizerConfig.from_json(
        '{"lr": {"type": "cosine", "start": 1e-4, "end": 1.25e-6, "steps": 1200000}}'
    ).lr
    assert schedule == ScheduleConfig(type="cosine", start=1e-4, end=1.25e-6, steps=1_200_000)
