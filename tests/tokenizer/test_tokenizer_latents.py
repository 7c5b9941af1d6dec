"""Latents, posteriors, samples and walks, and what each system refuses for want of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from imagetok import GaussianPosterior, ImageTokenizer
from imagetok.bottlenecks import DiscreteBottleneck, GaussianBottleneck, GumbelBottleneck
from imagetok.bottlenecks.gaussian import LOG_VAR_RANGE
from imagetok.errors import (
    ImagetokError,
    InvalidTypeError,
    InvalidValueError,
    NoPosteriorError,
    NotContinuousError,
    NotDiscreteError,
)
from imagetok.tokenizer import BATCH_SIZE

Make = Callable[..., ImageTokenizer]
MakePictures = Callable[..., Tensor]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Latents


def test_latents_mirror_their_images(tokenizer: ImageTokenizer, floats: MakePictures) -> None:
    x = floats(tokenizer, 3)
    shape = (tokenizer.bottleneck.latent_dim, *tokenizer.grid_size)
    latents = tokenizer.encode_latents(x)
    assert latents.shape == (3, *shape)
    assert latents.dtype == torch.float32
    assert tokenizer.encode_latents(x[0]).shape == shape
    assert tokenizer.encode_latents([]).shape == (0, *shape)
    decoded = tokenizer.decode_latents(latents, output="pt")
    assert torch.equal(decoded, tokenizer.reconstruct(x, output="pt"))
    assert tokenizer.decode_latents(latents[0], output="pt").shape == x[0].shape
    assert isinstance(tokenizer.decode_latents(latents[0]), Image.Image)
    assert len(tokenizer.decode_latents(latents)) == 3
    assert tokenizer.decode_latents(latents[:0]) == []


def test_codes_of_the_encoders_output_are_the_ids_and_latents_of_the_images(
    tokenizer: ImageTokenizer, floats: MakePictures
) -> None:
    x = floats(tokenizer, 3)
    z = tokenizer.encode_pixels(x).detach()
    ids, z_q = tokenizer.choose_codes(z)
    assert torch.equal(z_q, tokenizer.encode_latents(x))
    if tokenizer.is_discrete:
        assert ids is not None
        assert ids.dtype == torch.int64
        assert torch.equal(ids, tokenizer.encode(x))
        assert torch.equal(ids, tokenizer.choose_ids(z))
    else:
        assert ids is None
        with pytest.raises(NotDiscreteError, match="continuous and has no ids"):
            tokenizer.choose_ids(z)


def test_codes_are_refused_of_an_output_of_another_shape(tokenizer: ImageTokenizer) -> None:
    with pytest.raises(InvalidValueError, match=r"takes z of shape \(B, "):
        tokenizer.choose_codes(torch.zeros(1, tokenizer.bottleneck.in_channels + 1, 2, 2))


def test_latents_of_a_discrete_model_are_the_codes_of_its_ids(
    discrete: ImageTokenizer, floats: MakePictures
) -> None:
    x = floats(discrete, 3)
    assert isinstance(discrete.bottleneck, DiscreteBottleneck)
    codes = discrete.bottleneck.lookup(discrete.encode(x))
    assert torch.equal(discrete.encode_latents(x), codes)


def test_latents_of_other_float_types_are_taken(
    continuous: ImageTokenizer, floats: MakePictures
) -> None:
    latents = continuous.encode_latents(floats(continuous, 2))
    expected = continuous.decode_latents(latents, output="pt")
    assert torch.equal(continuous.decode_latents(latents.double(), output="pt"), expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda z: z[0, 0], InvalidValueError, r"shape \(4, 6\) do not fit: expected \(3, h, w\)"),
        (lambda z: z[:, :2], InvalidValueError, r"shape \(2, 2, 4, 6\) do not fit"),
        (lambda z: z[:, :, :0], InvalidValueError, r"at least 1, got \(0, 6\)"),
        (lambda z: z / 0, InvalidValueError, "not finite"),
        (lambda z: z.long(), InvalidTypeError, r"float tensor, got torch\.int64"),
        (lambda z: z.numpy(), InvalidTypeError, "float tensor, got ndarray"),
        (lambda z: z.tolist(), InvalidTypeError, "float tensor, got list"),
    ],
)
def test_what_is_not_latents_is_refused_in_words(
    make: Make,
    floats: MakePictures,
    change: Callable[[Tensor], Any],
    error: type[Exception],
    message: str,
) -> None:
    tokenizer = make("ae")
    wrong = change(tokenizer.encode_latents(floats(tokenizer, 2)))
    with pytest.raises(error, match=message):
        tokenizer.decode_latents(wrong)


def test_latents_of_other_grids_follow_the_network(make: Make, floats: MakePictures) -> None:
    tokenizer = make("vae")
    x = floats(tokenizer, 2, size=(8, 32))
    latents = tokenizer.encode_latents(x)
    assert latents.shape == (2, 3, 2, 8)
    assert tokenizer.decode_latents(latents, output="pt").shape == x.shape
    with pytest.raises(InvalidValueError, match=r"from a grid of \(1, 1\); got a grid of \(1, 2\)"):
        make("ae-mlp").decode_latents(torch.zeros(5, 1, 2))


# What a system has not


def test_ids_of_a_continuous_model_are_refused(
    continuous: ImageTokenizer, floats: MakePictures
) -> None:
    x = floats(continuous, 1)
    asked: list[Callable[[], object]] = [
        lambda: continuous.encode(x),
        lambda: continuous.decode([0]),
        lambda: continuous.codebook_size,
    ]
    for ask in asked:
        with pytest.raises(NotDiscreteError, match="use encode_latents and decode_latents"):
            ask()
    assert issubclass(NotDiscreteError, TypeError)


def test_a_posterior_is_refused_where_there_is_none(
    tokenizer: ImageTokenizer, floats: MakePictures
) -> None:
    x = floats(tokenizer, 1)
    asked: dict[str, tuple[Callable[[], object], type]] = {
        "encode_distribution": (
            lambda: tokenizer.encode_distribution(x),
            GaussianBottleneck | GumbelBottleneck,
        ),
        "sample_ids": (lambda: tokenizer.sample_ids(x), GumbelBottleneck),
        "sample": (lambda: tokenizer.sample(1), GaussianBottleneck),
    }
    for ask, kinds in asked.values():
        if isinstance(tokenizer.bottleneck, kinds):
            ask()
        else:
            with pytest.raises(NoPosteriorError, match=type(tokenizer.bottleneck).__name__):
                ask()


def test_a_missing_posterior_is_said_before_arguments_are_looked_at(
    tokenizer: ImageTokenizer,
) -> None:
    if isinstance(tokenizer.bottleneck, GaussianBottleneck | GumbelBottleneck):
        return
    asked: tuple[Callable[[], object], ...] = (
        lambda: tokenizer.encode_distribution("missing.png"),
        lambda: tokenizer.sample_ids("missing.png", temperature=-1.0),
        lambda: tokenizer.sample(-1),
    )
    for ask in asked:
        with pytest.raises(NoPosteriorError, match=type(tokenizer.bottleneck).__name__):
            ask()


def test_a_discrete_model_has_nothing_to_walk_through(
    discrete: ImageTokenizer, floats: MakePictures
) -> None:
    x = floats(discrete, 2)
    with pytest.raises(NotContinuousError, match="nothing between its codes"):
        discrete.interpolate(x[0], x[1])


# The VAE


def test_the_gaussian_posterior_is_what_the_encoder_says(
    vae: ImageTokenizer, floats: MakePictures
) -> None:
    x = floats(vae, BATCH_SIZE + 1)
    posterior = vae.encode_distribution(x)
    assert isinstance(posterior, GaussianPosterior)
    mean, log_var = posterior
    with torch.no_grad():
        z = torch.cat([vae.encoder(part) for part in x.split(BATCH_SIZE)])
    assert torch.equal(mean, z[:, : z.shape[1] // 2])
    assert torch.equal(log_var, z[:, z.shape[1] // 2 :].clamp(*LOG_VAR_RANGE))
    assert torch.equal(vae.encode_latents(x), mean)
    one_mean, one_log_var = vae.encode_distribution(x[0])
    torch.testing.assert_close(one_mean, mean[0])
    torch.testing.assert_close(one_log_var, log_var[0])


def test_samples_are_decoded_standard_normal_latents(vae: ImageTokenizer) -> None:
    samples = vae.sample(3, seeded(), output="pt")
    assert isinstance(samples, Tensor)
    assert samples.shape == (3, vae.preprocessor.channels, *vae.image_size)
    shape = (3, vae.bottleneck.latent_dim, *vae.grid_size)
    latents = torch.randn(shape, generator=seeded())
    assert torch.equal(vae.decode_latents(latents, output="pt"), samples)
    assert torch.equal(vae.sample(3, seeded(), output="pt"), samples)
    assert not torch.equal(vae.sample(3, seeded(1), output="pt"), samples)
    made = vae.sample(1)
    assert isinstance(made, list)
    assert made[0].size == vae.image_size[::-1]
    assert vae.sample(0) == []


def test_samples_follow_torchs_seed_and_not_its_default_dtype(make: Make) -> None:
    tokenizer = make("vae")
    torch.manual_seed(5)
    expected = tokenizer.sample(2, output="pt")
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(5)
        found = tokenizer.sample(2, output="pt")
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("count", [-1, 1.5, "2", True, None])
def test_a_number_of_samples_that_is_none_is_refused(make: Make, count: Any) -> None:
    with pytest.raises(ImagetokError, match="num_images must be"):
        make("vae").sample(count)


# Walks


def test_a_walk_starts_and_ends_at_the_reconstructions(
    continuous: ImageTokenizer, floats: MakePictures
) -> None:
    x = floats(continuous, 2)
    walk = continuous.interpolate(x[0], x[1], 5, output="pt")
    assert isinstance(walk, Tensor)
    assert walk.shape == (5, *x[0].shape)
    ends = continuous.reconstruct(x, output="pt")
    assert isinstance(ends, Tensor)
    torch.testing.assert_close(walk[[0, -1]], ends)
    a, b = continuous.encode_latents(x)
    middle = continuous.decode_latents((a + b) / 2, output="pt")
    torch.testing.assert_close(walk[2], middle)
    back = continuous.interpolate(x[1], x[0], 5, output="pt")
    torch.testing.assert_close(back, walk.flip(0))


def test_a_walk_is_a_list_of_images_however_long(make: Make, pictures: MakePictures) -> None:
    tokenizer = make("ae")
    a, b = (Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pictures(tokenizer, 2))
    walk = tokenizer.interpolate(a, b, BATCH_SIZE + 2)
    assert isinstance(walk, list)
    assert [picture.size for picture in walk] == [(24, 16)] * (BATCH_SIZE + 2)
    assert len(tokenizer.interpolate(a, b)) == 8
    ends = tokenizer.interpolate(a, b, 2)
    assert isinstance(ends, list)
    assert np.array_equal(np.asarray(ends[0]), np.asarray(walk[0]))


@pytest.mark.parametrize("steps", [1, 0, -3, 2.0, "3", True, None])
def test_a_number_of_steps_that_is_none_is_refused(
    make: Make, floats: MakePictures, steps: Any
) -> None:
    tokenizer = make("ae")
    with pytest.raises(ImagetokError, match="steps must be"):
        tokenizer.interpolate(*floats(tokenizer, 2), steps)


def test_a_walk_goes_from_one_image_to_one_of_the_same_grid(
    make: Make, floats: MakePictures
) -> None:
    tokenizer = make("ae")
    x, small = floats(tokenizer, 2), floats(tokenizer, 1, size=(8, 8))[0]
    for a, b in ((x, x[0]), (x, x), (x[0], small)):
        with pytest.raises(InvalidValueError, match="two single images of one grid"):
            tokenizer.interpolate(a, b)


# The dVAE


def test_log_probabilities_are_those_of_the_logits(
    dvae: ImageTokenizer, floats: MakePictures
) -> None:
    x = floats(dvae, BATCH_SIZE + 1)
    log_probs = dvae.encode_distribution(x)
    assert isinstance(log_probs, Tensor)
    assert log_probs.shape == (len(x), *dvae.grid_size, dvae.codebook_size)
    total = log_probs.exp().sum(dim=-1)
    torch.testing.assert_close(total, torch.ones_like(total))
    assert isinstance(dvae.bottleneck, GumbelBottleneck)
    with torch.no_grad():
        logits = dvae.bottleneck.logits(dvae.encoder(x).movedim(1, -1)).double()
    expected = logits - logits.logsumexp(dim=-1, keepdim=True)
    torch.testing.assert_close(log_probs.double(), expected, atol=1e-4, rtol=1e-5)
    assert torch.equal(log_probs.argmax(dim=-1), dvae.encode(x))
    one = dvae.encode_distribution(x[0])
    assert isinstance(one, Tensor)
    torch.testing.assert_close(one, log_probs[0], atol=1e-4, rtol=1e-5)


def test_drawn_ids_have_the_shapes_of_encoded_ones_and_follow_the_generator(
    dvae: ImageTokenizer, pictures: MakePictures
) -> None:
    batch = pictures(dvae, BATCH_SIZE + 2)
    drawn = dvae.sample_ids(batch, generator=seeded())
    assert drawn.shape == (BATCH_SIZE + 2, *dvae.grid_size)
    assert drawn.dtype == torch.int64
    assert torch.equal(dvae.sample_ids(batch, generator=seeded()), drawn)
    assert not torch.equal(dvae.sample_ids(batch, generator=seeded(1)), drawn)
    assert dvae.sample_ids(batch[0]).shape == dvae.grid_size
    assert dvae.sample_ids([]).shape == (0, *dvae.grid_size)
    torch.manual_seed(7)
    expected = dvae.sample_ids(batch)
    torch.manual_seed(7)
    assert torch.equal(dvae.sample_ids(batch), expected)


def test_temperature_zero_and_nearly_zero_give_the_encoded_ids(
    dvae: ImageTokenizer, pictures: MakePictures
) -> None:
    batch = pictures(dvae, 4)
    for temperature in (0, 0.0, np.float32(0), 1e-7):
        assert torch.equal(dvae.sample_ids(batch, temperature), dvae.encode(batch))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_drawn_ids_have_the_frequencies_of_the_tempered_posterior(
    make: Make, floats: MakePictures, temperature: float
) -> None:
    tokenizer = make("dvae-mlp")
    draws = 6400
    x = floats(tokenizer, 1)
    log_probs = tokenizer.encode_distribution(x)
    assert isinstance(log_probs, Tensor)
    expected = (log_probs / temperature).softmax(dim=-1).flatten()
    ids = tokenizer.sample_ids(x.expand(draws, -1, -1, -1), temperature, seeded())
    found = torch.bincount(ids.flatten(), minlength=32) / draws
    deviation = (expected * (1 - expected) / draws).sqrt() + 1 / draws
    assert ((found - expected).abs() < 5 * deviation).all()
    assert (expected > 0.01).sum() > 2


@pytest.mark.parametrize("temperature", [-0.1, math.inf, math.nan, "1", None, 1j])
def test_a_temperature_that_is_none_is_refused(
    make: Make, floats: MakePictures, temperature: Any
) -> None:
    tokenizer = make("dvae")
    with pytest.raises(ImagetokError, match="temperature must be"):
        tokenizer.sample_ids(floats(tokenizer, 1), temperature)
