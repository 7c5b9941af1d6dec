"""Figures equal their closed forms and do not depend on how images are batched."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from imagetok.errors import IdsError, InvalidValueError
from imagetok.metrics import (
    MAX_PSNR,
    CodebookUsage,
    MeanMetrics,
    has_ssim,
    l1,
    perplexity,
    psnr,
    ssim,
    usage,
)


def noisy_pair(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator)
    noise = 0.2 * torch.randn(shape, generator=generator)
    return (x + noise).clamp(0, 1), x


def naive_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of two float64 arrays (C, H, W) in [0, 1], window by window, borders reflected."""
    a, b = (np.pad(x, ((0, 0), (5, 5), (5, 5)), mode="reflect") for x in (a, b))
    offsets = np.arange(11) - 5
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    weights = np.outer(line, line) / line.sum() ** 2
    values = []
    for channel in range(a.shape[0]):
        for row in range(a.shape[1] - 10):
            for column in range(a.shape[2] - 10):
                u = a[channel, row : row + 11, column : column + 11]
                v = b[channel, row : row + 11, column : column + 11]
                mean_u, mean_v = (weights * u).sum(), (weights * v).sum()
                var_u = (weights * (u - mean_u) ** 2).sum()
                var_v = (weights * (v - mean_v) ** 2).sum()
                cov = (weights * (u - mean_u) * (v - mean_v)).sum()
                values.append(
                    (2 * mean_u * mean_v + 0.01**2)
                    * (2 * cov + 0.03**2)
                    / ((mean_u**2 + mean_v**2 + 0.01**2) * (var_u + var_v + 0.03**2))
                )
    return float(np.mean(values))


# Reconstruction


def test_psnr_and_l1_of_a_constant_offset_are_closed_forms() -> None:
    x = torch.full((2, 3, 4, 4), 0.5, dtype=torch.float64)
    x_hat = x + torch.tensor([0.1, -0.01], dtype=torch.float64).reshape(2, 1, 1, 1)
    expected = torch.tensor([20.0, 40.0], dtype=torch.float64)
    torch.testing.assert_close(psnr(x_hat, x), expected, rtol=1e-12, atol=0)
    offsets = torch.tensor([0.1, 0.01], dtype=torch.float64)
    torch.testing.assert_close(l1(x_hat, x), offsets, rtol=1e-12, atol=0)


def test_psnr_and_l1_equal_numpy_in_float64() -> None:
    x_hat, x = noisy_pair(3, 3, 6, 5)
    difference = x_hat.numpy().astype(np.float64) - x.numpy().astype(np.float64)
    expected = -10 * np.log10((difference**2).mean((1, 2, 3)))
    np.testing.assert_allclose(psnr(x_hat, x).numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(l1(x_hat, x).numpy(), np.abs(difference).mean((1, 2, 3)), rtol=1e-12)


def test_black_against_white_is_zero_decibels() -> None:
    black, white = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    assert psnr(black, white).tolist() == [0.0]
    assert l1(black, white).tolist() == [1.0]


@pytest.mark.parametrize("value", [0.0, 0.3, 0.93, 1.0])
def test_identical_images_have_the_largest_psnr_and_ssim_exactly_one(value: float) -> None:
    x = torch.cat([torch.full((1, 3, 16, 12), value), torch.rand(1, 3, 16, 12)])
    assert psnr(x, x).tolist() == [MAX_PSNR, MAX_PSNR]
    assert ssim(x, x).tolist() == pytest.approx([1.0, 1.0], abs=1e-12)
    assert l1(x, x).tolist() == [0.0, 0.0]


def test_psnr_of_almost_identical_images_is_capped() -> None:
    x = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    assert psnr(x + 1e-9, x).tolist() == [MAX_PSNR]


@pytest.mark.parametrize("shape", [(1, 16, 13), (3, 12, 20), (4, 11, 11)])
def test_ssim_equals_a_naive_reference(shape: tuple[int, int, int]) -> None:
    x_hat, x = noisy_pair(1, *shape)
    expected = naive_ssim(x_hat[0].double().numpy(), x[0].double().numpy())
    assert ssim(x_hat, x).item() == pytest.approx(expected, abs=1e-12)


def test_ssim_of_flat_images_is_the_luminance_term() -> None:
    x_hat, x = torch.full((1, 3, 16, 16), 0.25), torch.full((1, 3, 16, 16), 0.75)
    expected = (2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4)
    assert ssim(x_hat, x).item() == pytest.approx(expected, abs=1e-12)


def test_sides_under_the_window_have_no_ssim() -> None:
    assert has_ssim((11, 11))
    assert not has_ssim((10, 64))
    with pytest.raises(InvalidValueError, match=r"at least 11 pixels, found \(10, 64\)"):
        ssim(torch.zeros(1, 3, 10, 64), torch.zeros(1, 3, 10, 64))


@pytest.mark.parametrize("metric", [psnr, ssim, l1])
def test_values_are_float64_per_image_and_independent_of_the_batch(metric: type) -> None:
    x_hat, x = noisy_pair(5, 3, 16, 16)
    whole = metric(x_hat.requires_grad_(), x)
    assert whole.dtype == torch.float64
    assert whole.shape == (5,)
    assert not whole.requires_grad
    parts = torch.cat([metric(x_hat[i:j], x[i:j]) for i, j in ((0, 1), (1, 4), (4, 5))])
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
    assert metric(x_hat[:0], x[:0]).shape == (0,)


@pytest.mark.parametrize("metric", [psnr, ssim, l1])
def test_images_of_other_shapes_are_refused(metric: type) -> None:
    with pytest.raises(InvalidValueError, match=r"\(2, 3, 16, 16\)"):
        metric(torch.zeros(1, 3, 16, 16), torch.zeros(2, 3, 16, 16))
    with pytest.raises(InvalidValueError, match="of one shape"):
        metric(torch.zeros(3, 16, 16), torch.zeros(3, 16, 16))


# Codebook


def test_usage_and_perplexity_are_closed_forms() -> None:
    assert usage(torch.tensor([0, 3, 0, 1])) == 0.5
    assert perplexity(torch.tensor([5, 5, 5, 5])) == pytest.approx(4, rel=1e-14)
    assert perplexity(torch.tensor([0, 7, 0, 0])) == 1.0
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert perplexity(torch.tensor([0, 3, 0, 1])) == pytest.approx(math.exp(entropy), rel=1e-14)


def test_perplexity_keeps_its_precision_for_large_counts() -> None:
    counts = torch.full((1000,), 2**40, dtype=torch.int64)
    assert perplexity(counts) == pytest.approx(1000, rel=1e-12)


def test_perplexity_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="no ids"):
        perplexity(torch.zeros(4, dtype=torch.int64))


def test_counts_of_codes_equal_numpy_whatever_the_batches() -> None:
    ids = torch.randint(20, (7, 3, 4), generator=torch.Generator().manual_seed(0))
    codes = CodebookUsage(20)
    for batch in (ids[:1], ids[1:6].to(torch.uint8), ids[6:], ids[:0]):
        codes.update(batch)
    expected = np.bincount(ids.numpy().ravel(), minlength=20)
    assert codes.counts.dtype == torch.int64
    assert codes.counts.tolist() == expected.tolist()
    assert codes.usage() == np.count_nonzero(expected) / 20
    shares = expected[expected > 0] / expected.sum()
    assert codes.perplexity() == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-12)


@pytest.mark.parametrize("bad", [-1, 4])
def test_ids_out_of_range_are_refused_and_not_counted(bad: int) -> None:
    codes = CodebookUsage(4)
    with pytest.raises(IdsError, match=r"expected \[0, 4\)"):
        codes.update(torch.tensor([0, bad]))
    assert codes.counts.sum() == 0


def test_merging_one_process_changes_nothing() -> None:
    codes, means = CodebookUsage(4), MeanMetrics()
    codes.update(torch.tensor([0, 1, 1]))
    means.update({"psnr": torch.tensor([10.0, 20.0])})
    codes.merge()
    means.merge()
    assert codes.counts.tolist() == [1, 2, 0, 0]
    assert means.means() == {"psnr": 15.0}


# Means


def test_means_weight_images_and_not_batches() -> None:
    values = torch.rand(11, generator=torch.Generator().manual_seed(0))
    means = MeanMetrics()
    for batch in values.split([1, 7, 3]):
        means.update({"psnr": batch})
    assert means.means()["psnr"] == pytest.approx(values.double().mean().item(), rel=1e-14)


def test_a_name_may_cover_a_part_of_the_images() -> None:
    means = MeanMetrics()
    means.update({"psnr": torch.tensor([1.0, 2.0]), "ssim": torch.empty(0)})
    means.update({"psnr": torch.tensor([6.0]), "ssim": torch.tensor([0.5])})
    assert means.means() == {"psnr": 3.0, "ssim": 0.5}


def test_small_values_are_not_lost_beside_large_sums() -> None:
    means = MeanMetrics()
    means.update({"value": torch.tensor([2.0**30])})
    for _ in range(1000):
        means.update({"value": torch.tensor([1.0])})
    assert means.means()["value"] == (2**30 + 1000) / 1001


def test_values_that_are_not_one_an_image_are_refused_by_name() -> None:
    with pytest.raises(InvalidValueError, match=r"l1: expected one value an image"):
        MeanMetrics().update({"l1": torch.tensor(0.5)})
