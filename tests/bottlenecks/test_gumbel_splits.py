"""Dead codes of a dVAE split others: they take a share of features, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imagetok.bottlenecks import GumbelBottleneck, Statistics
from imagetok.bottlenecks.gumbel import SPLIT_MARGIN

CODES, WIDTH = 6, 4


def build(split_below: float = 0.03) -> GumbelBottleneck:
    """Codes 0 and 1 share all features by the sign of the first channel; the others are dead."""
    torch.manual_seed(0)
    bottleneck = GumbelBottleneck(WIDTH, CODES, latent_dim=3, split_below=split_below).double()
    with torch.no_grad():
        bottleneck.logits.weight.zero_()
        bottleneck.logits.weight[0, 0], bottleneck.logits.weight[1, 0] = 5, -5
        bottleneck.logits.bias.fill_(-100)
        bottleneck.logits.bias[:2] = 0
    bottleneck.running_counts.copy_(torch.tensor([10.0, 10.0, 1e-3, 2e-3, 3e-3, 4e-3]))
    return bottleneck


def features(count: int = 40) -> Tensor:
    draw = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(1)).double()
    draw[:, 0] = torch.where(torch.arange(count) % 2 == 0, 2.0, -2.0)
    return draw


def statistics(rows: Tensor) -> Statistics:
    counts = torch.zeros(CODES).double()
    counts[0] = counts[1] = len(rows) / 2
    return Statistics({"counts": counts}, {"candidates": rows})


def ids(bottleneck: GumbelBottleneck, rows: Tensor) -> Tensor:
    return bottleneck.encode_ids(rows[:, :, None, None]).flatten()


def test_dead_codes_take_a_share_of_the_features() -> None:
    bottleneck, rows = build(), features()
    assert set(ids(bottleneck, rows).tolist()) == {0, 1}
    bottleneck.update(statistics(rows), step=0)
    assert len(set(ids(bottleneck, rows).tolist())) == CODES


def test_codes_in_use_are_left_exactly_as_they_are() -> None:
    bottleneck, rows = build(), features()
    before = {name: value.clone() for name, value in bottleneck.named_parameters()}
    started_anew = bottleneck.update(statistics(rows), step=0)
    assert started_anew.keys() == before.keys()
    for rows_anew in started_anew.values():
        assert rows_anew.tolist() == [False] * 2 + [True] * (CODES - 2)
    for name, value in bottleneck.named_parameters():
        assert torch.equal(value[:2], before[name][:2]), name
        assert not torch.equal(value[2:], before[name][2:]), name


def test_a_split_is_likelier_by_the_margin_at_its_feature_and_less_at_the_mean() -> None:
    bottleneck, rows = build(), features()
    bottleneck.update(statistics(rows), step=0)
    means = torch.stack([rows[0::2].mean(0), rows[1::2].mean(0)])
    for code in range(2, CODES):
        shared = [torch.equal(bottleneck.embedding[code], bottleneck.embedding[j]) for j in (0, 1)]
        parent = shared.index(True)
        gaps = bottleneck.logits(rows)[:, code] - bottleneck.logits(rows)[:, parent]
        at_mean = bottleneck.logits(means[parent])
        assert torch.isclose(gaps, gaps.new_tensor(SPLIT_MARGIN)).any()
        assert (at_mean[code] - at_mean[parent]).item() == pytest.approx(-SPLIT_MARGIN)


def test_a_split_is_a_function_of_statistics_and_step() -> None:
    first, same, other = build(), build(), build()
    for bottleneck, step in ((first, 3), (same, 3), (other, 4)):
        bottleneck.update(statistics(features()), step)
    assert torch.equal(first.logits.weight, same.logits.weight)
    assert not torch.equal(first.logits.weight, other.logits.weight)


def test_without_a_share_nothing_ever_splits() -> None:
    bottleneck, rows = build(split_below=0), features()
    before = bottleneck.logits.weight.clone()
    assert bottleneck(rows[:, :, None, None]).statistics.samples == {}
    bottleneck.update(Statistics(statistics(rows).sums), step=0)
    assert torch.equal(bottleneck.logits.weight, before)


def test_features_without_spread_leave_the_model_finite() -> None:
    bottleneck = build()
    rows = torch.ones(8, WIDTH).double()
    bottleneck.update(statistics(rows), step=0)
    assert all(torch.isfinite(value).all() for value in bottleneck.parameters())
