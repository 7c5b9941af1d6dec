"""What a learner's AdamW decays, its learning rate of a step, and averaged weights, by hand."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from imagetok import ImageTokenizer
from imagetok.config import OptimizerConfig
from imagetok.training.learner import WeightAverage, build_learning_rate, build_optimizer
from tiny_runs import SYSTEMS, tiny_run

TABLES = {"vqvae": "bottleneck.codebook", "dvae": "bottleneck.embedding"}


def model(system: str, **bottleneck: Any) -> ImageTokenizer:
    return ImageTokenizer.from_config(tiny_run(system, bottleneck=bottleneck).tokenizer)


def names_by_decay(tokenizer: ImageTokenizer, weight_decay: float) -> dict[str, float]:
    """The weight decay of each parameter, by name."""
    optimizer = build_optimizer(
        tokenizer, OptimizerConfig(weight_decay=weight_decay), tokenizer.parameter_groups()
    )
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    return {name: decays[id(p)] for name, p in tokenizer.named_parameters() if id(p) in decays}


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_weight_is_trained_and_matrices_and_kernels_alone_decay(system: str) -> None:
    tokenizer = model(system, **({"codebook": "loss"} if system == "vqvae" else {}))
    decays = names_by_decay(tokenizer, 0.1)
    assert decays.keys() == dict(tokenizer.named_parameters()).keys()
    for name, parameter in tokenizer.named_parameters():
        decayed = parameter.ndim >= 2 and name != TABLES.get(system)
        assert decays[name] == (0.1 if decayed else 0.0), name
    assert TABLES.get(system, "encoder.layers.0.bias") in decays


def test_projections_of_the_codebook_decay() -> None:
    decays = names_by_decay(model("vqvae", code_dim=2), 0.1)
    assert decays["bottleneck.project_in.weight"] == 0.1
    assert decays["bottleneck.project_in.bias"] == 0.0


def test_decay_pulls_kernels_and_leaves_codes_where_they_are() -> None:
    tokenizer = model("dvae")
    before = {name: p.detach().clone() for name, p in tokenizer.named_parameters()}
    optimizer = build_optimizer(
        tokenizer, OptimizerConfig(weight_decay=0.1), tokenizer.parameter_groups()
    )
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    for parameter in tokenizer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = dict(tokenizer.named_parameters())
    kernel, table = "encoder.layers.0.weight", "bottleneck.embedding"
    torch.testing.assert_close(after[kernel], before[kernel] * 0.95)
    assert torch.equal(after[table], before[table])


def test_frozen_weights_are_left_out() -> None:
    tokenizer = model("ae")
    tokenizer.encoder.requires_grad_(False)
    decays = names_by_decay(tokenizer, 0.1)
    assert decays
    assert all(name.startswith("decoder.") for name in decays)


def test_the_settings_are_those_of_the_config() -> None:
    config = OptimizerConfig(betas=(0.5, 0.9), epsilon=1e-6)
    for group in build_optimizer(model("ae"), config, {}).param_groups:
        assert (group["betas"], group["eps"]) == ((0.5, 0.9), 1e-6)


LINEAR = {"type": "linear", "start": 1.0, "end": 0.0}
COSINE = {"type": "cosine", "start": 1e-3, "end": 1e-5, "steps": 100, "begin": 10}
QUARTER = 1e-5 + (1e-3 - 1e-5) * (1 + math.sqrt(0.5)) / 2


@pytest.mark.parametrize(
    ("lr", "warmup_steps", "expected"),
    [
        (0.25, 0, {0: 0.25, 1: 0.25, 10: 0.25, 1000: 0.25}),
        (LINEAR, 4, {0: 0.25, 1: 0.45, 2: 0.6, 3: 0.7, 4: 0.6, 7: 0.3, 10: 0.0, 99: 0.0}),
        ({**LINEAR, "type": "cosine"}, 0, {0: 1.0, 5: 0.5, 10: 0.0}),  # it ends with the run
        (COSINE, 10, {0: 1e-4, 4: 5e-4, 9: 1e-3, 10: 1e-3, 35: QUARTER, 60: 505e-6, 110: 1e-5}),
    ],
)
def test_the_learning_rate_rises_linearly_and_then_is_the_schedules(
    lr: Any, warmup_steps: int, expected: dict[int, float]
) -> None:
    config = OptimizerConfig.from_dict({"lr": lr, "warmup_steps": warmup_steps})
    learning_rate = build_learning_rate(config, steps=10)
    found = {step: learning_rate(step) for step in expected}
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_is_that_of_adam_with_decoupled_decay_computed_by_hand(fused: bool) -> None:
    tokenizer = model("ae").double()
    config = OptimizerConfig(betas=(0.8, 0.9), epsilon=1e-3, weight_decay=0.1, fused=fused)
    optimizer = build_optimizer(tokenizer, config, tokenizer.parameter_groups())
    kernel = tokenizer.get_parameter("decoder.layers.0.weight")
    expected, first, second = kernel.detach().clone(), 0.0, 0.0
    for step in range(1, 4):
        lr, grad = 0.1 / step, float(step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        for parameter in tokenizer.parameters():
            parameter.grad = torch.full_like(parameter, grad)
        optimizer.step()
        first = 0.8 * first + 0.2 * grad
        second = 0.9 * second + 0.1 * grad**2
        slope = first / (1 - 0.8**step) / (math.sqrt(second / (1 - 0.9**step)) + 1e-3)
        expected = (1 - lr * 0.1) * expected - lr * slope
    torch.testing.assert_close(kernel.detach(), expected, rtol=1e-10, atol=1e-12)


# Averaged weights


@torch.no_grad()
def walk(tokenizer: ImageTokenizer, step: int) -> None:
    """Move all weights and floating buffers to somewhere else."""
    random = torch.Generator().manual_seed(step)
    for tensor in [*tokenizer.parameters(), *tokenizer.buffers()]:
        tensor.copy_(torch.randn(tensor.shape, generator=random).to(tensor.dtype))


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
def test_weights_are_averaged_with_a_decay_that_rises_to_its_value(decay: float) -> None:
    tokenizer = model("ae").double()
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


def test_buffers_are_copied_into_the_average() -> None:
    tokenizer = model("vqvae")
    average = WeightAverage(tokenizer, 0.9)
    for step in range(3):
        walk(tokenizer, step)
        average.take_in(tokenizer, {})
    buffers = dict(average.tokenizer.named_buffers())
    assert {"bottleneck.codebook", "bottleneck.running_counts"} <= buffers.keys()
    for name, buffer in tokenizer.named_buffers():
        assert torch.equal(buffers[name], buffer), name


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_average_starts_as_a_copy_that_shares_nothing(system: str) -> None:
    tokenizer = model(system)
    average = WeightAverage(tokenizer, 0.9).tokenizer
    before = copy.deepcopy(tokenizer.state_dict())
    walk(tokenizer, 0)
    for name, tensor in average.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_averaged_codes_of_a_normalised_codebook_are_unit_vectors() -> None:
    tokenizer = model("vqvae", codebook="loss", normalize=True)
    average = WeightAverage(tokenizer, 0.9)
    for step in range(4):
        walk(tokenizer, step)
        tokenizer.bottleneck.constrain()
        average.take_in(tokenizer, {})
    codes = average.tokenizer.state_dict()["bottleneck.codebook"]
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(len(codes)))


@pytest.mark.parametrize("system", ["vqvae", "dvae"])
def test_codes_that_start_anew_are_copied_and_the_others_averaged(system: str) -> None:
    tokenizer = model(system, **({"codebook": "loss"} if system == "vqvae" else {}))
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
    tokenizer = model("vqvae", codebook=codebook, normalize=True)
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
