"""Inference leaves no trace, and its surroundings leave none in it."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imagetok import ImageTokenizer
from imagetok.bottlenecks import DiscreteBottleneck, GaussianBottleneck
from imagetok.errors import InvalidValueError

Make = Callable[..., ImageTokenizer]
MakePictures = Callable[..., Tensor]
Infer = Callable[[ImageTokenizer, Any], dict[str, Tensor]]

HALVES = [torch.bfloat16, torch.float16]


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def surroundings(tokenizer: ImageTokenizer) -> dict[str, Any]:
    """All that a call might toggle."""
    return {
        "training": [module.training for module in tokenizer.modules()],
        "requires_grad": [parameter.requires_grad for parameter in tokenizer.parameters()],
        "gradients": [parameter.grad for parameter in tokenizer.parameters()],
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "random state": torch.get_rng_state().tolist(),
        "fingerprint": tokenizer.fingerprint,
        "dtype": tokenizer.dtype,
    }


# What inference does to its surroundings


def test_inference_toggles_nothing_and_keeps_no_graph(
    tokenizer: ImageTokenizer, floats: MakePictures, infer: Infer
) -> None:
    for parameter, wanted in zip(tokenizer.parameters(), itertools.cycle((True, False))):
        parameter.requires_grad_(wanted)
    for module, wanted in zip(tokenizer.modules(), itertools.cycle((True, False))):
        module.training = wanted
    weights = copy.deepcopy(tokenizer.state_dict())
    buffers = {name: buffer.clone() for name, buffer in tokenizer.named_buffers()}
    x = floats(tokenizer, 3).requires_grad_()
    before = surroundings(tokenizer)
    found = infer(tokenizer, x)
    assert surroundings(tokenizer) == before
    for name, tensor in found.items():
        assert not tensor.requires_grad, name
        assert not tensor.is_inference(), name
    assert_same(dict(tokenizer.state_dict()), weights)
    assert_same(dict(tokenizer.named_buffers()), buffers)


def test_draws_take_noise_from_their_generator_only(make: Make, floats: MakePictures) -> None:
    for name in ("dvae", "vae"):
        tokenizer = make(name)
        before = surroundings(tokenizer)
        generator = torch.Generator().manual_seed(0)
        if name == "dvae":
            tokenizer.sample_ids(floats(tokenizer, 2), generator=generator)
        else:
            tokenizer.sample(2, generator)
        assert surroundings(tokenizer) == before


# What the surroundings do to inference


def test_training_and_evaluation_mode_give_the_same(
    tokenizer: ImageTokenizer, floats: MakePictures, infer: Infer
) -> None:
    x = floats(tokenizer, 3)
    expected = infer(tokenizer.eval(), x)
    assert_same(infer(tokenizer.train(), x), expected)
    assert_same(infer(tokenizer.requires_grad_(False), x), expected)


@pytest.mark.parametrize("dtype", HALVES)
def test_the_callers_autocast_changes_nothing(
    tokenizer: ImageTokenizer, floats: MakePictures, infer: Infer, dtype: torch.dtype
) -> None:
    x = floats(tokenizer, 3)
    expected = infer(tokenizer, x)
    with torch.autocast("cpu", dtype=dtype):
        assert_same(infer(tokenizer, x), expected)


def test_grad_and_inference_mode_and_torchs_defaults_change_nothing(
    tokenizer: ImageTokenizer, pictures: MakePictures, infer: Infer
) -> None:
    batch = pictures(tokenizer, 3)
    expected = infer(tokenizer, batch)
    with torch.inference_mode():
        assert_same(infer(tokenizer, batch), expected)
    with torch.no_grad():
        assert_same(infer(tokenizer, batch), expected)
    with torch.device("meta"):
        assert_same(infer(tokenizer, batch), expected)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert_same(infer(tokenizer, batch), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_noise_and_calls_before_change_nothing(
    tokenizer: ImageTokenizer, floats: MakePictures, infer: Infer
) -> None:
    x = floats(tokenizer, 3)
    expected = infer(tokenizer, x)
    torch.manual_seed(12345)
    tokenizer(x, {"temperature": 0.5})
    if isinstance(tokenizer.bottleneck, GaussianBottleneck):
        tokenizer.sample(2)
    infer(tokenizer, x[:1])
    assert_same(infer(tokenizer, x), expected)


def test_eight_threads_at_once_give_what_one_gives(
    tokenizer: ImageTokenizer, pictures: MakePictures, infer: Infer
) -> None:
    batches = [pictures(tokenizer, 4, seed=seed) for seed in range(16)]
    expected = [infer(tokenizer, batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda batch: infer(tokenizer, batch), batches))
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


def test_copies_give_the_same(
    tokenizer: ImageTokenizer, floats: MakePictures, infer: Infer
) -> None:
    x = floats(tokenizer, 3)
    expected = infer(tokenizer, x)
    for copied in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert_same(infer(copied, x), expected)
        assert copied.fingerprint == tokenizer.fingerprint
        assert copied.config == tokenizer.config


# Narrow networks


@pytest.mark.parametrize("dtype", HALVES)
def test_half_networks_with_an_exact_bottleneck_stay_finite(
    tokenizer: ImageTokenizer, floats: MakePictures, infer: Infer, dtype: torch.dtype
) -> None:
    exact = copy.deepcopy(tokenizer)
    tokenizer.to(dtype)
    assert tokenizer.dtype == dtype
    for network in (tokenizer.encoder, tokenizer.decoder):
        assert {weight.dtype for weight in network.parameters()} <= {dtype}
    kept = [
        *tokenizer.bottleneck.state_dict().values(),
        *tokenizer.likelihood.state_dict().values(),
    ]
    assert {weight.dtype for weight in kept} <= {torch.float32}
    x = floats(tokenizer, 6)
    x[0], x[1] = 0, 1
    found, wanted = infer(tokenizer, x), infer(exact, x)
    for name, tensor in found.items():
        assert tensor.dtype == wanted[name].dtype, name
        assert tensor.isfinite().all(), name
    error = (found["reconstruction"] - wanted["reconstruction"]).abs().mean()
    assert error < 0.05
    if isinstance(tokenizer.bottleneck, DiscreteBottleneck):
        assert (found["ids"] == wanted["ids"]).double().mean() > 0.8
    output = tokenizer(x.to(dtype), {"temperature": 1 / 16})
    for name, loss in output.losses.items():
        assert loss.dtype == torch.float32, name
        assert loss.isfinite(), name
    assert output.x_hat.isfinite().all()


@pytest.mark.parametrize("name", ["vqvae", "dvae", "vae", "ae"])
@pytest.mark.parametrize("narrow", ["encoder", "decoder"])
def test_each_network_gets_its_input_in_its_own_dtype(
    make: Make, floats: MakePictures, name: str, narrow: str
) -> None:
    tokenizer = make(name)
    x = floats(tokenizer, 2)
    getattr(tokenizer, narrow).bfloat16()
    wanted = {
        network: torch.bfloat16 if network == narrow else torch.float32
        for network in ("encoder", "decoder")
    }
    found: dict[str, torch.dtype] = {}
    for network in wanted:
        getattr(tokenizer, network).register_forward_pre_hook(
            lambda _, inputs, network=network: found.update({network: inputs[0].dtype})
        )
    reconstruction = tokenizer.reconstruct(x, output="pt")
    assert reconstruction.dtype == torch.float32
    assert found == wanted
    found.clear()
    sum(tokenizer(x).losses.values()).backward()
    assert found == wanted


@pytest.mark.parametrize("name", ["vqvae", "dvae", "vae", "ae"])
def test_a_half_type_that_overflows_is_named_instead_of_giving_plausible_results(
    make: Make, floats: MakePictures, name: str
) -> None:
    tokenizer = make(name)
    x = floats(tokenizer, 2)
    latents = tokenizer.encode_latents(x)
    with torch.no_grad():
        list(tokenizer.encoder.parameters())[-1].add_(1e5)
        list(tokenizer.decoder.parameters())[-1].add_(1e5)
    for dtype in (torch.float32, torch.bfloat16):
        tokenizer.to(dtype).encode_latents(x)
        tokenizer.decode_latents(latents)
    tokenizer.half()
    refused: list[tuple[str, Callable[[], object]]] = [
        ("encoder", lambda: tokenizer.encode_latents(x)),
        ("encoder", lambda: tokenizer.reconstruct(x)),
        ("decoder", lambda: tokenizer.decode_latents(latents)),
    ]
    for network, call in refused:
        with pytest.raises(
            InvalidValueError,
            match=rf"{network}'s output is not finite in torch\.float16; .*dtype='float32'",
        ):
            call()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_weights_that_are_not_finite_are_named_instead_of_giving_plausible_results(
    make: Make, floats: MakePictures, value: float
) -> None:
    for name in ("vqvae", "dvae"):
        tokenizer = make(name)
        x = floats(tokenizer, 2)
        ids = tokenizer.encode(x)
        for network in ("encoder", "decoder"):
            broken = copy.deepcopy(tokenizer)
            with torch.no_grad():
                next(getattr(broken, network).parameters()).fill_(value)
            with pytest.raises(InvalidValueError, match=rf"{network}'s output is not finite"):
                broken.encode(x) if network == "encoder" else broken.decode(ids)


# Put together by hand


class Shuffle(nn.Module):
    """Pixels of 4 x 4 squares to channels: an encoder without weights."""

    factors = (4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pixel_unshuffle(x, 4)


def test_a_tokenizer_put_together_by_hand_works_even_without_weights_in_its_encoder(
    make: Make, pictures: MakePictures, infer: Infer
) -> None:
    model = make("ae", bottleneck={"type": "identity", "latent_dim": 48})
    hand_made = ImageTokenizer(
        model.preprocessor, Shuffle(), model.bottleneck, model.decoder, model.likelihood
    )
    batch = pictures(model, 2)
    assert hand_made.grid_size == (4, 6)
    latents = infer(hand_made, batch)["latents"]
    assert torch.equal(nn.functional.pixel_shuffle(latents, 4), batch.float() / 255)
    assert hand_made.half().dtype == torch.float16
    assert infer(hand_made, batch)["reconstruction"].isfinite().all()
