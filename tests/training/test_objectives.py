"""Objectives beside the tokenizer's own terms: what they change, and several learners in a step."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from accelerate.state import AcceleratorState
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
from tiny_runs import contents, read_lines, run_two_ranks, tiny_run, tiny_values
from toy_objective import ToyDiscriminator, ToyDiscriminatorConfig

TIMED = {"metrics.jsonl", "tokenizer/evaluation.json"}


def toy(**changes: Any) -> dict[str, Any]:
    """The discriminator's section of a recipe."""
    optimizer = {"lr": 1e-3, "betas": [0.5, 0.9], "epsilon": 1e-4}
    return {"type": "toy", "learner": {"optimizer": optimizer}, **changes}


def run_of(system: str = "vqvae", *, objective: Any = None, **train: Any) -> RunConfig:
    changes = {"ema_decay": 0.9, "optimizer": {"lr": 1e-3, "epsilon": 1e-4}, **train}
    return tiny_run(system, objectives=[objective or toy()], **changes)


def build(config: RunConfig) -> Stepper:
    accelerator = build_accelerator(config.train)
    model = build_model(config, accelerator.device)
    return Stepper(config.train, accelerator, model, build_objectives(config, accelerator.device))


def groups(names: set[str]) -> set[str]:
    return {name.split("/")[0] for name in names}


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


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
    with_term, without = (
        build(config)
        for config in (
            run_of(objective=toy(weights=weights, balance=None)),
            run_of().model_copy(
                update={
                    "train": tiny_run(
                        "vqvae", ema_decay=0.9, optimizer={"lr": 1e-3, "epsilon": 1e-4}
                    ).train
                }
            ),
        )
    )
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


# Micro-batches, ranks, interruptions


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("system", ["ae", "vqvae", "dvae"])
def test_four_micro_batches_are_one_batch_of_all_for_every_learner(
    tmp_path: Path, system: str
) -> None:
    for accumulation in (1, 4):
        config = run_of(system, accumulation=accumulation, steps=6)
        train(config, tmp_path / str(accumulation), progress=False)
    compare(tmp_path / "1", tmp_path / "4")


def compare(one: Path, other: Path) -> None:
    """The files of all learners after six steps, to 1e-12."""
    pairs = zip(*(read_lines(run / "losses.jsonl") for run in (one, other)), strict=True)
    for first, second in pairs:
        assert first.keys() >= {"loss/adversarial", "loss/discriminator"}
        assert second == pytest.approx(first, abs=1e-12)
    for name in ("model", "average", "optimizer", "toy", "toy-optimizer"):
        path = f"checkpoints/step-00000006/{name}.safetensors"
        tensors, others = load_file(one / path), load_file(other / path)
        assert tensors
        assert tensors.keys() == others.keys()
        for key, tensor in tensors.items():
            torch.testing.assert_close(
                others[key], tensor, rtol=0, atol=1e-12, msg=lambda m, k=f"{name} {key}": f"{k} {m}"
            )


SCRIPT = """
import json, sys
from pathlib import Path

import torch

sys.path.insert(0, {tests!r})
import toy_objective
from imagetok.config import RunConfig, load_recipe
from imagetok.launch import collectives
from imagetok.training import train

torch.set_default_dtype(torch.float64)
folder = Path(sys.argv[1])
config = RunConfig.from_dict(json.loads((folder / "run.json").read_text()))
train(config, folder / "run", progress=False)
assert collectives.world_size() == 2
"""


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_two_ranks_equal_one_for_every_learner(tmp_path: Path) -> None:
    config = run_of(accumulation=2, steps=6)
    train(config, tmp_path / "one", progress=False)
    (tmp_path / "run.json").write_text(config.to_json())
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent.parent)))
    run_two_ranks(script, [str(tmp_path)])
    compare(tmp_path / "one", tmp_path / "run")


class HaltedError(Exception):
    """Stands for whatever ends a process."""


@pytest.mark.parametrize("start_step", [0, 4])
def test_a_run_of_several_learners_that_was_interrupted_ends_in_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start_step: int
) -> None:
    learner = {**toy()["learner"], "start_step": start_step}
    config = run_of(objective=toy(learner=learner), steps=8, checkpoint_every=3)
    train(config, tmp_path / "whole", progress=False)
    real = Stepper.step
    for last in (4, 7):

        def step(self: Stepper, number: int, *rest: Any, last: int = last) -> Any:
            if number == last:
                raise HaltedError
            return real(self, number, *rest)

        monkeypatch.setattr(Stepper, "step", step)
        with pytest.raises(HaltedError):
            train(config, tmp_path / "parts", resume=True, progress=False)
    monkeypatch.setattr(Stepper, "step", real)
    train(config, tmp_path / "parts", resume=True, progress=False)
    whole, parts = contents(tmp_path / "whole"), contents(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert {
        "checkpoints/step-00000008/toy.safetensors",
        "checkpoints/step-00000008/toy-optimizer.safetensors",
    } <= whole.keys()
    assert [name for name in whole if whole[name] != parts[name] and name not in TIMED] == []
    state = json.loads(whole["checkpoints/step-00000008/state.json"])
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
    AcceleratorState._reset_state()


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
