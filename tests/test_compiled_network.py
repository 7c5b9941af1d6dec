"""Compiled networks give what the networks give, as they are at that moment."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imagetok import ImageTokenizer
from imagetok import compiled_network as module
from imagetok.compiled_network import CompiledNetwork
from imagetok.errors import CompilationError, InvalidValueError
from tiny_runs import tiny_run

Change = Callable[[nn.Sequential], Any]


@pytest.fixture
def compiled_shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that reach the code of networks; the code is the copy itself."""
    shapes = []

    def without_compiler(network: nn.Module, **_: Any) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            shapes.append(tuple(x.shape))
            out: Tensor = network(x)
            return out

        return run

    monkeypatch.setattr(torch, "compile", without_compiler)
    return shapes


def make_network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()


def make_tokenizer(system: str) -> ImageTokenizer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ImageTokenizer.from_config(tiny_run(system).tokenizer)


@pytest.mark.parametrize(
    "change",
    [
        lambda network: network[0].weight.data.mul_(-1),
        lambda network: network[0].weight.data.neg_(),
        lambda network: network[1].running_mean.add_(1),
        lambda network: network.load_state_dict(make_network().state_dict()),
        lambda network: network.to(torch.bfloat16),
        lambda network: network.__setitem__(2, nn.Identity()),
        lambda network: network.train(),
    ],
    ids=["data", "sign", "buffer", "loaded", "dtype", "layer", "mode"],
)
@torch.no_grad()
def test_code_never_outlives_a_change_of_its_network(
    change: Change, compiled_shapes: list[tuple[int, ...]]
) -> None:
    network, compiled, x = make_network(), CompiledNetwork(), torch.rand(2, 3, 6, 6)
    assert torch.equal(compiled(network, x), network(x))
    change(network)
    x = x.to(network[0].weight.dtype)
    expected = copy.deepcopy(network)(x)
    torch.testing.assert_close(compiled(network, x), expected)


@pytest.mark.parametrize(
    ("batch_size", "counts", "filled"),
    [(None, [1, 3, 4, 5], [1, 4, 4, 8]), (6, [6, 5, 1], [6, 8, 1])],
)
def test_few_numbers_of_images_are_compiled_for(
    batch_size: int | None,
    counts: list[int],
    filled: list[int],
    compiled_shapes: list[tuple[int, ...]],
) -> None:
    network, compiled = make_network(), CompiledNetwork(batch_size)
    for count in counts:
        x = torch.rand(count, 3, 6, 6)
        assert torch.allclose(compiled(network, x), network(x), atol=1e-6)
    assert [shape[0] for shape in compiled_shapes] == filled
    assert compiled(network, torch.rand(0, 3, 6, 6)).shape == (0, 4, 4, 4)


def test_beyond_the_most_shapes_the_network_itself_runs_and_one_line_says_so(
    compiled_shapes: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "MAX_SHAPES", 2)
    network, compiled = make_network(), CompiledNetwork()
    for side in (4, 5, 6, 7, 4):
        x = torch.rand(1, 3, side, side)
        assert torch.allclose(compiled(network, x), network(x), atol=1e-6)
    assert [shape[2] for shape in compiled_shapes] == [4, 5, 4]
    assert len(caplog.records) == 1


def test_without_a_compiler_the_refusal_names_it() -> None:
    from torch._inductor import config

    tokenizer = make_tokenizer("vqvae")
    missing = config.patch({"cpp.cxx": ("no-such-compiler",)})
    with missing, pytest.raises(CompilationError, match=r"no C\+\+ compiler.*CXX"):
        tokenizer.compile()
    assert not tokenizer.is_compiled
    with pytest.raises(InvalidValueError, match="batch_size"):
        tokenizer.compile(batch_size=0)


@pytest.mark.parametrize("system", ["vqvae", "dvae"])
def test_a_compiled_tokenizer_is_the_same_tokenizer(
    system: str, compiled_shapes: list[tuple[int, ...]]
) -> None:
    tokenizer, x = make_tokenizer(system), torch.rand(3, 3, 16, 16)
    ids, fingerprint, names = tokenizer.encode(x), tokenizer.fingerprint, [*tokenizer.state_dict()]
    with_gradient = tokenizer.compile()(x)
    assert not compiled_shapes
    assert with_gradient.mean.requires_grad
    for same in (tokenizer, copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        compiled_shapes.clear()
        assert same.is_compiled
        assert torch.equal(same.encode(x), ids)
        assert len(compiled_shapes) == 1
        assert (same.fingerprint, [*same.state_dict()]) == (fingerprint, names)


@pytest.mark.slow
@pytest.mark.parametrize("system", ["vqvae", "dvae"])
def test_compiled_code_differs_by_rounding_alone(system: str) -> None:
    tokenizer, x = make_tokenizer(system), torch.rand(3, 3, 16, 16)
    ids = tokenizer.encode(x)
    with torch.no_grad():
        z = tokenizer.encode_pixels(x)
        shown = tokenizer.decode(ids, output="pt")
        tokenizer.compile()
        torch.testing.assert_close(tokenizer.encode_pixels(x), z, rtol=1e-4, atol=1e-5)
    assert (tokenizer.encode(x) != ids).float().mean() < 0.01
    torch.testing.assert_close(tokenizer.decode(ids, output="pt"), shown, rtol=0, atol=1e-4)
