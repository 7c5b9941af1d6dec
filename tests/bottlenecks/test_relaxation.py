"""The relaxed sample in blocks of rows: values and gradients of the plain expression."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from imagetok.bottlenecks import GumbelBottleneck, relaxation
from imagetok.bottlenecks.relaxation import Relaxed, relax, row_kl
from imagetok.keys import gumbel_rows, row_seeds

CPU = torch.device("cpu")
ROWS, CODES, CHANNELS, WIDTH = 7, 5, 3, 4
TEMPERATURE = 0.7


@pytest.fixture(autouse=True)
def _three_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relaxation, "CPU_SCORES", 3 * CODES)


def arguments() -> list[Tensor]:
    """Features, weight, bias and embedding, float64."""
    shapes = (ROWS, CHANNELS), (CODES, CHANNELS), (CODES,), (CODES, WIDTH)
    draw = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, dtype=torch.float64, generator=draw, requires_grad=True)
        for shape in shapes
    ]


def seeds() -> Tensor:
    return row_seeds(torch.tensor([3]), "use", 1, ROWS, CPU)


def plain(features: Tensor, weight: Tensor, bias: Tensor, embedding: Tensor, hard: bool) -> Relaxed:
    logits = features @ weight.T + bias
    sample = ((logits + gumbel_rows(seeds(), CODES)) / TEMPERATURE).softmax(dim=-1)
    if hard:
        chosen = torch.nn.functional.one_hot(sample.argmax(dim=-1), CODES)
        sample = chosen + sample - sample.detach()
    return Relaxed(sample @ embedding, row_kl(logits), logits.argmax(dim=-1))


def test_gradients_are_those_of_the_values() -> None:
    assert gradcheck(lambda *a: relax(*a, seeds(), TEMPERATURE)[:2], arguments())


@pytest.mark.parametrize("hard", [False, True])
def test_values_and_gradients_are_those_of_the_plain_expression(hard: bool) -> None:
    parts, others = arguments(), arguments()
    found = relax(*parts, seeds(), TEMPERATURE, hard=hard)
    expected = plain(*others, hard)
    assert torch.equal(found.ids, expected.ids)
    for result in (found, expected):
        (result.z_q.pow(3).sum() + result.kl.square().sum()).backward()
    torch.testing.assert_close(found[:2], expected[:2])
    torch.testing.assert_close([each.grad for each in parts], [each.grad for each in others])


class Largest(TorchDispatchMode):
    """The most numbers that a tensor made in the context has."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else (made,):
            if isinstance(each, Tensor):
                self.numbers = max(self.numbers, each.numel())
        return made


def test_a_step_makes_no_tensor_of_rows_by_codes() -> None:
    bottleneck = GumbelBottleneck(CHANNELS, CODES, WIDTH, noise="hash")
    z = torch.randn(8, CHANNELS, 5, 5, requires_grad=True)
    with Largest() as largest:
        out = bottleneck(z, {"temperature": TEMPERATURE}, torch.arange(8))
        (out.z_q.square().sum() + out.losses["loss/kl"]).backward()
    assert largest.numbers <= 8 * 25 * WIDTH  # that of z_q


def test_all_but_the_noise_is_what_it_is_with_a_sequence() -> None:
    bottleneck, z = GumbelBottleneck(CHANNELS, CODES, WIDTH), torch.randn(2, CHANNELS, 3, 2)
    keys = torch.tensor([5, 6])
    expected = bottleneck(z, {}, keys)
    bottleneck.noise = "hash"
    found = bottleneck(z, {}, keys)
    assert torch.equal(found.ids, expected.ids)
    assert not torch.allclose(found.z_q, expected.z_q)
    for out in (found, expected):
        assert out.statistics is not None
    told = [[o.losses, o.metrics, vars(o.statistics)] for o in (found, expected)]
    torch.testing.assert_close(*told)
    apart = [
        bottleneck(part, {}, key).z_q for part, key in zip(z.split(1), keys.split(1), strict=True)
    ]
    torch.testing.assert_close(torch.cat(apart), found.z_q)  # a sample's noise is its own
