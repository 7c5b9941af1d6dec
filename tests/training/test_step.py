"""One step: micro-batches that add up, and steps that change nothing when they fail."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tiny_steps import batch, changed, state_of
from torch import Tensor

from imagetok import ImageTokenizer
from imagetok.bottlenecks import GumbelBottleneck
from imagetok.config import RunConfig
from imagetok.data import open_training
from imagetok.errors import TrainingError
from imagetok.outputs import Statistics
from imagetok.training import train
from imagetok.training.accelerator import build_accelerator
from imagetok.training.initial_model import initialize_bottleneck
from imagetok.training.step import Stepper, StepTotals
from tiny_runs import SYSTEMS, assert_close_runs, tiny_run
from toy_objective import toy

KINDS: Mapping[str, tuple[str, dict[str, Any]]] = {
    **{system: (system, {}) for system in SYSTEMS},
    "vqvae, restarts": ("vqvae", {"restart_below": 0.9, "decay": 0.5, "kmeans_init": False}),
    "vqvae, loss": ("vqvae", {"codebook": "loss", "code_dim": 3, "normalize": True}),
    "vqvae, rotation": ("vqvae", {"gradient": "rotation", "kmeans_init": False}),
    "dvae, hard": ("dvae", {"hard": True}),
    "dvae, splits": ("dvae", {"split_below": 0.9}),
    "dvae, hash": ("dvae", {"noise": "hash"}),
    **{f"{system}, two learners": (system, {}) for system in ("ae", "vqvae", "dvae")},
}


def build(config: RunConfig) -> Stepper:
    torch.manual_seed(config.train.seed)
    tokenizer = ImageTokenizer.from_config(config.tokenizer)
    initialize_bottleneck(tokenizer, open_training(config, tokenizer.preprocessor), config.train)
    return Stepper(config.train, build_accelerator(config.train), tokenizer)


def break_decoder(stepper: Stepper, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Make losses, or gradients alone, not finite."""
    nll = stepper.tokenizer.likelihood.nll

    def broken(params: Tensor, x: Tensor) -> Tensor:
        if fault == "gradient":
            params.register_hook(lambda gradient: gradient * torch.inf)
            return nll(params, x)
        return nll(params, x) * torch.nan

    monkeypatch.setattr(stepper.tokenizer.likelihood, "nll", broken)


# Micro-batches


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", KINDS)
def test_four_micro_batches_are_one_batch_of_all(tmp_path: Path, kind: str) -> None:
    system, bottleneck = KINDS[kind]
    changes: dict[str, Any] = {"bottleneck": bottleneck, "ema_decay": 0.9, "steps": 6}
    if "learners" in kind:
        changes |= {"objectives": [toy()], "optimizer": {"lr": 1e-3, "epsilon": 1e-4}}
    whole, parts = (tmp_path / "1", tmp_path / "4")
    for folder in (whole, parts):
        run = tiny_run(system, accumulation=int(folder.name), **changes)
        train(run, folder, progress=False)
    assert_close_runs(whole, parts, 1e-12 if "learners" in kind else 1e-9)


@pytest.mark.parametrize(
    ("kind", "table"),
    [("vqvae, restarts", "bottleneck.codebook"), ("dvae, splits", "bottleneck.logits.bias")],
)
def test_codes_start_anew_in_these_runs(kind: str, table: str) -> None:
    system, bottleneck = KINDS[kind]
    stepper = build(tiny_run(system, bottleneck=bottleneck, optimizer={"lr": 0.0}))
    before = state_of(stepper)[f"model/{table}"]
    statistics = stepper.step(0, [batch()]).statistics
    assert statistics is not None
    unused = statistics.sums["counts"] == 0
    moved = (state_of(stepper)[f"model/{table}"] != before).view(len(before), -1).any(1)
    assert moved[unused].any()  # a code that nothing chose moves by starting anew only


# A step


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_step_moves_every_weight_and_the_average(system: str) -> None:
    stepper = build(tiny_run(system, ema_decay=0.9))
    before = state_of(stepper)
    stepper.step(0, [batch()])
    moved = changed(before, state_of(stepper))
    assert moved >= {f"model/{name}" for name, _ in stepper.tokenizer.named_parameters()}
    assert "average/module.encoder.layers.0.weight" in moved
    if system == "vqvae":
        assert {"model/bottleneck.codebook", "average/module.bottleneck.codebook"} <= moved
        assert "model/bottleneck.running_counts" in moved


def test_the_gradient_is_clipped_to_the_norm_and_its_own_norm_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stepper = build(tiny_run("ae", optimizer={"lr": 1e-3, "clip_norm": 1e-3}))
    seen = []

    def remember(*_: object) -> None:
        grads = [p.grad for p in stepper.tokenizer.parameters() if p.grad is not None]
        seen.append(float(torch.cat([grad.flatten() for grad in grads]).norm()))

    monkeypatch.setattr(stepper.learner.optimizer, "step", remember)
    totals = stepper.step(0, [batch()])
    assert seen == [pytest.approx(1e-3, rel=1e-3)]
    assert totals.means["optim/grad_norm"] > 2e-3


def test_the_learning_rate_and_the_schedules_are_those_of_the_step() -> None:
    lr = {"type": "linear", "start": 1.0, "end": 0.0}
    weights = {"loss/kl": {"type": "linear", "start": 0, "end": 8, "steps": 4}}
    stepper = build(
        tiny_run(
            "dvae", optimizer={"lr": lr, "warmup_steps": 2}, loss_weights=weights, temperature=0.5
        )
    )
    stepper.step(0, [batch()])
    assert [group["lr"] for group in stepper.learner.optimizer.param_groups] == [0.5, 0.5]
    assert stepper.scheduled(2) == {
        "optim/lr": 0.5,
        "schedule/temperature": 0.5,
        "weight/loss/kl": 4.0,
    }


def test_the_psnr_is_taken_where_it_is_asked_for() -> None:
    stepper = build(tiny_run("vae"))
    assert "psnr" not in stepper.step(0, [batch()]).means
    assert 0 < stepper.step(1, [batch()], measure=True).means["psnr"] < 50


def test_a_kl_whose_weight_is_always_zero_is_told_and_takes_no_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stepper = build(tiny_run("dvae", loss_weights={"loss/kl": 0.0}))
    bottleneck = cast(GumbelBottleneck, stepper.tokenizer.bottleneck)
    kl = bottleneck._kl
    # The root of zero has an infinite gradient.
    monkeypatch.setattr(
        bottleneck, "_kl", lambda logs: kl(logs) + (logs - logs.detach()).sum().sqrt()
    )
    totals = stepper.step(0, [batch()])
    assert totals.means["loss/kl"] > 0
    assert totals.means["loss"] == totals.means["loss/reconstruction"]


# Failing


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_named_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
    system: str,
    fault: str,
) -> None:
    stepper = build(tiny_run(system, ema_decay=0.9))
    stepper.step(0, [batch()])
    before = state_of(stepper)
    with monkeypatch.context() as patch:
        break_decoder(stepper, patch, fault)
        with pytest.raises(TrainingError, match=f"the {fault}s? (is|are) not finite at step 7 on"):
            stepper.step(7, [batch()])
    assert changed(before, state_of(stepper)) == set()
    assert stepper.step(8, [batch()]).is_finite()  # nothing of the broken gradients is left


def test_an_infinite_loss_of_one_micro_batch_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    stepper = build(tiny_run("ae"))
    likelihood, calls = stepper.tokenizer.likelihood, iter([torch.inf, 1.0])
    nll = likelihood.nll
    monkeypatch.setattr(likelihood, "nll", lambda params, x: nll(params, x) * next(calls))
    with pytest.raises(TrainingError, match="the loss is not finite at step 0"):
        stepper.step(0, [batch(4), batch(4)])


# Its figures


def scalars(**values: float) -> dict[str, Tensor]:
    return {name.replace("_", "/"): torch.tensor(value) for name, value in values.items()}


def test_scalars_are_means_over_the_parts_in_float64_without_a_graph() -> None:
    totals, weight = StepTotals(2), torch.ones((), requires_grad=True)
    totals.add({"loss": torch.tensor(1.0, dtype=torch.float64), "loss/kl": weight * 4})
    totals.add({"loss": torch.tensor(1e-12, dtype=torch.float64)})
    totals.add(scalars(loss_kl=8.0, psnr=20.0))
    totals.merge()
    assert totals.means == {"loss": (1.0 + 1e-12) / 2, "loss/kl": 6.0, "psnr": 10.0}
    assert totals.losses().keys() == {"loss", "loss/kl"}
    assert totals.statistics is None
    assert weight.grad is None
    assert all(not value.requires_grad for value in totals._scalars.values())


def test_statistics_are_summed_and_samples_stay_in_their_order() -> None:
    totals = StepTotals(2)
    for part in (0.0, 10.0):
        sums = {"counts": torch.tensor([1.0, part]), "vectors": torch.tensor([[part], [2.0]])}
        samples = {"candidates": torch.tensor([[part + 1], [part + 2]])}
        totals.add(scalars(loss=0.0), Statistics(sums, samples))
    totals.merge()
    assert totals.statistics is not None
    assert totals.statistics.sums["counts"].tolist() == [2.0, 10.0]
    assert totals.statistics.sums["vectors"].tolist() == [[10.0], [4.0]]
    assert totals.statistics.samples["candidates"].flatten().tolist() == [1.0, 2.0, 11.0, 12.0]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["loss", "loss_kl", "posterior_entropy"])
def test_one_loss_that_is_not_finite_is_enough_and_a_metric_is_no_loss(
    name: str, value: float
) -> None:
    totals = StepTotals(2)
    totals.add(scalars(loss=1.0, loss_kl=1.0, posterior_entropy=1.0))
    totals.add(scalars(**{"loss": 1.0, "loss_kl": 1.0, "posterior_entropy": 1.0, name: value}))
    totals.merge()
    assert totals.is_finite() == (name == "posterior_entropy")
