"""The training pass: losses at the design's scale, keyed noise, no state changed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from imagetok import ImageTokenizer, TokenizerOutput
from imagetok.bottlenecks import (
    DiscreteBottleneck,
    GaussianBottleneck,
    GumbelBottleneck,
    VectorQuantizer,
)
from imagetok.errors import InvalidTypeError

Make = Callable[..., ImageTokenizer]
MakePictures = Callable[..., Tensor]

KEYS = torch.tensor([11, 12, 13])
VALUES = {"temperature": 0.7}


def test_the_output_has_the_shapes_of_the_input(
    tokenizer: ImageTokenizer, floats: MakePictures
) -> None:
    x = floats(tokenizer, 3)
    output = tokenizer(x, VALUES, KEYS)
    assert isinstance(output, TokenizerOutput)
    assert output.x_hat.shape == x.shape
    assert not output.x_hat.requires_grad
    assert 0 <= float(output.x_hat.min()) < float(output.x_hat.max()) <= 1
    if isinstance(tokenizer.bottleneck, DiscreteBottleneck):
        assert output.ids is not None
        assert torch.equal(output.ids, tokenizer.encode(x))
        assert output.statistics is not None
    else:
        assert output.ids is None
        assert output.statistics is None


def test_a_system_has_its_own_losses(tokenizer: ImageTokenizer, floats: MakePictures) -> None:
    losses = tokenizer(floats(tokenizer, 3), VALUES, KEYS).losses
    expected = {"loss/reconstruction"}
    if isinstance(tokenizer.bottleneck, GaussianBottleneck | GumbelBottleneck):
        expected |= {"loss/kl"}
    if isinstance(tokenizer.bottleneck, VectorQuantizer):
        expected |= {"loss/commitment"}
        if not tokenizer.bottleneck.averaged:
            expected |= {"loss/codebook"}
    assert losses.keys() == expected
    for name, loss in losses.items():
        assert loss.shape == (), name
        assert loss.dtype == torch.float32, name
        assert loss.isfinite(), name


def test_reconstruction_and_kl_are_nats_a_pixel_and_channel(
    tokenizer: ImageTokenizer, floats: MakePictures
) -> None:
    x = floats(tokenizer, 3)
    losses = tokenizer(x, VALUES, KEYS).losses
    sizes = tokenizer.preprocessor.channels * math.prod(tokenizer.image_size)
    with torch.no_grad():
        z = tokenizer.encoder(x)
        inner = tokenizer.bottleneck(z, VALUES, KEYS)
        nats = tokenizer.likelihood.nll(tokenizer.decoder(inner.z_q), x)
    assert nats.shape == (3,)
    torch.testing.assert_close(losses["loss/reconstruction"], nats.mean() / sizes)
    if isinstance(tokenizer.bottleneck, GaussianBottleneck | GumbelBottleneck):
        torch.testing.assert_close(losses["loss/kl"], tokenizer.bottleneck.kl(z).mean() / sizes)
    for name in ("loss/commitment", "loss/codebook"):
        if name in losses:
            torch.testing.assert_close(losses[name], inner.losses[name])


def test_at_256_and_factor_8_the_kl_of_one_position_weighs_one_over_192(make: Make) -> None:
    usual = make("dvae").config
    assert usual is not None
    network = {"type": "dalle", "hidden_channels": 4, "num_groups": 4, "blocks_per_group": 1}
    options = {"image_size": [256, 256], "encoder": network, "decoder": network}
    tokenizer = ImageTokenizer.from_config(type(usual).from_dict(usual.to_dict() | options))
    x = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = tokenizer(x).losses["loss/kl"]
        log_probs = tokenizer.encode_distribution(x)
    assert isinstance(log_probs, Tensor)
    assert log_probs.shape == (1, 32, 32, 32)
    per_position = (log_probs.exp() * (log_probs + math.log(32))).sum(dim=-1).mean()
    torch.testing.assert_close(6.6 * loss, 6.6 / 192 * per_position)


def test_a_batch_and_its_repetition_lose_the_same(
    tokenizer: ImageTokenizer, floats: MakePictures
) -> None:
    x = floats(tokenizer, 3)
    once, twice = (
        tokenizer(x, VALUES, KEYS),
        tokenizer(x.repeat(2, 1, 1, 1), VALUES, KEYS.repeat(2)),
    )
    for name, loss in once.losses.items():
        torch.testing.assert_close(
            twice.losses[name], loss, msg=lambda text, n=name: f"{n}: {text}"
        )
    torch.testing.assert_close(twice.x_hat[:3], once.x_hat)
    torch.testing.assert_close(twice.x_hat[3:], once.x_hat)


def test_noise_belongs_to_the_sample_and_its_key(
    tokenizer: ImageTokenizer, floats: MakePictures
) -> None:
    x = floats(tokenizer, 3)
    output = tokenizer(x, VALUES, KEYS)
    torch.manual_seed(99)
    assert torch.equal(tokenizer(x, VALUES, KEYS).x_hat, output.x_hat)
    order = torch.tensor([2, 0, 1])
    permuted = tokenizer(x[order], VALUES, KEYS[order])
    torch.testing.assert_close(permuted.x_hat, output.x_hat[order])
    alone = tokenizer(x[1:2], VALUES, KEYS[1:2])
    torch.testing.assert_close(alone.x_hat, output.x_hat[1:2])
    other = tokenizer(x, VALUES, KEYS + 1).x_hat
    noisy = isinstance(tokenizer.bottleneck, GaussianBottleneck | GumbelBottleneck)
    assert torch.equal(other, output.x_hat) != noisy


def test_without_keys_noise_is_torchs_own(make: Make, floats: MakePictures) -> None:
    tokenizer = make("vae")
    x = floats(tokenizer, 3)
    torch.manual_seed(4)
    expected = tokenizer(x).x_hat
    assert not torch.equal(tokenizer(x).x_hat, expected)
    torch.manual_seed(4)
    assert torch.equal(tokenizer(x).x_hat, expected)


def test_the_training_pass_changes_no_state(
    tokenizer: ImageTokenizer, floats: MakePictures
) -> None:
    x = floats(tokenizer, 3)
    before: dict[str, Any] = copy.deepcopy(
        {**tokenizer.state_dict(), **dict(tokenizer.named_buffers())}
    )
    random_state = torch.get_rng_state()
    for _ in range(2):
        sum(tokenizer(x, VALUES, KEYS).losses.values()).backward()
    assert torch.equal(torch.get_rng_state(), random_state)
    after = {**tokenizer.state_dict(), **dict(tokenizer.named_buffers())}
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]), name


def test_every_weight_gets_a_gradient(tokenizer: ImageTokenizer, floats: MakePictures) -> None:
    sum(tokenizer(floats(tokenizer, 3), VALUES, KEYS).losses.values()).backward()
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_losses_stay_in_float32(
    tokenizer: ImageTokenizer, floats: MakePictures, dtype: torch.dtype
) -> None:
    x = floats(tokenizer, 3)
    exact = tokenizer(x, VALUES, KEYS).losses
    with torch.autocast("cpu", dtype=dtype):
        losses = tokenizer(x, VALUES, KEYS).losses
    for name, loss in losses.items():
        assert loss.dtype == torch.float32, name
        torch.testing.assert_close(loss, exact[name], rtol=0.2, atol=0.02)


def test_sides_other_than_the_configs_train_as_well(make: Make, floats: MakePictures) -> None:
    for name in ("vqvae", "dvae", "vae"):
        tokenizer = make(name)
        x = floats(tokenizer, 2, size=(8, 12))
        output = tokenizer(x, VALUES)
        assert output.x_hat.shape == x.shape
        assert all(loss.isfinite() for loss in output.losses.values())


@pytest.mark.parametrize("image", [Image.new("RGB", (24, 16)), "photo.png", torch.rand(3, 16, 24)])
def test_calling_a_tokenizer_with_an_image_names_encode(make: Make, image: object) -> None:
    with pytest.raises(InvalidTypeError, match=r"use tok\.encode"):
        make("vqvae")(image)
