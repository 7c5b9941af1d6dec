from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, OneHotCategorical, kl_divergence

from imagetok.bottlenecks import GumbelBottleneck
from imagetok.config import ScheduleConfig
from imagetok.errors import InvalidValueError
from imagetok.keys import generator, gumbel, make_keys

KEYS = torch.tensor([5, 6, 7])
CPU = torch.device("cpu")


def build(codebook_size: int = 12, hard: bool = False) -> tuple[GumbelBottleneck, Tensor]:
    """A bottleneck with peaked logits, and an encoder output (3, 6, 4, 2)."""
    torch.manual_seed(0)
    bottleneck = GumbelBottleneck(6, codebook_size, 5, hard)
    with torch.no_grad():
        bottleneck.logits.weight.mul_(4)
    return bottleneck, torch.randn(3, 6, 4, 2)


def logits_of(bottleneck: GumbelBottleneck, z: Tensor) -> Tensor:
    """Logits by hand, (B, h, w, K)."""
    return z.movedim(1, -1) @ bottleneck.logits.weight.T + bottleneck.logits.bias


def with_logits(logits: Tensor) -> tuple[GumbelBottleneck, Tensor]:
    """A bottleneck whose logits are the encoder's output, here (1, K, 1, 1)."""
    size = len(logits)
    bottleneck = GumbelBottleneck(size, size, 3)
    with torch.no_grad():
        bottleneck.logits.weight.copy_(torch.eye(size))
        bottleneck.logits.bias.zero_()
    return bottleneck, logits[None, :, None, None]


# Posterior and ids


def test_log_probabilities_are_those_of_the_softmax() -> None:
    bottleneck, z = build()
    log_probs = bottleneck.log_probs(z)
    assert log_probs.shape == (3, 4, 2, 12)
    torch.testing.assert_close(log_probs, logits_of(bottleneck, z).log_softmax(dim=-1))
    torch.testing.assert_close(log_probs.exp().sum(dim=-1), torch.ones(3, 4, 2))


def test_ids_are_the_argmax_of_the_logits_without_noise() -> None:
    bottleneck, z = build()
    expected = logits_of(bottleneck.double(), z.double()).argmax(dim=-1)
    assert torch.equal(bottleneck.encode_ids(z.double()), expected)
    for key in (1, 2, 3):
        out = bottleneck(z.double(), {"temperature": 1.0}, KEYS * key)
        assert torch.equal(out.ids, expected)


# KL


def test_kl_is_that_of_torch_distributions_in_nats_an_image() -> None:
    bottleneck, z = build()
    posterior = OneHotCategorical(logits=logits_of(bottleneck, z))
    prior = OneHotCategorical(probs=torch.ones(12) / 12)
    expected = kl_divergence(posterior, prior).sum(dim=(1, 2))
    torch.testing.assert_close(bottleneck.kl(z), expected)
    torch.testing.assert_close(bottleneck(z, keys=KEYS).losses["loss/kl"], expected.mean())


def test_kl_does_not_depend_on_temperature_or_noise() -> None:
    bottleneck, z = build()
    first = bottleneck(z, {"temperature": 1.0}, KEYS).losses["loss/kl"]
    assert torch.equal(bottleneck(z, {"temperature": 0.1}, KEYS + 1).losses["loss/kl"], first)


def test_kl_is_zero_at_uniform() -> None:
    bottleneck, _ = with_logits(torch.zeros(64))
    kl = bottleneck.kl(torch.full((2, 64, 3, 5), 0.7))
    torch.testing.assert_close(kl, torch.zeros(2), atol=1e-5, rtol=0)


def test_kl_is_log_k_a_position_at_one_hot() -> None:
    bottleneck, _ = with_logits(torch.zeros(64))
    z = torch.full((2, 64, 3, 5), -100.0)
    z[:, 17] = 100
    torch.testing.assert_close(bottleneck.kl(z), torch.full((2,), 15 * math.log(64)))


def test_the_entropy_is_that_of_torch_distributions_a_position() -> None:
    bottleneck, z = build()
    expected = Categorical(logits=logits_of(bottleneck, z)).entropy().mean()
    torch.testing.assert_close(bottleneck(z, keys=KEYS).metrics["posterior/entropy"], expected)


def test_at_256_pixels_and_factor_8_weight_6_6_is_6_6_over_192_on_the_kl_of_a_position() -> None:
    bottleneck, _ = build()
    z = torch.randn(2, 6, 256 // 8, 256 // 8)
    posterior = Categorical(logits=logits_of(bottleneck, z))
    a_position = kl_divergence(posterior, Categorical(probs=torch.ones(12) / 12)).mean()
    nats_a_pixel = bottleneck(z, keys=KEYS[:2]).losses["loss/kl"] / (256 * 256 * 3)
    torch.testing.assert_close(6.6 * nats_a_pixel, 6.6 / 192 * a_position)


# The relaxed sample


def relaxed(bottleneck: GumbelBottleneck, z: Tensor, temperature: float, keys: Tensor) -> Tensor:
    """The weights of the codes in z_q, (B, h, w, K), read off through an identity embedding."""
    size = bottleneck.codebook_size
    bottleneck.embedding = torch.nn.Parameter(torch.eye(size))
    return bottleneck(z, {"temperature": temperature}, keys).z_q.movedim(1, -1)


def test_a_sample_is_the_softmax_of_logits_plus_gumbel_noise_over_the_temperature() -> None:
    bottleneck, z = build()
    noise = gumbel(KEYS, "gumbel", (3, 4, 2, 12), CPU)
    expected = ((logits_of(bottleneck, z) + noise) / 0.3).softmax(dim=-1)
    torch.testing.assert_close(relaxed(bottleneck, z, 0.3, KEYS), expected)


def test_z_q_is_the_mean_of_the_embedding_under_the_sample() -> None:
    bottleneck, z = build()
    embedding = bottleneck.embedding.detach().clone()
    z_q = bottleneck(z, {"temperature": 0.3}, KEYS).z_q.movedim(1, -1)
    torch.testing.assert_close(z_q, relaxed(bottleneck, z, 0.3, KEYS) @ embedding)


def test_at_low_temperature_a_sample_is_the_argmax_of_logits_plus_noise() -> None:
    bottleneck, z = build()
    noise = gumbel(KEYS, "gumbel", (3, 4, 2, 12), CPU)
    chosen = (logits_of(bottleneck, z) + noise).argmax(dim=-1)
    expected = torch.nn.functional.one_hot(chosen, 12).float()
    torch.testing.assert_close(relaxed(bottleneck, z, 1e-4, KEYS), expected)
    assert torch.equal(bottleneck.sample_ids(z, keys=KEYS), chosen)


def test_at_high_temperature_a_sample_is_uniform() -> None:
    bottleneck, z = build()
    sample = relaxed(bottleneck, z, 1e6, KEYS)
    torch.testing.assert_close(sample, torch.full_like(sample, 1 / 12), atol=1e-4, rtol=0)


@pytest.mark.parametrize("temperature", [1e-6, 1 / 16, 1.0, 1e6])
def test_samples_and_gradients_are_finite_at_every_temperature(temperature: float) -> None:
    bottleneck, z = build()
    z = (50 * z).requires_grad_()
    out = bottleneck(z, {"temperature": temperature}, KEYS)
    (out.z_q.square().sum() + out.losses["loss/kl"]).backward()
    assert out.z_q.isfinite().all()
    assert z.grad is not None
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_that_is_none_is_refused_in_training(temperature: float) -> None:
    bottleneck, z = build()
    with pytest.raises(InvalidValueError, match="temperature"):
        bottleneck(z, {"temperature": temperature}, KEYS)


def test_every_temperature_of_the_dvae_schedule_is_accepted() -> None:
    schedule = ScheduleConfig(type="cosine", start=1.0, end=1 / 16, steps=150_000)
    bottleneck, z = build()
    for temperature in (schedule.start, schedule.end):
        assert bottleneck(z, {"temperature": temperature}, KEYS).z_q.isfinite().all()


# Hard samples


def test_hard_samples_are_rows_of_the_embedding_exactly() -> None:
    bottleneck, z = build(hard=True)
    out = bottleneck(z, {"temperature": 0.9}, KEYS)
    ids = bottleneck.sample_ids(z, keys=KEYS)
    assert torch.equal(out.z_q, bottleneck.lookup(ids))


def test_hard_samples_have_the_gradient_of_relaxed_ones() -> None:
    hard, z = build(hard=True)
    soft, _ = build()
    soft.load_state_dict(hard.state_dict())
    weights = torch.randn(3, 5, 4, 2)
    gradients = []
    for bottleneck in (hard, soft):
        leaf = z.clone().requires_grad_()
        (bottleneck(leaf, {"temperature": 0.9}, KEYS).z_q * weights).sum().backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad)
        assert bottleneck.logits.weight.grad is not None
        assert bottleneck.logits.weight.grad.abs().sum() > 0
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(*gradients)


def test_the_embedding_of_hard_samples_learns_at_the_chosen_codes_only() -> None:
    bottleneck, z = build(hard=True)
    bottleneck(z, {"temperature": 0.9}, KEYS).z_q.sum().backward()
    counts = torch.bincount(bottleneck.sample_ids(z, keys=KEYS).flatten(), minlength=12).float()
    assert bottleneck.embedding.grad is not None
    assert torch.equal(bottleneck.embedding.grad, counts[:, None].expand(12, 5))


# Drawn ids


def chi_square(counts: Tensor, probs: Tensor) -> float:
    expected = probs.double() * counts.sum()
    return ((counts - expected) ** 2 / expected).sum().item()


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_frequencies_of_drawn_ids_match_the_softmax(temperature: float) -> None:
    logits = torch.linspace(-1, 1, 8)
    bottleneck, z = with_logits(logits)
    z = z.expand(50, 8, 20, 20)
    keys = make_keys(0, 0, range(50), "noise")
    counts = torch.bincount(bottleneck.sample_ids(z, temperature, keys=keys).flatten())
    # Seven degrees of freedom; by chance one seed in 10,000 passes the bound.
    assert chi_square(counts, (logits / temperature).softmax(dim=0)) < 29.9
    assert chi_square(counts, torch.ones(8) / 8) > 100


def test_frequencies_of_drawn_ids_match_the_softmax_with_a_generator_and_with_neither() -> None:
    logits = torch.linspace(-1, 1, 8)
    bottleneck, z = with_logits(logits)
    z = z.expand(50, 8, 20, 20)
    torch.manual_seed(0)
    for source in (generator(1), None):
        counts = torch.bincount(bottleneck.sample_ids(z, generator=source).flatten())
        assert chi_square(counts, logits.softmax(dim=0)) < 29.9


def test_temperature_zero_gives_the_ids_of_inference() -> None:
    bottleneck, z = build()
    for source in (None, generator(3)):
        drawn = bottleneck.sample_ids(z, 0.0, generator=source)
        assert torch.equal(drawn, bottleneck.encode_ids(z))
    assert not torch.equal(bottleneck.sample_ids(z, 1.0, generator(3)), bottleneck.encode_ids(z))


def test_drawn_ids_follow_their_generator_and_their_keys() -> None:
    bottleneck, z = build()
    first = bottleneck.sample_ids(z, generator=generator(3))
    assert torch.equal(bottleneck.sample_ids(z, generator=generator(3)), first)
    assert not torch.equal(bottleneck.sample_ids(z, generator=generator(4)), first)
    keyed = bottleneck.sample_ids(z, keys=KEYS)
    assert torch.equal(bottleneck.sample_ids(z[1:], keys=KEYS[1:]), keyed[1:])


@pytest.mark.parametrize("temperature", [1e6, 1e30, 1e300])
def test_a_huge_temperature_draws_evenly_instead_of_overflowing(temperature: float) -> None:
    bottleneck, z = with_logits(torch.tensor([9.0, 0.0, -9.0, 3.0]))
    z = z.expand(4000, -1, -1, -1)
    ids = bottleneck.sample_ids(z, temperature, generator(0)).flatten()
    assert torch.bincount(ids, minlength=4).min() > 900


@pytest.mark.parametrize("temperature", [-0.1, math.nan, math.inf])
def test_drawing_at_a_temperature_that_is_none_is_refused(temperature: float) -> None:
    bottleneck, z = build()
    with pytest.raises(InvalidValueError, match="temperature"):
        bottleneck.sample_ids(z, temperature)


def test_the_rate_is_a_draw_from_the_posterior_at_the_cost_of_its_kl() -> None:
    bottleneck, z = build()
    z_q, nats = bottleneck.rate(z, KEYS)
    assert torch.equal(z_q, bottleneck.lookup(bottleneck.sample_ids(z, keys=KEYS)))
    assert torch.equal(nats, bottleneck.kl(z))
