"""Arithmetic that no autocast and no change of dtype narrows."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from imagetok.precision import FullPrecisionModule, full_precision, no_autocast, promote

HALVES = [torch.bfloat16, torch.float16]


class Wide(FullPrecisionModule):
    """A parameter, buffers of both kinds, and a child."""

    counts: Tensor
    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1 / 3]))
        self.linear = nn.Linear(2, 2)
        self.register_buffer("table", torch.full((2,), 1 / 3))
        self.register_buffer("counts", torch.arange(3))


class Model(nn.Module):
    """A part in full precision beside an ordinary one."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.wide = nn.Linear(2, 2), Wide()


@pytest.mark.parametrize("dtype", HALVES)
def test_narrow_tensors_are_promoted_and_wider_ones_kept(dtype: torch.dtype) -> None:
    values = torch.tensor([0.5, 2.0])
    assert promote(values.to(dtype)).dtype == torch.float32
    assert torch.equal(promote(values.to(dtype)), values)
    assert promote(values) is values
    assert promote(values.double()).dtype == torch.float64


def test_a_promoted_tensor_passes_its_gradient_on() -> None:
    narrow = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    promote(narrow).sum().backward()
    assert narrow.grad is not None
    assert narrow.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", HALVES)
def test_products_are_exact_inside_and_autocast_returns_outside(dtype: torch.dtype) -> None:
    values = torch.full((4, 4), 1 / 3)
    expected = values @ values
    with torch.autocast("cpu", dtype=dtype):
        assert (values @ values).dtype == dtype
        with full_precision(values.to(dtype)) as inside:
            assert inside.dtype == torch.float32
            assert (inside @ inside).dtype == torch.float32
        with no_autocast(values):
            assert torch.equal(values @ values, expected)
        assert (values @ values).dtype == dtype
    assert not torch.is_autocast_enabled("cpu")


def test_autocast_returns_after_an_error() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(ZeroDivisionError), full_precision(torch.ones(1)):
            raise ZeroDivisionError
        assert torch.is_autocast_enabled("cpu")


def test_the_meta_device_is_taken() -> None:
    with full_precision(torch.ones(2, 2, dtype=torch.bfloat16, device="meta")) as inside:
        assert (inside @ inside).dtype == torch.float32


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("how", ["to", "half", "type", "each"])
def test_a_full_precision_module_is_not_narrowed_and_keeps_its_values(
    dtype: torch.dtype, how: str
) -> None:
    model = Model()
    before = copy.deepcopy(model.wide.state_dict())
    if how == "to":
        model.to(dtype)
    elif how == "half":
        model.half() if dtype == torch.float16 else model.bfloat16()
    elif how == "type":
        model.network.type(dtype)
        model.wide.to("cpu", dtype)
    else:
        for part in model.children():
            part.to(dtype)
    assert model.network.weight.dtype == dtype
    for name, tensor in model.wide.state_dict().items():
        assert torch.equal(tensor, before[name]), name
        assert tensor.dtype == before[name].dtype, name
    assert isinstance(model.wide.scale, nn.Parameter)
    assert model.wide.scale.requires_grad


def test_a_full_precision_module_is_widened() -> None:
    wide = Wide().double()
    for tensor in (wide.scale, wide.linear.weight, wide.table):
        assert tensor.dtype == torch.float64
    assert wide.counts.dtype == torch.int64
    assert wide.float().table.dtype == torch.float32


def test_a_full_precision_module_moves_to_a_device_while_its_dtype_stays() -> None:
    wide = Wide().to("meta", torch.bfloat16)
    for tensor in wide.state_dict().values():
        assert tensor.device.type == "meta"
    assert wide.scale.dtype == wide.table.dtype == torch.float32


def test_a_module_that_was_widened_stays_wide_when_it_would_be_narrowed() -> None:
    assert Wide().double().half().scale.dtype == torch.float64
