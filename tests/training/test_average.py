"""Averaged weights against a computation by hand."""

from __future__ import annotations

import copy

import pytest
import torch

from imagetok import ImageTokenizer
from imagetok.training.average import WeightAverage
from tiny_runs import SYSTEMS, tiny_run


@torch.no_grad()
def walk(tokenizer: ImageTokenizer, step: int) -> None:
    """Move all weights and floating buffers to somewhere else."""
    random = torch.Generator().manual_seed(step)
    for tensor in [*tokenizer.parameters(), *tokenizer.buffers()]:
        tensor.copy_(torch.randn(tensor.shape, generator=random).to(tensor.dtype))


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
def test_weights_are_averaged_with_a_decay_that_rises_to_its_value(decay: float) -> None:
    tokenizer = ImageTokenizer.from_config(tiny_run("ae").tokenizer).double()
    average = WeightAverage(tokenizer, decay)
    expected: dict[str, torch.Tensor] = {}
    for count in range(30):
        walk(tokenizer, count)
        average.take_in(tokenizer, {})
        for name, weight in tokenizer.named_parameters():
            # The first step is taken as it is; nothing is known before it.
            rate = min(decay, (1 + count) / (10 + count)) if count else 0.0
            expected[name] = rate * expected.get(name, weight) + (1 - rate) * weight.detach()
    found = dict(average.tokenizer.named_parameters())
    for name, weight in expected.items():
        torch.testing.assert_close(found[name].detach(), weight, rtol=1e-12, atol=1e-12)


def test_buffers_are_copied() -> None:
    tokenizer = ImageTokenizer.from_config(tiny_run("vqvae").tokenizer)
    average = WeightAverage(tokenizer, 0.9)
    for step in range(3):
        walk(tokenizer, step)
        average.take_in(tokenizer, {})
    buffers = dict(average.tokenizer.named_buffers())
    assert {"bottleneck.codebook", "bottleneck.running_counts"} <= buffers.keys()
    for name, buffer in tokenizer.named_buffers():
        assert torch.equal(buffers[name], buffer), name


@pytest.mark.parametrize("system", SYSTEMS)
def test_it_starts_as_a_copy_that_shares_nothing(system: str) -> None:
    tokenizer = ImageTokenizer.from_config(tiny_run(system).tokenizer)
    average = WeightAverage(tokenizer, 0.9).tokenizer
    before = copy.deepcopy(tokenizer.state_dict())
    walk(tokenizer, 0)
    for name, tensor in average.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_averaged_codes_of_a_normalised_codebook_are_unit_vectors() -> None:
    bottleneck = {"codebook": "loss", "normalize": True}
    tokenizer = ImageTokenizer.from_config(tiny_run("vqvae", bottleneck=bottleneck).tokenizer)
    average = WeightAverage(tokenizer, 0.9)
    for step in range(4):
        walk(tokenizer, step)
        tokenizer.bottleneck.constrain()
        average.take_in(tokenizer, {})
    codes = average.tokenizer.state_dict()["bottleneck.codebook"]
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(len(codes)))


@pytest.mark.parametrize("system", ["vqvae", "dvae"])
def test_codes_that_start_anew_are_copied_and_the_others_averaged(system: str) -> None:
    changes = {"codebook": "loss"} if system == "vqvae" else {}
    tokenizer = ImageTokenizer.from_config(tiny_run(system, bottleneck=changes).tokenizer)
    average = WeightAverage(tokenizer, 0.9)
    walk(tokenizer, 0)
    average.take_in(tokenizer, {})
    restarted = torch.zeros(tokenizer.codebook_size, dtype=torch.bool)
    restarted[3] = True
    walk(tokenizer, 1)
    tables = ["codebook"] if system == "vqvae" else ["logits.weight", "logits.bias", "embedding"]
    average.take_in(tokenizer, dict.fromkeys(tables, restarted))
    for name in tables:
        rows = average.tokenizer.bottleneck.get_parameter(name)
        current = tokenizer.bottleneck.get_parameter(name)
        assert torch.equal(rows[3], current[3]), name
        assert not torch.isclose(rows[4], current[4]).all(), name


@pytest.mark.parametrize("codebook", ["ema", "loss"])
def test_frozen_parts_of_the_average_stay_the_same_bits(codebook: str) -> None:
    bottleneck = {"codebook": codebook, "normalize": True}
    tokenizer = ImageTokenizer.from_config(tiny_run("vqvae", bottleneck=bottleneck).tokenizer)
    with torch.no_grad():
        tokenizer.encoder.layers[0].bias.fill_(-0.0)
        tokenizer.state_dict()["bottleneck.codebook"].mul_(1.01)  # which `constrain` would undo
    tokenizer.encoder.requires_grad_(False)
    tokenizer.bottleneck.requires_grad_(False)
    average = WeightAverage(tokenizer, 0.9)
    for _ in range(20):  # the rounding that makes 0.0 of -0.0 comes with a slow average
        with torch.no_grad():
            for weight in tokenizer.decoder.parameters():
                weight.add_(0.1)
        average.take_in(tokenizer, {})
    found, expected = average.tokenizer.state_dict(), tokenizer.state_dict()
    for name, tensor in expected.items():
        same = found[name].numpy().tobytes() == tensor.numpy().tobytes()
        assert same == (not name.startswith("decoder.")), name
