from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from imagetok.bottlenecks import GaussianBottleneck
from imagetok.bottlenecks.gaussian import LOG_VAR_RANGE
from imagetok.keys import make_keys


def encoder_output(batch: int = 3, latent_dim: int = 4) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(batch, 2 * latent_dim, 2, 5, dtype=torch.float64)


def test_the_encoder_gives_means_and_then_log_variances() -> None:
    z = encoder_output()
    mean, log_var = GaussianBottleneck(4).posterior(z)
    assert torch.equal(mean, z[:, :4])
    assert torch.equal(log_var, z[:, 4:])


def test_kl_is_that_of_torch_distributions_in_nats_an_image() -> None:
    z = encoder_output()
    posterior = Normal(z[:, :4], torch.exp(z[:, 4:] / 2))
    expected = kl_divergence(posterior, Normal(0.0, 1.0)).sum(dim=(1, 2, 3))
    bottleneck = GaussianBottleneck(4)
    torch.testing.assert_close(bottleneck.kl(z), expected)
    torch.testing.assert_close(bottleneck(z).losses["loss/kl"], expected.mean())


def test_kl_is_zero_at_the_prior_and_only_there() -> None:
    bottleneck = GaussianBottleneck(4)
    assert torch.equal(bottleneck.kl(torch.zeros(2, 8, 3, 3)), torch.zeros(2))
    assert (bottleneck.kl(encoder_output()) > 0).all()


def test_kl_does_not_depend_on_the_noise() -> None:
    bottleneck, z = GaussianBottleneck(4), encoder_output()
    first = bottleneck(z, keys=torch.tensor([1, 2, 3]))
    second = bottleneck(z, keys=torch.tensor([4, 5, 6]))
    assert not torch.equal(first.z_q, second.z_q)
    assert torch.equal(first.losses["loss/kl"], second.losses["loss/kl"])


def test_a_sample_is_the_mean_plus_the_deviation_times_standard_normal_noise() -> None:
    bottleneck, keys = GaussianBottleneck(4), torch.tensor([7, 8, 9])
    noise = bottleneck(torch.zeros(3, 8, 2, 5), keys=keys).z_q
    z = encoder_output().float()
    expected = z[:, :4] + torch.exp(z[:, 4:] / 2) * noise
    torch.testing.assert_close(bottleneck(z, keys=keys).z_q, expected)


def test_the_gradient_of_a_sample_is_one_to_the_mean_and_half_its_offset_to_the_log_variance() -> (
    None
):
    bottleneck, z = GaussianBottleneck(4), encoder_output().requires_grad_()
    z_q = bottleneck(z, keys=torch.tensor([7, 8, 9])).z_q
    upstream = torch.randn_like(z_q)
    z_q.backward(upstream)
    assert z.grad is not None
    assert torch.equal(z.grad[:, :4], upstream)
    torch.testing.assert_close(z.grad[:, 4:], upstream * (z_q - z[:, :4]).detach() / 2)


def test_samples_have_the_moments_of_the_posterior() -> None:
    keys = make_keys(0, 0, range(50), "noise")
    z = torch.tensor([2.0, -1.0, 0.0, -4.0])[None, :, None, None].expand(50, 4, 40, 40)
    z_q = GaussianBottleneck(2)(z, keys=keys).z_q.double()
    mean, deviation = z_q.mean(dim=(0, 2, 3)), z_q.std(dim=(0, 2, 3))
    torch.testing.assert_close(mean, torch.tensor([2.0, -1.0]).double(), atol=0.02, rtol=0)
    torch.testing.assert_close(
        deviation, torch.tensor([0.0, -2.0]).exp().double(), atol=0, rtol=0.02
    )


def test_inference_gives_the_mean_without_noise() -> None:
    z = encoder_output()
    assert torch.equal(GaussianBottleneck(4).latents(z), z[:, :4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_log_variances_are_clamped_and_everything_stays_finite(dtype: torch.dtype) -> None:
    bottleneck = GaussianBottleneck(1)
    z = torch.tensor([[[[1.0]], [[-6e4]]], [[[1.0]], [[6e4]]]], dtype=dtype, requires_grad=True)
    assert bottleneck.posterior(z).log_var.flatten().tolist() == list(LOG_VAR_RANGE)
    out = bottleneck(z, keys=torch.tensor([1, 2]))
    (out.z_q.sum() + out.losses["loss/kl"]).backward()
    assert out.z_q.isfinite().all()
    assert out.losses["loss/kl"].isfinite()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_the_rate_is_a_sample_at_the_cost_of_its_kl() -> None:
    bottleneck, z, keys = GaussianBottleneck(4), encoder_output(), torch.tensor([1, 2, 3])
    z_q, nats = bottleneck.rate(z, keys)
    assert torch.equal(z_q, bottleneck(z, keys=keys).z_q)
    assert torch.equal(nats, bottleneck.kl(z))
