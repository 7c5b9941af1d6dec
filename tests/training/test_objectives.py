"""Objectives beside the tokenizer's own terms: what they change, and several learners in a step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file
from tiny_steps import batch, changed, state_of
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from imagetok import ImageTokenizer
from imagetok.config import RunConfig, load_recipe
from imagetok.errors import ConfigError, TrainingError
from imagetok.objectives import Objective
from imagetok.training import train
from imagetok.training.accelerator import build_accelerator
from imagetok.training.initial_model import build_model, build_objectives
from imagetok.training.plan import plan_run
from imagetok.training.provenance import find_recipe
from imagetok.training.step import Stepper
from tiny_runs import tiny_run, tiny_values
from toy_objective import ToyDiscriminator, ToyDiscriminatorConfig, toy


def run_of(system: str = "vqvae", *, objective: Any = None, **train: Any) -> RunConfig:
    changes = {"ema_decay": 0.9, "optimizer": {"lr": 1e-3, "epsilon": 1e-4}}
    return tiny_run(system, **changes, **{"objectives": [objective or toy()], **train})


def build(config: RunConfig) -> Stepper:
    accelerator = build_accelerator(config.train)
    model = build_model(config, accelerator.device)
    return Stepper(config.train, accelerator, model, build_objectives(config, accelerator.device))


def groups(names: set[str]) -> set[str]:
    return {name.split("/")[0] for name in names}


# One step


def test_a_step_moves_all_learners_and_logs_all_terms() -> None:
    stepper = build(run_of())
    stepper.step(0, [batch()])
    before = state_of(stepper)
    totals = stepper.step(1, [batch()])
    moved = groups(changed(before, state_of(stepper)))
    assert moved == {"model", "average", "optimizer", "toy", "toy-optimizer"}
    assert totals.losses().keys() >= {"loss/adversarial", "loss/discriminator", "loss"}
    assert totals.means["optim/toy/grad_norm"] > 0
    assert totals.means["optim/toy/skipped_steps"] == 0
    assert stepper.scheduled(1)["optim/toy/lr"] == 1e-3


def test_the_tokenizers_loss_has_no_gradient_for_the_discriminator() -> None:
    stepper = build(run_of(objective=toy(balance=None, learner={"start_step": 9})))
    stepper.step(0, [batch()])
    discriminator = stepper.learners[1].module
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    assert all(parameter.requires_grad for parameter in discriminator.parameters())


def test_before_its_first_step_a_learner_is_untouched_and_its_schedules_begin_there() -> None:
    lr = {"type": "linear", "start": 1.0, "end": 0.0}
    learner = {"start_step": 2, "optimizer": {"lr": lr}}
    stepper = build(run_of(objective=toy(learner=learner), steps=6))
    before = state_of(stepper)
    for step in (0, 1):
        totals = stepper.step(step, [batch()])
        assert "loss/discriminator" not in totals.means
        assert "loss/adversarial" in totals.means
    assert groups(changed(before, state_of(stepper))) == {"model", "average", "optimizer"}
    assert [stepper.learners[1].learning_rate(step) for step in (2, 4, 6)] == [1.0, 0.5, 0.0]
    assert "loss/discriminator" in stepper.step(2, [batch()]).means
    assert {"toy", "toy-optimizer"} <= groups(changed(before, state_of(stepper)))


def test_a_term_has_a_gradient_at_pixels_beyond_one() -> None:
    config = run_of("ae")
    tokenizer = build_model(config, "cpu")
    with torch.no_grad():
        bias = tokenizer.decoder.last_layer.get_parameter("bias")  # type: ignore[union-attr]
        bias.fill_(5.0)
    x = batch().pixels.float() / 255
    output = tokenizer(x)
    over = output.mean > 1
    assert over.all()
    assert output.x_hat.max() == 1
    assert not output.x_hat.requires_grad
    (term,) = build_objectives(config, "cpu")["toy"].terms(output, x, 0).values()
    at_pixels, at_bias = torch.autograd.grad(term, [output.mean, bias])
    assert (at_pixels != 0).all()
    assert (at_bias != 0).all()


def test_a_term_that_always_weighs_nothing_is_logged_and_changes_nothing() -> None:
    weights = {"loss/adversarial": {"type": "linear", "start": 0.0, "end": 0.0}}
    with_term = build(run_of(objective=toy(weights=weights, balance=None)))
    without = build(run_of(objectives=[]))
    for step in range(2):
        assert "loss/adversarial" in with_term.step(step, [batch()]).means
        without.step(step, [batch()])
    others = state_of(with_term)
    assert all(torch.equal(others[name], tensor) for name, tensor in state_of(without).items())


# Balance


@pytest.mark.usefixtures("float64")
def test_a_balanced_term_pulls_as_hard_as_the_others_one_step_later() -> None:
    stepper = build(run_of("ae", objective=toy(weights={"loss/adversarial": 0.5})))
    tokenizer, objective = stepper.tokenizer, stepper.learners[1].module
    assert isinstance(objective, Objective)
    x = batch().pixels.double() / 255
    output = tokenizer(x)
    weight = tokenizer.decoder.last_layer.weight  # type: ignore[union-attr]
    terms = output.losses["loss/reconstruction"], *objective.terms(output, x, 0).values()
    norms = [
        torch.autograd.grad(term, weight, retain_graph=True)[0].norm().item() for term in terms
    ]
    first = stepper.step(0, [batch()]).means
    assert first["loss"] == pytest.approx(first["loss/reconstruction"])  # no factor is known yet
    second = stepper.step(1, [batch()]).means
    factor = norms[0] / norms[1]
    assert second["balance/loss/adversarial"] == pytest.approx(factor, rel=1e-9)
    expected = second["loss/reconstruction"] + 0.5 * factor * second["loss/adversarial"]
    assert second["loss"] == pytest.approx(expected, rel=1e-9)


def test_a_decoder_that_does_not_learn_balances_nothing() -> None:
    config = run_of("ae", init_from="somewhere", freeze=["decoder"])
    tokenizer = ImageTokenizer.from_config(config.tokenizer)
    tokenizer.decoder.requires_grad_(False)
    with pytest.raises(ConfigError, match="take the decoder out of"):
        Stepper(
            config.train,
            build_accelerator(config.train),
            tokenizer,
            build_objectives(config, "cpu"),
        )


# Checkpoints


def test_checkpoints_hold_every_learner_and_the_balance(tmp_path: Path) -> None:
    train(run_of(steps=2), tmp_path, progress=False)
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    assert load_file(checkpoint / "toy.safetensors").keys() == {
        *("layers.0.weight", "layers.0.bias", "layers.2.weight", "layers.2.bias")
    }
    assert "layers.0.weight/exp_avg" in load_file(checkpoint / "toy-optimizer.safetensors")
    state = json.loads((checkpoint / "state.json").read_text())
    assert state["learners"]["toy"] == {"scaler": None, "skipped": 0, "skipped_in_a_row": 0}
    assert state["balance"]["loss/adversarial"] > 0


# Failing


@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_what_one_learner_meets_leaves_all_as_they_were(
    monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    stepper = build(run_of())
    stepper.step(0, [batch()])
    before, balance = state_of(stepper), stepper.state()["balance"]
    mend = break_discriminator(stepper, monkeypatch, fault)
    with pytest.raises(TrainingError, match=r"(loss is|toy are) not finite at step 1 on"):
        stepper.step(1, [batch()])
    assert changed(before, state_of(stepper)) == set()
    assert stepper.state()["balance"] == balance
    mend()
    assert stepper.step(2, [batch()]).is_finite()


def break_discriminator(
    stepper: Stepper, monkeypatch: pytest.MonkeyPatch, fault: str
) -> Callable[[], None]:
    """Make the discriminator's own loss or gradients infinite until the function is called."""
    objective = stepper.learners[1].module
    forward = objective.forward

    def broken(*arguments: Any) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = forward(*arguments)
        if fault == "loss":
            return {name: loss * torch.nan for name, loss in losses.items()}
        for loss in losses.values():
            loss.register_hook(lambda gradient: gradient * torch.inf)
        return losses

    monkeypatch.setattr(objective, "forward", broken)
    return lambda: monkeypatch.setattr(objective, "forward", forward)


def test_an_overflow_of_one_learner_skips_all_and_costs_its_own_scale_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = run_of("ae")
    accelerator = build_accelerator(config.train)
    accelerator.scaler = GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    stepper = Stepper(
        config.train.model_copy(update={"precision": "fp16"}),
        accelerator,
        build_model(config, "cpu"),
        build_objectives(config, "cpu"),
    )
    stepper.step(0, [batch()])
    before = state_of(stepper)
    mend = break_discriminator(stepper, monkeypatch, "gradient")
    means = stepper.step(1, [batch()]).means
    assert changed(before, state_of(stepper)) == set()
    assert [learner.scale for learner in stepper.learners] == [2.0**10, 2.0**9]
    assert (means["optim/skipped_steps"], means["optim/toy/skipped_steps"]) == (0, 1)
    mend()
    stepper.step(2, [batch()])
    assert [learner.skipped_in_a_row for learner in stepper.learners] == [0, 0]
    assert "toy" in groups(changed(before, state_of(stepper)))


# Refusing


class NormalizingConfig(ToyDiscriminatorConfig):
    """A discriminator with batch statistics."""

    type: Literal["normalizing"] = "normalizing"  # type: ignore[assignment]

    def build(self, channels: int, image_size: tuple[int, int]) -> Objective:
        objective = ToyDiscriminator(channels, self)
        objective.layers.append(nn.BatchNorm2d(1))
        return objective


class CopyConfig(ToyDiscriminatorConfig):
    """A discriminator of another type whose terms have the same names."""

    type: Literal["copy"] = "copy"  # type: ignore[assignment]


class OptimizerLikeConfig(ToyDiscriminatorConfig):
    """A type that stands for something else in checkpoints."""

    type: Literal["optimizer"] = "optimizer"  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        ([toy(), toy()], "names a type twice: toy, toy"),
        ([{"type": "optimizer"}], "names optimizer, which is what a checkpoint calls"),
        ([{"type": "nothing"}], "unknown .*'nothing'.*toy"),
        ([toy(weight=1)], "weight"),
        ([{"type": "normalizing"}], "'normalizing' holds batch statistics"),
        ([toy(), {"type": "copy"}], "toy and copy yield 'loss/adversarial'"),
        (
            [toy(weights={"loss/adversary": 1.0})],
            "weights of toy names loss/adversary; the losses of this objective are: loss/adversar",
        ),
    ],
)
def test_objectives_that_cannot_work_are_refused(objectives: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_run(RunConfig.from_dict(tiny_values("ae", objectives=objectives)))


def test_a_run_without_objectives_says_nothing_of_them() -> None:
    assert "objectives" not in tiny_run("ae").to_dict()["train"]
    section = run_of().to_dict()["train"]["objectives"]
    assert section[0]["learner"]["optimizer"]["betas"] == [0.5, 0.9]


def test_an_objective_is_a_change_of_the_recipe_that_a_card_names() -> None:
    given = 'train.objectives=[{"type": "toy"}]'
    name, changes = find_recipe(load_recipe("ae-shapes", [given])) or ("", [])
    assert name == "ae-shapes"
    (change,) = changes
    assert load_recipe(name, changes) == load_recipe(name, [given])
    assert change.startswith('train.objectives=[{"weights": {}')
