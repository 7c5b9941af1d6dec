"""A step's scalars and statistics, added up over micro-batches."""

from __future__ import annotations

import pytest
import torch

from imagetok.bottlenecks import Statistics
from imagetok.training.totals import StepTotals


def scalars(**values: float) -> dict[str, torch.Tensor]:
    return {name.replace("_", "/"): torch.tensor(value) for name, value in values.items()}


def test_scalars_are_means_over_the_parts() -> None:
    totals = StepTotals(2)
    totals.add(scalars(loss=1.0, loss_kl=4.0))
    totals.add(scalars(loss=3.0, loss_kl=8.0))
    totals.merge()
    assert totals.means == {"loss": 2.0, "loss/kl": 6.0}
    assert totals.statistics is None


def test_scalars_may_be_added_in_several_goes_a_part() -> None:
    totals = StepTotals(1)
    totals.add(scalars(loss=1.0))
    totals.add(scalars(psnr=20.0))
    totals.merge()
    assert totals.means == {"loss": 1.0, "psnr": 20.0}


def test_sums_are_taken_in_float64() -> None:
    totals = StepTotals(2)
    totals.add({"loss": torch.tensor(1.0, dtype=torch.float64)})
    totals.add({"loss": torch.tensor(1e-12, dtype=torch.float64)})
    totals.merge()
    assert totals.means["loss"] == (1.0 + 1e-12) / 2


def test_no_graph_is_kept() -> None:
    weight = torch.ones((), requires_grad=True)
    totals = StepTotals(1)
    totals.add({"loss": weight * 2})
    totals.merge()
    assert totals.means == {"loss": 2.0}
    assert weight.grad is None
    assert all(not value.requires_grad for value in totals._scalars.values())


def test_statistics_are_summed_and_candidates_stay_in_sample_order() -> None:
    totals = StepTotals(2)
    for part in (0.0, 10.0):
        totals.add(
            scalars(loss=0.0),
            Statistics(
                {
                    "counts": torch.tensor([1.0, part]),
                    "vectors": torch.tensor([[part], [2.0]]),
                },
                {"candidates": torch.tensor([[part + 1], [part + 2]])},
            ),
        )
    totals.merge()
    assert totals.statistics is not None
    assert totals.statistics.sums["counts"].tolist() == [2.0, 10.0]
    assert totals.statistics.sums["vectors"].tolist() == [[10.0], [4.0]]
    assert totals.statistics.samples["candidates"].flatten().tolist() == [1.0, 2.0, 11.0, 12.0]


def test_counts_alone_are_statistics_too() -> None:
    totals = StepTotals(1)
    totals.add(scalars(loss=0.0), Statistics({"counts": torch.tensor([3.0, 1.0])}))
    totals.merge()
    assert totals.statistics is not None
    assert totals.statistics.sums["counts"].tolist() == [3.0, 1.0]
    assert list(totals.statistics.sums) == ["counts"]
    assert not totals.statistics.samples


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["loss", "loss_kl"])
def test_one_loss_that_is_not_finite_is_enough(name: str, value: float) -> None:
    totals = StepTotals(2)
    totals.add(scalars(loss=1.0, loss_kl=1.0))
    totals.add(scalars(**{"loss": 1.0, "loss_kl": 1.0, name: value}))
    totals.merge()
    assert not totals.is_finite()


def test_a_metric_that_is_not_finite_is_not_a_loss() -> None:
    totals = StepTotals(1)
    totals.add(scalars(loss=1.0, posterior_entropy=torch.nan))
    totals.merge()
    assert totals.is_finite()
    assert totals.losses() == {"loss": 1.0}
