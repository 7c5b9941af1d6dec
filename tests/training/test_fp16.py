"""float16: steps whose gradients overflow are left out on all ranks alike, counted, and bounded.

Accelerate offers float16 on GPUs only; torch's autocast and scaler know the CPU too, so that the
tests put them in place of what a GPU would get.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny_steps import batch, changed, state_of
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from imagetok import ImageTokenizer
from imagetok.errors import TrainingError
from imagetok.training.accelerator import build_accelerator
from imagetok.training.step import MAX_SKIPPED_STEPS, Stepper
from tiny_runs import SYSTEMS, run_two_ranks, tiny_run

SCALE = 2.0**10


def build(system: str, scale: float = SCALE) -> Stepper:
    config = tiny_run(system, ema_decay=0.9)
    accelerator = build_accelerator(config.train)
    AcceleratorState._shared_state["_mixed_precision"] = "fp16"
    accelerator.native_amp = True
    accelerator.scaler = GradScaler("cpu", init_scale=scale, growth_interval=1000)
    torch.manual_seed(0)
    tokenizer = ImageTokenizer.from_config(config.tokenizer)
    return Stepper(config.train.model_copy(update={"precision": "fp16"}), accelerator, tokenizer)


def overflow(stepper: Stepper, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make gradients infinite until the returned function is called."""
    likelihood = stepper.tokenizer.likelihood
    nll = likelihood.nll

    def broken(params: Tensor, x: Tensor) -> Tensor:
        params.register_hook(lambda gradient: gradient * torch.inf)
        return nll(params, x)

    monkeypatch.setattr(likelihood, "nll", broken)
    return lambda: monkeypatch.setattr(likelihood, "nll", nll)


@pytest.mark.parametrize("system", SYSTEMS)
def test_networks_run_in_float16_and_the_rest_in_float32(
    system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepper = build(system)
    seen = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_: object, __: object, output: object) -> None:
            value = output if isinstance(output, Tensor) else output.z_q  # type: ignore[attr-defined]
            seen[name] = value.dtype

        return hook

    for name in ("encoder", "bottleneck", "decoder"):
        stepper.tokenizer.get_submodule(name).register_forward_hook(note(name))
    losses = [stepper.step(step, [batch()]).means["loss"] for step in range(4)]
    assert seen["encoder"] == seen["decoder"] == torch.float16
    assert seen["bottleneck"] == torch.float32
    assert all(p.dtype == torch.float32 for p in stepper.tokenizer.parameters())
    assert losses[-1] < losses[0]


def test_a_step_that_overflows_changes_nothing_and_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stepper = build("vqvae")
    stepper.step(0, [batch()])
    before = state_of(stepper)
    mend = overflow(stepper, monkeypatch)
    for count in (1, 2):
        means = stepper.step(count, [batch()]).means
        assert means["optim/skipped_steps"] == stepper.learner.skipped_in_a_row == count
    assert changed(before, state_of(stepper)) == set()
    assert stepper.learner.scale == SCALE / 4
    mend()
    assert stepper.step(3, [batch()]).means["optim/skipped_steps"] == 2
    assert stepper.learner.skipped_in_a_row == 0
    assert not torch.equal(
        stepper.tokenizer.bottleneck.codebook, before["model/bottleneck.codebook"]
    )


def test_too_many_of_them_in_a_row_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    stepper = build("ae", scale=2.0**60)
    overflow(stepper, monkeypatch)
    for step in range(MAX_SKIPPED_STEPS - 1):
        stepper.step(step, [batch()])
    before = state_of(stepper)
    with pytest.raises(TrainingError, match=r"at step 19 on every rank \(20 in a row\)"):
        stepper.step(MAX_SKIPPED_STEPS - 1, [batch()])
    assert changed(before, state_of(stepper)) == set()


TWO_RANKS = """
import json, sys
from pathlib import Path

import pytest

sys.path[:0] = {paths}
import test_fp16 as here
from imagetok.launch import collectives


def main():
    stepper = here.build("vqvae")
    assert collectives.world_size() == 2
    assert stepper.accelerator.num_processes == 2
    patch = pytest.MonkeyPatch()
    told = []
    for step in range(3):
        mend = lambda: None
        if step == 1 and collectives.rank() == 1:
            mend = here.overflow(stepper, patch)
        means = stepper.step(step, [here.batch()]).means
        mend()
        weight = stepper.tokenizer.decoder.state_dict()["layers.0.weight"].double().sum().item()
        told.append([means["optim/skipped_steps"], stepper.learner.scale, weight])
    (Path(sys.argv[1]) / f"{{collectives.rank()}}.json").write_text(json.dumps(told))


main()  # what it leaves behind would keep threads of the group alive at the end of the process
"""


@pytest.mark.slow
def test_an_overflow_of_one_rank_is_left_out_by_all(tmp_path: Path) -> None:
    here = Path(__file__).parent
    script = tmp_path / "script.py"
    script.write_text(TWO_RANKS.format(paths=[str(here), str(here.parent)]))
    run_two_ranks(script, [str(tmp_path)])
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert told[0] == told[1]
    first, second, third = told[0]
    assert [first[0], second[0], third[0]] == [0, 1, 1]
    assert [first[1], second[1], third[1]] == [SCALE, SCALE / 2, SCALE / 2]
    assert first[2] == second[2] != third[2]
