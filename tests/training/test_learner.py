"""What a learner's AdamW decays, and its learning rate of a step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from imagetok import ImageTokenizer
from imagetok.config import OptimizerConfig
from imagetok.training.learner import build_learning_rate, build_optimizer
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


def test_the_learning_rate_rises_linearly_and_then_is_the_schedules() -> None:
    lr = {"type": "linear", "start": 1.0, "end": 0.0}
    config = OptimizerConfig.from_dict({"lr": lr, "warmup_steps": 4})
    learning_rate = build_learning_rate(config, steps=10)
    rise = [0.25, 0.5, 0.75, 1.0]
    assert [learning_rate(step) for step in range(4)] == pytest.approx(
        [share * (1 - step / 10) for step, share in enumerate(rise)]
    )
    assert [learning_rate(step) for step in (4, 7, 10, 99)] == pytest.approx([0.6, 0.3, 0.0, 0.0])


def test_without_warm_up_a_number_is_the_learning_rate_of_every_step() -> None:
    learning_rate = build_learning_rate(OptimizerConfig(lr=0.25), steps=10)
    assert {learning_rate(step) for step in (0, 1, 10, 1000)} == {0.25}


def test_warm_up_and_then_a_cosine_are_those_of_a_computation_by_hand() -> None:
    lr = {"type": "cosine", "start": 1e-3, "end": 1e-5, "steps": 100, "begin": 10}
    config = OptimizerConfig.from_dict({"lr": lr, "warmup_steps": 10})
    learning_rate = build_learning_rate(config, steps=1000)
    assert [learning_rate(step) for step in (0, 4, 9, 10)] == pytest.approx(
        [1e-4, 5e-4, 1e-3, 1e-3], rel=1e-12
    )
    quarter = 1e-5 + (1e-3 - 1e-5) * (1 + math.sqrt(0.5)) / 2
    assert [learning_rate(step) for step in (35, 60, 110, 999)] == pytest.approx(
        [quarter, (1e-3 + 1e-5) / 2, 1e-5, 1e-5], rel=1e-12
    )


def test_a_schedule_without_steps_ends_with_the_run() -> None:
    lr = {"type": "cosine", "start": 1.0, "end": 0.0}
    learning_rate = build_learning_rate(OptimizerConfig.from_dict({"lr": lr}), steps=40)
    assert [learning_rate(step) for step in (0, 20, 40)] == pytest.approx([1.0, 0.5, 0.0])


def test_a_step_is_that_of_adam_with_decoupled_decay_computed_by_hand() -> None:
    tokenizer = model("ae").double()
    config = OptimizerConfig(betas=(0.8, 0.9), epsilon=1e-3, weight_decay=0.1)
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
