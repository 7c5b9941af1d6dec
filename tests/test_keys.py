from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from imagetok.keys import (
    choose,
    generator,
    gumbel,
    gumbel_rows,
    make_key,
    make_keys,
    normal,
    row_seeds,
)

CPU = torch.device("cpu")
Draw = Callable[..., Tensor]


def hashed(
    keys: Tensor | None, purpose: str, shape: tuple[int, ...], device: torch.device
) -> Tensor:
    """Gumbel noise of `shape` by its hash, the last dimension being the columns."""
    samples, rows, width = shape[0], math.prod(shape[1:-1]), shape[-1]
    return gumbel_rows(row_seeds(keys, purpose, samples, rows, device), width).view(shape)


DRAWS: list[Draw] = [normal, gumbel, hashed]

GOLDEN = [
    792_011_621_244_050_106,
    2_684_723_024_387_836_195,
    7_570_789_395_538_082_714,
    2_997_780_637_129_946_480,
    4_396_407_502_827_047_391,
]

HASHED = [2.7781351, 3.0068338, 0.3557397, 0.9894199, -0.8470018, -0.2400069, 0.6524216, 0.6857356]


def test_keys_never_change_between_versions() -> None:
    """Regenerate only on request: every key that changes changes every training run."""
    assert make_key(0, 0, 0, "noise") == GOLDEN[0]
    assert make_key(1, 150_000, 2**40, "augment") == GOLDEN[1]
    assert make_keys(7, 3, [0, 1, 5], "noise").tolist() == GOLDEN[2:]


def test_keys_differ_by_seed_time_row_and_purpose_and_fit_int64() -> None:
    found = {
        make_key(seed, time, row, purpose)
        for seed in range(4)
        for time in range(10)
        for row in range(50)
        for purpose in ("noise", "augment")
    }
    assert len(found) == 4 * 10 * 50 * 2
    assert 0 <= min(found) < max(found) < 2**63


def test_keys_of_several_rows_are_the_keys_of_each() -> None:
    keys = make_keys(5, 8, [3, 3, 9], "noise")
    assert keys.dtype == torch.int64
    assert keys.tolist() == [make_key(5, 8, row, "noise") for row in (3, 3, 9)]
    assert make_keys(5, 8, [], "noise").shape == (0,)


def test_a_generator_starts_from_its_key() -> None:
    first, second = torch.rand(9, generator=generator(11)), torch.rand(9, generator=generator(12))
    assert torch.equal(torch.rand(9, generator=generator(11)), first)
    assert not torch.equal(first, second)
    assert torch.rand(1, generator=generator(2**63 - 1)).isfinite()


@pytest.mark.parametrize("draw", DRAWS)
def test_noise_depends_on_a_samples_own_key_only(draw: Draw) -> None:
    keys = make_keys(0, 0, range(6), "noise")
    whole = draw(keys, "use", (6, 5, 3), CPU)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    assert torch.equal(draw(keys[order], "use", (6, 5, 3), CPU), whole[order])
    assert torch.equal(draw(keys[2:3], "use", (1, 5, 3), CPU), whole[2:3])
    halves = [draw(part, "use", (3, 5, 3), CPU) for part in keys.split(3)]
    assert torch.equal(torch.cat(halves), whole)


@pytest.mark.parametrize("draw", DRAWS)
def test_noise_differs_by_key_and_by_purpose(draw: Draw) -> None:
    keys = torch.tensor([1, 2, 1])
    first = draw(keys, "use", (3, 100), CPU)
    assert torch.equal(first[0], first[2])
    assert (first[0] == first[1]).sum() == 0
    assert (first == draw(keys, "other", (3, 100), CPU)).sum() == 0


@pytest.mark.parametrize("draw", DRAWS)
def test_keyed_noise_leaves_torchs_own_generator_alone(draw: Draw) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draw(torch.tensor([1, 2]), "use", (2, 100), CPU)
    choose(torch.tensor([1, 2]), "use", (2, 3), 10)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("draw", DRAWS)
def test_without_keys_noise_is_torchs_ordinary_noise(draw: Draw) -> None:
    torch.manual_seed(3)
    first, second = draw(None, "use", (2, 50), CPU), draw(None, "use", (2, 50), CPU)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(draw(None, "use", (2, 50), CPU), first)


def test_a_source_stands_in_for_torchs_own_generator() -> None:
    first = gumbel(None, "use", (2, 50), CPU, generator(1))
    assert torch.equal(gumbel(None, "use", (2, 50), CPU, generator(1)), first)


@pytest.mark.parametrize("draw", DRAWS)
def test_noise_is_float32_whatever_the_default_type_is(draw: Draw) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert draw(torch.tensor([1]), "use", (1, 9), CPU).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_normal_noise_has_the_moments_of_a_standard_normal() -> None:
    noise = normal(make_keys(0, 0, range(40), "noise"), "use", (40, 10_000), CPU).double()
    assert noise.mean().abs() < 0.01
    assert (noise.var() - 1).abs() < 0.01
    assert (noise**3).mean().abs() < 0.02
    assert ((noise**4).mean() - 3).abs() < 0.05


@pytest.mark.parametrize("draw", [gumbel, hashed])
def test_gumbel_noise_has_the_moments_of_a_standard_gumbel_and_no_infinity(draw: Draw) -> None:
    noise = draw(make_keys(0, 0, range(40), "noise"), "use", (40, 50_000), CPU).double()
    assert noise.isfinite().all()
    assert (noise.mean() - 0.5772156649).abs() < 0.01
    assert (noise.var() - math.pi**2 / 6).abs() < 0.02
    # The exact distribution function is exp(-exp(-g)).
    ranks = noise.flatten().sort().values.neg().exp().neg().exp()
    uniform = torch.linspace(0, 1, len(ranks), dtype=torch.float64)
    assert (ranks - uniform).abs().max() < 1.95 / math.sqrt(len(ranks))  # 0.1 % Kolmogorov bound


def test_hashed_noise_never_changes_between_versions() -> None:
    found = hashed(torch.tensor([5, 2**62]), "gumbel", (2, 2, 2), CPU)
    torch.testing.assert_close(found, torch.tensor(HASHED).view(2, 2, 2))


def test_hashed_noise_of_one_row_or_column_tells_nothing_of_another() -> None:
    noise = gumbel_rows(row_seeds(torch.tensor([1]), "use", 1, 400, CPU), 1000).double()
    centred = noise.neg().exp().neg().exp() - 0.5  # even over [-0.5, 0.5)
    for product in (centred @ centred.T, centred.T @ centred):
        size = centred.numel() / len(product)
        scores = 12 * product.fill_diagonal_(0) / math.sqrt(size)
        assert scores.std() == pytest.approx(1, abs=0.02)
        assert scores.abs().max() < 6.5


@pytest.mark.parametrize("keyed", [True, False])
def test_chosen_indices_are_different_and_in_range(keyed: bool) -> None:
    torch.manual_seed(0)
    keys = make_keys(0, 0, range(30), "noise") if keyed else None
    chosen = choose(keys, "use", (30, 8), 11)
    assert chosen.shape == (30, 8)
    assert chosen.dtype == torch.int64
    assert chosen.min() == 0
    assert chosen.max() == 10
    assert all(len(set(sample)) == 8 for sample in chosen.tolist())
    everything = choose(keys, "use", (30, 11), 11).sort(dim=1).values
    assert torch.equal(everything, torch.arange(11).expand(30, -1))
    assert choose(None if keys is None else keys[:0], "use", (0, 8), 11).shape == (0, 8)


def test_indices_are_chosen_uniformly() -> None:
    chosen = choose(make_keys(0, 0, range(3000), "noise"), "use", (3000, 4), 16)
    counts = torch.bincount(chosen.flatten(), minlength=16).double()
    expected = 3000 * 4 / 16
    # Chi-square with 15 degrees of freedom; the bound is passed by chance once in 10,000 seeds.
    assert ((counts - expected) ** 2 / expected).sum() < 44.3
    firsts = torch.bincount(chosen[:, 0], minlength=16).double()
    assert ((firsts - 187.5) ** 2 / 187.5).sum() < 44.3


def test_chosen_indices_depend_on_a_samples_own_key_only() -> None:
    keys = make_keys(0, 0, range(6), "noise")
    whole = choose(keys, "use", (6, 4), 100)
    assert torch.equal(choose(keys.flip(0), "use", (6, 4), 100), whole.flip(0))
    assert torch.equal(choose(keys[3:5], "use", (2, 4), 100), whole[3:5])
    assert not torch.equal(choose(keys, "other", (6, 4), 100), whole)
