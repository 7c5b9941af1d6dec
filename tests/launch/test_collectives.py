"""Collectives: no-ops in one process, and exact between two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from imagetok.errors import InvalidValueError
from imagetok.launch import collectives

TWO_RANKS = """
import torch
import torch.distributed as dist

from imagetok.launch import collectives
from imagetok.errors import InvalidValueError
from imagetok.metrics import (
    CodebookUsageConfig,
    L1Config,
    MeasuredBatch,
    MeasuredModel,
    SsimConfig,
)

dist.init_process_group("gloo")
assert collectives.is_distributed()
assert collectives.world_size() == 2
r = collectives.rank()
assert r == dist.get_rank()

# One tensor, which stays as it is.
mine = torch.tensor([1.0, 2.0]) * (r + 1)
assert collectives.all_reduce_sum(mine).tolist() == [3.0, 6.0]
assert mine.tolist() == [1.0 * (r + 1), 2.0 * (r + 1)]
assert collectives.all_reduce_sum(torch.ones(2, 3).T).shape == (3, 2)

# Several: one collective for each dtype that is summed, whatever the order of the names.
calls = []
real = dist.all_reduce
dist.all_reduce = lambda tensor, *rest: (calls.append(tensor.dtype), real(tensor, *rest))
named = {
    "scalar": torch.tensor(0.5),
    "counts": torch.tensor([2**40, r]),
    "half": torch.tensor([1.0], dtype=torch.bfloat16),
    "empty": torch.empty(0, 3),
}
names = list(named) if r == 0 else list(reversed(named))
sums = collectives.all_reduce_sum({name: named[name] for name in names})
assert list(sums) == names
assert sums["scalar"].shape == () and sums["scalar"].item() == 1.0
assert sums["counts"].tolist() == [2**41, 1]
assert sums["half"].dtype == torch.bfloat16 and sums["half"].tolist() == [2.0]
assert sums["empty"].shape == (0, 3)
assert sorted(map(str, calls)) == ["torch.float32", "torch.int64"], calls
dist.all_reduce = real
first, second = collectives.all_reduce_sum([torch.ones(2), torch.tensor(r)])
assert first.tolist() == [2.0, 2.0] and second.item() == 1

# Samples in order, of unequal number, of every dtype.
for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool):
    samples = torch.arange(10).reshape(5, 2).to(dtype)
    part = samples[:2] if r == 0 else samples[2:]
    gathered = collectives.gather_samples(part)
    assert gathered.dtype == dtype and torch.equal(gathered, samples), dtype
assert collectives.gather_samples(torch.arange(r * 3)).tolist() == [0, 1, 2]
assert collectives.gather_samples(torch.arange((1 - r) * 3)).tolist() == [0, 1, 2]
assert collectives.gather_samples(torch.empty(0, 4)).shape == (0, 4)
assert collectives.gather_samples(torch.empty(r + 1, 0)).shape == (3, 0)
strided = torch.arange(6).reshape(2, 3).T + 10 * r
assert collectives.gather_samples(strided).tolist() == [
    [0, 3], [1, 4], [2, 5], [10, 13], [11, 14], [12, 15]
]
assert not collectives.gather_samples(torch.ones(2, requires_grad=True)).requires_grad
for odd in (torch.zeros(1, 2 + r), torch.zeros(1, 2, dtype=(torch.float32, torch.float64)[r])):
    try:
        collectives.gather_samples(odd)
    except InvalidValueError as error:
        assert "rank 0" in str(error) and "rank 1" in str(error)
    else:
        raise AssertionError("samples of other kinds were joined")

# Objects and broadcasts.
assert collectives.gather_objects(f"rank {r}") == ["rank 0", "rank 1"]
assert collectives.broadcast_object({"rank": r}) == {"rank": 0}
assert collectives.broadcast_object({"rank": r}, source=1) == {"rank": 1}
own = torch.tensor([[True, False], [bool(r), True]])
assert collectives.broadcast_tensor(own, source=1)[1, 0] and own[1, 0] == bool(r)
assert collectives.broadcast_tensor(torch.tensor(r + 5)).item() == 5

# Agreement.
assert collectives.all_agree(True) and not collectives.all_agree(False)
assert not collectives.all_agree(r == 0) and not collectives.all_agree(r == 1)
assert collectives.any_rank(r == 0) and collectives.any_rank(r == 1)
assert collectives.any_rank(True) and not collectives.any_rank(False)

# Metrics of both ranks, one of which measured no image.
model = MeasuredModel((16, 16), (1, 2), (4,))
codes, means = CodebookUsageConfig().build(model), L1Config().build(model)
x = torch.ones(1 + r, 3, 16, 16) / 2
for metric in (codes, means):
    metric.update(MeasuredBatch(x, x - r / 4, torch.tensor([0, 1 + r])))
    metric.merge()
assert codes.counts[0].tolist() == [2, 1, 1, 0]
assert means.value() == (0 + 0.25 + 0.25) / 3
ssim = SsimConfig().build(model)
if r == 1:
    ssim.update(MeasuredBatch(x, x))
ssim.merge()
assert abs(ssim.value() - 1) < 1e-9
print(f"rank {r} done", flush=True)
dist.destroy_process_group()
"""


def test_one_process_is_the_only_rank() -> None:
    assert not collectives.is_distributed()
    assert collectives.world_size() == 1
    assert collectives.rank() == 0


def test_sums_of_one_process_are_its_own_in_the_form_given() -> None:
    tensor = torch.tensor([1, 2])
    total = collectives.all_reduce_sum(tensor)
    total += 1
    assert tensor.tolist() == [1, 2]
    named = collectives.all_reduce_sum({"b": tensor, "a": torch.tensor(0.5)})
    assert list(named) == ["b", "a"]
    assert named["a"].item() == 0.5
    assert [each.tolist() for each in collectives.all_reduce_sum([tensor])] == [[1, 2]]


def test_gathering_and_broadcasting_in_one_process_give_what_was_put_in() -> None:
    tensor = torch.arange(6).reshape(3, 2)
    assert torch.equal(collectives.gather_samples(tensor), tensor)
    assert torch.equal(collectives.broadcast_tensor(tensor), tensor)
    assert collectives.gather_objects("value") == ["value"]
    assert collectives.broadcast_object("value") == "value"


def test_one_process_agrees_with_itself() -> None:
    assert collectives.all_agree(True)
    assert not collectives.all_agree(False)
    assert collectives.any_rank(True)
    assert not collectives.any_rank(False)


def test_samples_without_a_first_dimension_are_refused() -> None:
    with pytest.raises(InvalidValueError, match=r"shape \(\)"):
        collectives.gather_samples(torch.tensor(1.0))


def test_two_ranks_sum_gather_in_order_broadcast_and_agree(tmp_path: Path) -> None:
    script = tmp_path / "two_ranks.py"
    script.write_text(TWO_RANKS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    result = subprocess.run(
        [*launcher, "--nproc_per_node", "2", str(script)],
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "rank 0 done" in result.stdout
    assert "rank 1 done" in result.stdout
