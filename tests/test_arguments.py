"""What a user gives beside images and ids: read in one form, or refused in words."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from imagetok.arguments import (
    MAX_COUNT,
    check_generator,
    check_temperature,
    read_count,
    read_latents,
)
from imagetok.errors import InvalidTypeError, InvalidValueError


@pytest.mark.parametrize("value", [2, np.int8(2), np.array(2), torch.tensor(2)])
def test_a_count_is_an_integer_of_any_kind(value: Any) -> None:
    found = read_count("steps", value, 2)
    assert (found, type(found)) == (2, int)


@pytest.mark.parametrize(
    "value",
    [True, 2.0, "2", None, [2], np.array([2, 3]), np.float32(2), torch.tensor([2, 3]),
     torch.tensor(2.0), torch.tensor(2, device="meta"), Fraction(2), object()],
    ids=range(12),
)  # fmt: skip
def test_a_count_that_is_not_an_integer_is_refused(value: Any) -> None:
    with pytest.raises(InvalidTypeError, match="steps must be an integer, got "):
        read_count("steps", value, 2)


@pytest.mark.parametrize("value", [1, -1, MAX_COUNT + 1, 2**70, 10**400])
def test_a_count_out_of_range_is_refused(value: int) -> None:
    with pytest.raises(InvalidValueError, match=f"at least 2 and at most {MAX_COUNT}, got "):
        read_count("steps", value, 2)
    assert read_count("steps", MAX_COUNT, 2) == MAX_COUNT


@pytest.mark.parametrize("value", [0, 1, 0.5, np.float32(0.5), np.int64(1), Fraction(1, 2), 1e-320])
def test_a_temperature_is_a_number_that_is_not_negative(value: Any) -> None:
    found = check_temperature(value)
    assert type(found) is float
    assert found == value


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, InvalidTypeError),
        ("1", InvalidTypeError),
        (None, InvalidTypeError),
        (1j, InvalidTypeError),
        (Decimal(1), InvalidTypeError),
        (torch.tensor(1.0), InvalidTypeError),
        (-0.1, InvalidValueError),
        (math.nan, InvalidValueError),
        (math.inf, InvalidValueError),
        (10**400, InvalidValueError),
        (np.longdouble("1e4000"), InvalidValueError),
    ],
)
def test_another_temperature_is_refused(value: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="temperature must be "):
        check_temperature(value)


@pytest.mark.parametrize("value", [5, "x", np.random.default_rng(0), torch.Generator])
def test_what_is_not_a_generator_is_refused(value: Any) -> None:
    with pytest.raises(InvalidTypeError, match=r"generator must be a torch\.Generator or None"):
        check_generator(value)
    check_generator(None)
    check_generator(torch.Generator())


LATENTS = torch.zeros(3, 4, 6)


@pytest.mark.parametrize(
    "latents",
    [LATENTS.to("meta"), LATENTS.to_sparse(), LATENTS[None].to_mkldnn(), LATENTS.cfloat(),
     LATENTS.to(torch.float8_e4m3fn), LATENTS.int(), LATENTS.numpy(), [0.0], None],
    ids=range(9),
)  # fmt: skip
def test_latents_without_plain_float_values_are_refused(latents: Any) -> None:
    with pytest.raises(InvalidTypeError, match="latents must be a "):
        read_latents(latents, 3)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300])
def test_latents_beyond_float32_are_refused(value: float) -> None:
    latents = LATENTS.double()
    latents[0, 0, 0] = value
    with pytest.raises(InvalidValueError, match="not finite in float32"):
        read_latents(latents, 3)
