from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from imagetok.errors import InvalidValueError
from imagetok.likelihoods import (
    L1Likelihood,
    LogitLaplaceLikelihood,
    MseLikelihood,
)
from imagetok.likelihoods.logit_laplace import MIN_LOG_SCALE, SQUEEZE
from imagetok.networks import dalle

Scaled = type[MseLikelihood] | type[L1Likelihood]
ALL = [
    MseLikelihood(),
    MseLikelihood("learnt"),
    L1Likelihood(),
    L1Likelihood("learnt"),
    LogitLaplaceLikelihood(),
]


def pixel(values: Tensor) -> Tensor:
    """One pixel an image, (N,) to (N, 1, 1, 1), so that `nll` gives one number a value."""
    return values[:, None, None, None]


def logit_laplace_params(mu: float, raw: float, count: int) -> Tensor:
    """Decoder output (N, 2, 1, 1) in float64."""
    return torch.tensor([mu, raw], dtype=torch.float64).expand(count, 2)[:, :, None, None]


# Gaussian and Laplace


@pytest.mark.parametrize("scale", [math.sqrt(0.5), 0.1, 3.0])
def test_mse_is_the_negative_log_density_of_a_normal(scale: float) -> None:
    torch.manual_seed(0)
    params, x = torch.randn(2, 3, 4, 5).double(), torch.rand(2, 3, 4, 5).double()
    density = torch.distributions.Normal(params + 0.5, scale)
    expected = -density.log_prob(x).sum(dim=(1, 2, 3))
    torch.testing.assert_close(MseLikelihood(scale).nll(params, x), expected)


@pytest.mark.parametrize("scale", [1.0, 0.1, 3.0])
def test_l1_is_the_negative_log_density_of_a_laplace(scale: float) -> None:
    torch.manual_seed(0)
    params, x = torch.randn(2, 3, 4, 5).double(), torch.rand(2, 3, 4, 5).double()
    density = torch.distributions.Laplace(params + 0.5, scale)
    expected = -density.log_prob(x).sum(dim=(1, 2, 3))
    torch.testing.assert_close(L1Likelihood(scale).nll(params, x), expected)


@pytest.mark.parametrize("kind", [MseLikelihood, L1Likelihood])
@pytest.mark.parametrize("scale", [0.05, 0.7, "learnt"])
def test_the_density_integrates_to_one(kind: Scaled, scale: float) -> None:
    x = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    params = pixel(torch.tensor(-0.3, dtype=torch.float64).expand(len(x)))
    with torch.no_grad():
        density = kind(scale).nll(params, pixel(x)).neg().exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=1e-5)


def test_the_default_mse_has_exactly_the_gradient_of_the_squared_error() -> None:
    torch.manual_seed(1)
    params = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    x = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    (found,) = torch.autograd.grad(MseLikelihood().nll(params, x).sum(), params)
    (expected,) = torch.autograd.grad((x - (params + 0.5)).square().sum(), params)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-15)


def test_the_default_l1_has_exactly_the_gradient_of_the_absolute_error() -> None:
    torch.manual_seed(1)
    params = torch.randn(2, 3, 4, 5, requires_grad=True)
    x = torch.rand(2, 3, 4, 5)
    (found,) = torch.autograd.grad(L1Likelihood().nll(params, x).sum(), params)
    assert torch.equal(found, (params + 0.5 - x).sign())


@pytest.mark.parametrize("kind", [MseLikelihood, L1Likelihood])
def test_the_learnt_scales_optimum_is_the_typical_error(kind: Scaled) -> None:
    torch.manual_seed(2)
    params, x = 0.2 * torch.randn(4, 3, 8, 8), torch.rand(4, 3, 8, 8)
    error = x - (params + 0.5)
    typical = error.square().mean().sqrt() if kind is MseLikelihood else error.abs().mean()
    likelihood = kind("learnt")
    optimizer = torch.optim.Adam(likelihood.parameters(), lr=3e-3)
    for _ in range(300):
        optimizer.zero_grad()
        (likelihood.nll(params, x).mean() / x[0].numel()).backward()
        optimizer.step()
    assert likelihood.log_scale().exp().item() == pytest.approx(typical.item(), rel=1e-3)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("kind", [MseLikelihood, L1Likelihood])
def test_a_scale_that_is_not_positive_and_finite_is_refused(kind: Scaled, scale: float) -> None:
    with pytest.raises(InvalidValueError, match="'learnt'"):
        kind(scale)


def test_a_fixed_scale_is_not_a_parameter_and_a_learnt_one_is() -> None:
    assert not list(MseLikelihood(0.1).parameters())
    assert not L1Likelihood(0.1).state_dict()
    assert len(list(MseLikelihood("learnt").parameters())) == 1


# Logit-Laplace


@pytest.mark.parametrize("mu", [0.0, 1.5, -2.5])
@pytest.mark.parametrize("raw", [0.9, -1.0, -3.0, -9.0])
def test_the_logit_laplace_integrates_to_one_over_pixel_values(mu: float, raw: float) -> None:
    # Squeezed pixels y take all of (0, 1), so x reaches a little over both of its ends. Steps are
    # equal in the logit t of y: dx = y (1 - y) / (1 - 2 eps) dt.
    t = torch.linspace(-30, 30, 600_001, dtype=torch.float64)
    y = torch.sigmoid(t)
    x = (y - SQUEEZE) / (1 - 2 * SQUEEZE)
    nll = LogitLaplaceLikelihood().nll(logit_laplace_params(mu, raw, len(t)), pixel(x))
    density = nll.neg().exp() * y * torch.sigmoid(-t) / (1 - 2 * SQUEEZE)
    assert torch.trapezoid(density, t).item() == pytest.approx(1, abs=1e-4)


def test_the_logit_laplace_is_the_formula_of_the_paper_with_the_squeezes_jacobian() -> None:
    torch.manual_seed(3)
    x, mu, raw = torch.rand(3, 9).double(), *torch.randn(2, 3, 9).double()
    b = torch.exp(MIN_LOG_SCALE + torch.log1p(torch.exp(raw - MIN_LOG_SCALE)))
    y = 0.8 * x + 0.1
    logit = torch.log(y / (1 - y))
    density = torch.exp(-(logit - mu).abs() / b) / (2 * b * y * (1 - y)) * 0.8
    params = torch.stack([mu, raw])[:, :, :, None].transpose(0, 1)
    found = LogitLaplaceLikelihood().nll(params, x[:, None, :, None])
    torch.testing.assert_close(found, -density.log().sum(dim=1))


def test_location_and_scale_are_the_first_and_the_second_half_of_the_channels() -> None:
    params = torch.zeros(1, 6, 2, 2)
    params[:, :3] = torch.tensor([-1.0, 0.0, 1.0])[None, :, None, None]
    mean = LogitLaplaceLikelihood().mean(params)
    assert mean.shape == (1, 3, 2, 2)
    assert (mean[0, 0] < mean[0, 1]).all()
    assert (mean[0, 1] < mean[0, 2]).all()
    params[:, 3:] = 7
    assert torch.equal(LogitLaplaceLikelihood().mean(params), mean)


def test_the_mean_inverts_the_squeeze() -> None:
    x = torch.linspace(0, 1, 256, dtype=torch.float64)
    mu = torch.logit(0.8 * x + 0.1)
    params = torch.stack([mu, torch.zeros_like(mu)], dim=1)[:, :, None, None]
    torch.testing.assert_close(LogitLaplaceLikelihood().mean(params).flatten(), x)


def test_the_raw_log_scale_is_the_log_scale_but_for_its_floor() -> None:
    x = pixel(torch.full((1,), 0.5, dtype=torch.float64))

    def nll(raw: float) -> float:
        return LogitLaplaceLikelihood().nll(logit_laplace_params(0.0, raw, 1), x).item()

    # At mu = logit y the only terms that depend on b are ln(2 b).
    assert nll(3.0) - nll(2.0) == pytest.approx(1, abs=1e-3)
    assert nll(-1000.0) == pytest.approx(nll(-100.0))
    assert nll(0.0) - nll(-1000.0) == pytest.approx(-MIN_LOG_SCALE, abs=0.01)


def test_the_encoder_of_the_dvae_squeezes_as_its_likelihood_does() -> None:
    assert dalle.SQUEEZE == SQUEEZE == 0.1


# All


@pytest.mark.parametrize("likelihood", ALL)
@torch.no_grad()
def test_scores_are_summed_over_pixels_and_channels_and_averaged_over_nothing(
    likelihood: MseLikelihood | L1Likelihood | LogitLaplaceLikelihood,
) -> None:
    torch.manual_seed(4)
    multiple = likelihood.channel_multiple
    x, params = torch.rand(3, 2, 4, 6), torch.randn(3, multiple, 2, 4, 6)
    whole = likelihood.nll(params.flatten(1, 2), x)
    assert whole.shape == (3,)
    by_pixel = likelihood.nll(
        params.permute(0, 2, 3, 4, 1).reshape(-1, multiple, 1, 1), x.reshape(-1, 1, 1, 1)
    )
    torch.testing.assert_close(whole, by_pixel.view(3, -1).sum(dim=1))
    torch.testing.assert_close(likelihood.nll(params[1:2].flatten(1, 2), x[1:2]), whole[1:2])


@pytest.mark.parametrize("likelihood", ALL)
def test_means_are_images_that_overshoot_with_a_gradient(
    likelihood: MseLikelihood | L1Likelihood | LogitLaplaceLikelihood,
) -> None:
    params = (2 * torch.randn(2, likelihood.channel_multiple * 3, 4, 6)).requires_grad_()
    mean = likelihood.mean(params)
    assert mean.shape == (2, 3, 4, 6)
    over = mean > 1
    assert over.any()
    (gradient,) = torch.autograd.grad(mean[over].sum(), params)
    assert (gradient[:, :3][over] != 0).all()


@pytest.mark.parametrize("kind", [MseLikelihood, L1Likelihood])
def test_networks_yield_the_location_less_one_half(kind: Scaled) -> None:
    assert torch.equal(kind().mean(torch.full((1, 1, 1, 1), -0.25)), torch.full((1, 1, 1, 1), 0.25))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("likelihood", ALL)
def test_half_types_stay_finite_at_extreme_outputs(
    likelihood: MseLikelihood | L1Likelihood | LogitLaplaceLikelihood, dtype: torch.dtype
) -> None:
    extremes = torch.tensor([-30.0, -20.0, -1.0, 0.0, 1.0, 20.0, 30.0])
    params = torch.cartesian_prod(*[extremes] * 2)[:, : likelihood.channel_multiple]
    params = params[:, :, None, None].to(dtype).requires_grad_()
    for value in (0.0, 0.5, 1.0):
        x = torch.full((len(params), 1, 1, 1), value, dtype=dtype)
        nll = likelihood.nll(params, x)
        assert nll.dtype == torch.float32
        assert nll.isfinite().all()
        (gradient,) = torch.autograd.grad(nll.sum(), params)
        assert gradient.isfinite().all()
        assert likelihood.mean(params).dtype == torch.float32


@pytest.mark.parametrize("likelihood", ALL)
@torch.no_grad()
def test_half_types_are_scored_in_float32(
    likelihood: MseLikelihood | L1Likelihood | LogitLaplaceLikelihood,
) -> None:
    torch.manual_seed(5)
    params = torch.randn(2, likelihood.channel_multiple * 3, 4, 4).half()
    x = torch.rand(2, 3, 4, 4).half()
    assert torch.equal(likelihood.nll(params, x), likelihood.nll(params.float(), x.float()))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(
            likelihood.nll(params, x.float()), likelihood.nll(params.float(), x.float())
        )


@pytest.mark.parametrize("kind", [MseLikelihood, L1Likelihood])
def test_half_keeps_a_learnt_scale_exact_and_its_gradient_finite(kind: Scaled) -> None:
    likelihood = kind("learnt")
    with torch.no_grad():
        assert likelihood.raw_scale is not None
        likelihood.raw_scale.fill_(-1.2345678)  # ln s = -12: 1 / s overflows in float16
    before = likelihood.log_scale().item()
    likelihood.half()
    assert likelihood.raw_scale.dtype == torch.float32
    assert likelihood.log_scale().item() == before
    likelihood.nll(torch.zeros(1, 1, 2, 2).half(), torch.rand(1, 1, 2, 2).half()).sum().backward()
    assert likelihood.raw_scale.grad is not None
    assert likelihood.raw_scale.grad.isfinite()
    assert likelihood.raw_scale.grad != 0
