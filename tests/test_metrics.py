"""Figures equal their closed forms and do not depend on how images are batched."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from imagetok.errors import IdsError, InvalidValueError
from imagetok.metrics import (
    MAX_PSNR,
    STANDARD_METRICS,
    BitsPerDimConfig,
    BitsPerPixelConfig,
    CodebookPerplexity,
    CodebookPerplexityConfig,
    CodebookUsage,
    CodebookUsageConfig,
    ImageMean,
    MeasuredBatch,
    MeasuredModel,
    MetricConfig,
    find_metric,
    has_ssim,
    l1,
    perplexity,
    psnr,
    ssim,
    usage,
    usage_figures,
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
    x = torch.zeros(4, 3, 4, 4, dtype=torch.float64)
    offsets = torch.tensor([1.0, 0.1, 0.01, 1e-9], dtype=torch.float64)
    x_hat = x + offsets.reshape(4, 1, 1, 1)
    expected = torch.tensor([0.0, 20.0, 40.0, MAX_PSNR], dtype=torch.float64)
    torch.testing.assert_close(psnr(x_hat, x), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(l1(x_hat, x), offsets, rtol=1e-12, atol=0)


def test_psnr_and_l1_equal_numpy_in_float64() -> None:
    x_hat, x = noisy_pair(3, 3, 6, 5)
    difference = x_hat.numpy().astype(np.float64) - x.numpy().astype(np.float64)
    expected = -10 * np.log10((difference**2).mean((1, 2, 3)))
    np.testing.assert_allclose(psnr(x_hat, x).numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(l1(x_hat, x).numpy(), np.abs(difference).mean((1, 2, 3)), rtol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.3, 0.93, 1.0])
def test_identical_images_have_the_largest_psnr_and_ssim_exactly_one(value: float) -> None:
    x = torch.cat([torch.full((1, 3, 16, 12), value), torch.rand(1, 3, 16, 12)])
    assert psnr(x, x).tolist() == [MAX_PSNR, MAX_PSNR]
    assert ssim(x, x).tolist() == pytest.approx([1.0, 1.0], abs=1e-12)
    assert l1(x, x).tolist() == [0.0, 0.0]


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


def batch_of(ids: Tensor | None = None, x: Tensor | None = None, **changes: Any) -> MeasuredBatch:
    x = torch.zeros(1, 3, 4, 4) if x is None else x
    return MeasuredBatch(**{"x": x, "x_hat": x, "ids": ids, **changes})


def counting(*codebook_sizes: int) -> tuple[CodebookUsage, CodebookPerplexity]:
    model = MeasuredModel((4, 4), (2, 2), codebook_sizes)
    return CodebookUsageConfig().build(model), CodebookPerplexityConfig().build(model)


def test_figures_of_codes_equal_numpy_whatever_the_batches() -> None:
    ids = torch.randint(20, (7, 3, 4), generator=torch.Generator().manual_seed(0))
    expected = np.bincount(ids.numpy().ravel(), minlength=20)
    shares = expected[expected > 0] / expected.sum()
    figures = np.count_nonzero(expected) / 20, np.exp(-(shares * np.log(shares)).sum())
    for metric, figure in zip(counting(20), figures, strict=True):
        for part in (ids[:1], ids[1:6].to(torch.uint8), ids[6:], ids[:0]):
            metric.update(batch_of(part))
        (counts,) = metric.counts
        assert counts.dtype == torch.int64
        assert counts.tolist() == expected.tolist()
        assert metric.figures() == {metric.config.type: metric.value()}
        assert metric.value() == pytest.approx(figure, rel=1e-12)


def test_each_level_of_a_position_is_counted_apart() -> None:
    ids = torch.tensor([[[[0, 5], [1, 5]], [[2, 5], [3, 5]]]])  # (1, 2, 2, depth 2)
    for metric, figures in zip(counting(4, 10), ((1.0, 0.1), (4.0, 1.0)), strict=True):
        metric.update(batch_of(ids))
        levels = {
            f"{metric.config.type}/{i}": pytest.approx(value) for i, value in enumerate(figures)
        }
        assert metric.figures() == {metric.config.type: pytest.approx(sum(figures) / 2), **levels}


def test_the_counts_of_a_training_step_have_the_same_figures() -> None:
    one, other = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([3.0, 0.0])
    vectors = torch.zeros(4, 2)
    assert usage_figures({"counts": one, "sums": vectors}) == {
        "codebook/usage": 0.5,
        "codebook/perplexity": pytest.approx(2),
    }
    assert usage_figures({"a/counts": one, "b/counts": other, "a/sums": vectors}) == {
        "codebook/usage": 0.5,
        "codebook/a/usage": 0.5,
        "codebook/b/usage": 0.5,
        "codebook/perplexity": pytest.approx(1.5),
        "codebook/a/perplexity": pytest.approx(2),
        "codebook/b/perplexity": 1.0,
    }
    assert usage_figures({"discounts": one}) == {}


@pytest.mark.parametrize("bad", [-1, 4])
def test_ids_out_of_range_are_refused_and_not_counted(bad: int) -> None:
    for metric in counting(8, 4):
        with pytest.raises(IdsError, match=r"expected \[0, 4\)"):
            metric.update(batch_of(torch.tensor([[0, 0], [0, bad]])))
        assert [int(counts.sum()) for counts in metric.counts] == [0, 0]


def test_a_continuous_model_has_no_figures_of_codes() -> None:
    for metric in (*counting(), BitsPerPixelConfig().build(MeasuredModel((4, 4), (2, 2)))):
        metric.update(batch_of())
        metric.merge()
        assert metric.figures() == {metric.config.type: None}


# Code lengths


def test_bits_per_dim_are_the_nats_of_an_image_in_bits_over_8_bit_pixels() -> None:
    metric = BitsPerDimConfig().build(MeasuredModel((4, 4), (2, 2)))
    x = torch.zeros(2, 3, 4, 4)
    metric.update(batch_of(x=x, code_length=torch.tensor([0.0, 48 * math.log(2)])))
    assert metric.value() == pytest.approx(8.5, rel=1e-7)
    continuous = BitsPerDimConfig().build(MeasuredModel((4, 4), (2, 2)))
    continuous.update(batch_of(x=x))
    assert continuous.value() is None


def test_bits_per_pixel_are_those_of_all_levels() -> None:
    assert BitsPerPixelConfig().build(MeasuredModel((8, 4), (4, 2), (16,))).value() == 8 * 4 / 32
    assert (
        BitsPerPixelConfig().build(MeasuredModel((8, 4), (4, 2), (16, 4))).value()
        == 8 * (4 + 2) / 32
    )


# Means over images


class FirstConfig(MetricConfig):
    title: ClassVar[str] = "first pixel"
    type: Literal["test_first_pixel"] = "test_first_pixel"

    def build(self, model: MeasuredModel) -> First:
        return First(self, model)


class First(ImageMean):
    def measure(self, batch: MeasuredBatch) -> Tensor | None:
        return None if batch.x.shape[-1] > 1 else batch.x.flatten()


def mean_of(*parts: Tensor) -> First:
    metric = FirstConfig().build(MeasuredModel((1, 1), (1, 1)))
    for part in parts:
        metric.update(batch_of(x=part.reshape(-1, 1, 1, 1)))
    return metric


def test_a_mean_weights_images_and_not_batches() -> None:
    values = torch.rand(11, generator=torch.Generator().manual_seed(0))
    metric = mean_of(*values.split([1, 7, 3]))
    assert metric.value() == pytest.approx(values.double().mean().item(), rel=1e-14)
    before = metric.figures()
    metric.merge()  # of one process
    assert metric.figures() == before == {"test_first_pixel": metric.value()}


def test_images_without_a_value_do_not_count() -> None:
    metric = mean_of(torch.tensor([1.0, 2.0]))
    metric.update(batch_of(x=torch.zeros(3, 1, 1, 5)))
    assert metric.value() == 1.5
    assert mean_of().value() is None


def test_small_values_are_not_lost_beside_large_sums() -> None:
    metric = mean_of(torch.tensor([2.0**30]), *torch.ones(1000))
    assert metric.value() == (2**30 + 1000) / 1001


def test_values_that_are_not_one_an_image_are_refused_by_name() -> None:
    class Whole(First):
        def measure(self, batch: MeasuredBatch) -> Tensor:
            return torch.tensor(0.5)

    with pytest.raises(InvalidValueError, match=r"test_first_pixel: expected one value per image"):
        Whole(FirstConfig(), MeasuredModel((1, 1), (1, 1))).update(batch_of())


# Names


def test_a_metric_is_found_by_its_key_wherever_it_is_defined() -> None:
    for metric in (FirstConfig(), *STANDARD_METRICS):
        assert find_metric(metric.type) is type(metric)
    with pytest.raises(InvalidValueError, match=r"metric 'psnrr'; choose one of: bits_per_"):
        find_metric("psnrr")
