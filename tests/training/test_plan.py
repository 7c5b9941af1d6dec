"""A run counted before it is made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from imagetok import ImageTokenizer
from imagetok.config import RunConfig, load_recipe, recipe_names
from imagetok.errors import ConfigError
from imagetok.training.plan import plan_run
from tiny_runs import SYSTEMS, tiny_run, tiny_values


class RealTensors(TorchDispatchMode):
    """Remembers the largest tensor that is made with memory of its own."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and not leaf.is_meta:
                self.largest = max(self.largest, leaf.numel())
        return result


@pytest.mark.parametrize("system", SYSTEMS)
def test_parameters_are_those_of_the_model(system: str) -> None:
    config = tiny_run(system)
    plan = plan_run(config)
    model = ImageTokenizer.from_config(config.tokenizer)
    assert plan.parameters == {
        name: sum(tensor.numel() for tensor in getattr(model, name).state_dict().values())
        for name in ("encoder", "bottleneck", "decoder", "likelihood")
    }
    assert sum(plan.parameters.values()) == sum(t.numel() for t in model.state_dict().values())
    assert plan.grid_size == model.grid_size == (4, 4)
    assert plan.image_size == (16, 16)
    assert plan.codebook_size == (12 if system in ("vqvae", "dvae") else None)


@pytest.mark.parametrize("recipe", recipe_names())
def test_nothing_of_any_size_is_allocated(recipe: str) -> None:
    with RealTensors() as real:
        plan = plan_run(load_recipe(recipe))
    assert sum(plan.parameters.values()) > 50_000
    assert real.largest < 10_000


def test_the_dvae_of_dalle_has_the_published_grid_and_size() -> None:
    plan = plan_run(load_recipe("dvae-dalle"))
    assert plan.grid_size == (32, 32)
    assert plan.codebook_size == 8192
    assert 90e6 < sum(plan.parameters.values()) < 105e6
    assert plan.state_bytes > 16 * sum(plan.parameters.values())


def test_activations_grow_with_the_area_of_an_image() -> None:
    small, large = (plan_run(tiny_run("ae", size=size)) for size in (32, 128))
    assert large.activation_bytes / small.activation_bytes == pytest.approx(16, rel=0.02)
    assert small.state_bytes == large.state_bytes


def test_activations_are_not_weights() -> None:
    values = tiny_values("ae")
    values["tokenizer"]["encoder"] = values["tokenizer"]["decoder"] = {"type": "mlp"}
    plan = plan_run(RunConfig.from_dict(values))
    pixels = 3 * 16 * 16
    assert plan.parameters["encoder"] == pixels * 4 + 4
    # The centred image, the error before its square, latents and a few scalars.
    assert 2 * pixels * 4 <= plan.activation_bytes < 5 * pixels * 4


def test_only_a_micro_batch_is_in_memory_at_once() -> None:
    assert plan_run(tiny_run("ae", batch_size=12)).images == 12
    assert plan_run(tiny_run("ae", batch_size=12, accumulation=3)).images == 4


def test_averaged_weights_cost_memory() -> None:
    bare, averaged = plan_run(tiny_run("ae")), plan_run(tiny_run("ae", ema_decay=0.9))
    weights = 4 * sum(bare.parameters.values())
    assert (bare.state_bytes, averaged.state_bytes) == (4 * weights, 5 * weights)


def test_a_loss_weight_without_a_loss_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"names loss/kl; .* are: loss/reconstruction$"):
        plan_run(tiny_run("ae", loss_weights={"loss/kl": 1.0}))
    assert plan_run(tiny_run("vae", loss_weights={"loss/kl": 1.0}))


def test_recomputed_activations_are_not_kept() -> None:
    values = tiny_values("ae")
    values["tokenizer"]["encoder"] = values["tokenizer"]["decoder"] = {
        "type": "dalle",
        "hidden_channels": 16,
        "num_groups": 3,
    }
    plain = plan_run(RunConfig.from_dict(values))
    values["train"]["gradient_checkpointing"] = True
    recomputed = plan_run(RunConfig.from_dict(values))
    assert recomputed.activation_bytes < 0.8 * plain.activation_bytes
    assert recomputed.state_bytes == plain.state_bytes


def test_frozen_weights_need_neither_gradients_nor_moments_nor_activations() -> None:
    plain = plan_run(tiny_run("dvae", ema_decay=0.9))
    frozen = plan_run(
        tiny_run("dvae", ema_decay=0.9, init_from="folder", freeze=["encoder", "bottleneck"])
    )
    assert frozen.parameters == plain.parameters
    kept = frozen.parameters["encoder"] + frozen.parameters["bottleneck"]
    assert plain.state_bytes - frozen.state_bytes == 3 * 4 * kept
    assert frozen.activation_bytes < 0.7 * plain.activation_bytes


def test_averaged_codes_have_no_gradients_and_no_moments() -> None:
    learnt = plan_run(tiny_run("vqvae", bottleneck={"codebook": "loss"}))
    averaged = plan_run(tiny_run("vqvae"))
    assert learnt.state_bytes - averaged.state_bytes == 3 * 4 * learnt.parameters["bottleneck"]
