"""How the vector quantizer's codebook learns: averages, restarts, initialisation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from imagetok.bottlenecks import Statistics, VectorQuantizer
from imagetok.errors import InvalidValueError

KEYS = torch.arange(100, 164)


def build(codebook_size: int = 8, width: int = 4, **options: Any) -> VectorQuantizer:
    torch.manual_seed(0)
    return VectorQuantizer(codebook_size, width, **options)


def batch(seed: int, size: int = 16, width: int = 4) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(size, width, 3, 3)


def learn(bottleneck: VectorQuantizer, z: Tensor, step: int = 0) -> None:
    bottleneck.update(bottleneck(z, keys=KEYS[: len(z)]).statistics, step)


# Averages


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.99])
def test_averages_follow_the_papers_formula_in_float64(decay: float) -> None:
    bottleneck = build(decay=decay, restart_below=0)
    count = torch.ones(8, dtype=torch.float64)
    table = bottleneck.codebook.double()
    total = table.clone()
    for step in range(6):
        z = batch(step)
        vectors = z.double().movedim(1, -1).reshape(-1, 4)
        ids = (vectors[:, None] - table[None]).square().sum(dim=2).argmin(dim=1)
        one_hot = torch.nn.functional.one_hot(ids, 8).double()
        count = decay * count + (1 - decay) * one_hot.sum(dim=0)
        total = decay * total + (1 - decay) * one_hot.T @ vectors
        table = total / count[:, None]
        learn(bottleneck, z, step)
        torch.testing.assert_close(bottleneck.codebook.double(), table, atol=2e-6, rtol=0)
        torch.testing.assert_close(bottleneck.running_counts.double(), count, atol=2e-5, rtol=0)


@pytest.mark.parametrize("normalize", [False, True])
def test_codes_without_members_stay_bit_for_bit(normalize: bool) -> None:
    bottleneck = build(codebook_size=500, normalize=normalize, restart_below=0)
    before = bottleneck.codebook.clone()
    never = torch.ones(500, dtype=torch.bool)
    for step in range(5):
        z = batch(step)
        never[bottleneck.encode_ids(z)] = False
        learn(bottleneck, z, step)
    assert 50 < never.sum() < 450
    assert torch.equal(bottleneck.codebook[never], before[never])
    assert (bottleneck.codebook[~never] != before[~never]).any(dim=1).all()


def test_at_decay_0_a_code_is_the_mean_of_its_members() -> None:
    bottleneck = build(decay=0.0, restart_below=0)
    for step in range(3):
        z, before = batch(step), bottleneck.codebook.clone()
        ids = bottleneck.encode_ids(z).flatten()
        learn(bottleneck, z, step)
        vectors = z.movedim(1, -1).reshape(-1, 4)
        for index in range(8):
            members = vectors[ids == index]
            expected = members.mean(dim=0) if len(members) else before[index]
            torch.testing.assert_close(bottleneck.codebook[index], expected)


@pytest.mark.parametrize("normalize", [False, True])
def test_at_decay_1_nothing_moves(normalize: bool) -> None:
    bottleneck = build(decay=1.0, normalize=normalize)
    before = {name: tensor.clone() for name, tensor in bottleneck.named_buffers()}
    for step in range(3):
        learn(bottleneck, batch(step), step)
    after = dict(bottleneck.named_buffers())
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_update_from_two_halves_is_that_from_the_whole() -> None:
    whole, halves = build(codebook_size=64, decay=0.3), build(codebook_size=64, decay=0.3)
    for step in range(8):
        z, keys = batch(step), KEYS[:16]
        whole.update(whole(z, keys=keys).statistics, step)
        parts = [halves(z[i : i + 8], keys=keys[i : i + 8]).statistics for i in (0, 8)]
        merged = Statistics(
            {name: parts[0].sums[name] + parts[1].sums[name] for name in parts[0].sums},
            {"candidates": torch.cat([part.samples["candidates"] for part in parts])},
        )
        halves.update(merged, step)
        assert torch.equal(whole.running_counts, halves.running_counts)
        torch.testing.assert_close(whole.codebook, halves.codebook)


def test_an_update_is_the_same_in_train_and_eval_mode() -> None:
    trained, evaluated = build(decay=0.5).train(), build(decay=0.5).eval()
    learn(trained, batch(0))
    learn(evaluated, batch(0))
    assert torch.equal(trained.codebook, evaluated.codebook)
    assert torch.equal(trained.running_counts, evaluated.running_counts)
    assert not torch.equal(trained.running_counts, torch.ones(8))


@pytest.mark.parametrize("codebook", ["ema", "loss"])
def test_normalised_codes_stay_on_the_sphere(codebook: str) -> None:
    bottleneck = build(codebook_size=32, normalize=True, codebook=codebook, decay=0.3)
    for step in range(10):
        if codebook == "loss":
            with torch.no_grad():
                bottleneck.codebook.add_(0.1 * torch.randn(32, 4))  # an optimizer's step
        learn(bottleneck, batch(step), step)
        torch.testing.assert_close(bottleneck.codebook.norm(dim=1), torch.ones(32))


def test_a_codebook_learnt_by_its_loss_is_left_to_the_optimizer() -> None:
    bottleneck = build(codebook="loss", restart_below=0)
    before = bottleneck.codebook.detach().clone()
    learn(bottleneck, batch(0))
    assert torch.equal(bottleneck.codebook, before)
    assert not torch.equal(bottleneck.running_counts, torch.ones(8))


def test_a_codebook_learnt_by_its_loss_comes_to_the_means_of_its_members() -> None:
    bottleneck = build(codebook="loss", restart_below=0)
    z = batch(0)
    optimizer = torch.optim.SGD(bottleneck.parameters(), lr=5.0)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = bottleneck(z).losses["loss/codebook"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    ids, vectors = bottleneck.encode_ids(z).flatten(), z.movedim(1, -1).reshape(-1, 4)
    for index in ids.unique():
        mean = vectors[ids == index].mean(dim=0)
        torch.testing.assert_close(bottleneck.codebook[index], mean, atol=1e-3, rtol=0)


# Restarts


def dead_and_live(**options: Any) -> tuple[VectorQuantizer, Tensor, Tensor]:
    """Eight codes that data is near to and 24 far away, and their masks."""
    bottleneck = build(codebook_size=32, decay=0.5, **options)
    live = torch.arange(32) % 4 == 0
    with torch.no_grad():
        bottleneck.codebook.copy_(torch.randn(32, 4))
        bottleneck.codebook[~live] += 100
    for step in range(12):
        statistics = bottleneck(batch(step), keys=KEYS[:16]).statistics
        bottleneck.update(Statistics(statistics.sums), step)
    return bottleneck, ~live, live


@pytest.mark.parametrize("codebook", ["ema", "loss"])
def test_dead_codes_restart_at_different_candidates_and_live_ones_do_not_move(
    codebook: str,
) -> None:
    bottleneck, dead, live = dead_and_live(codebook=codebook)
    before, counts = bottleneck.codebook.detach().clone(), bottleneck.running_counts.clone()
    statistics = bottleneck(batch(99), keys=KEYS[:16]).statistics
    bottleneck.update(Statistics({"counts": torch.zeros(32)}, statistics.samples), 99)
    assert torch.equal(bottleneck.codebook[live], before[live])
    restarted = {tuple(row) for row in bottleneck.codebook[dead].tolist()}
    assert restarted <= {tuple(row) for row in statistics.samples["candidates"].tolist()}
    assert len(restarted) == 24
    counts = counts / 2  # the update's own decay
    assert torch.equal(bottleneck.running_counts[live], counts[live])
    assert torch.equal(bottleneck.running_counts[dead], counts.mean().expand(24))


def test_restarted_codes_are_used() -> None:
    bottleneck, dead, _ = dead_and_live()
    assert not dead[bottleneck.encode_ids(batch(100))].any()
    learn(bottleneck, batch(99), 99)
    used = bottleneck.encode_ids(batch(100, 64)).unique()
    assert dead[used].sum() >= 20


def test_with_fewer_candidates_than_dead_codes_the_least_used_restart_first() -> None:
    bottleneck, dead, _ = dead_and_live()
    bottleneck.running_counts[dead] = torch.arange(24, 0, -1) * 1e-6
    before = bottleneck.codebook.clone()
    candidates = torch.randn(5, 4)
    bottleneck.update(
        Statistics(
            {"counts": torch.zeros(32), "vectors": torch.zeros(32, 4)}, {"candidates": candidates}
        ),
        0,
    )
    moved = (bottleneck.codebook != before).any(dim=1).nonzero().flatten()
    assert torch.equal(moved, dead.nonzero().flatten()[-5:])
    found = bottleneck.codebook[moved]
    assert torch.equal(found.sort(dim=0).values, candidates.sort(dim=0).values)


def test_candidates_far_from_the_codebook_are_preferred() -> None:
    bottleneck, dead, _ = dead_and_live()
    near = bottleneck.codebook[0] + 1e-3 * torch.randn(200, 4)
    far = -50 + torch.randn(24, 4)
    candidates = torch.cat([near, far])
    bottleneck.update(Statistics({"counts": torch.zeros(32)}, {"candidates": candidates}), 0)
    chosen = {tuple(row) for row in bottleneck.codebook[dead].tolist()}
    assert chosen == {tuple(row) for row in far.tolist()}


def test_restart_below_0_never_restarts() -> None:
    bottleneck, _, _ = dead_and_live(restart_below=0)
    before = bottleneck.codebook.clone()
    bottleneck.update(
        Statistics({"counts": torch.zeros(32)}, {"candidates": torch.randn(50, 4)}), 0
    )
    assert torch.equal(bottleneck.codebook, before)


def test_codes_used_alike_do_not_restart() -> None:
    bottleneck = build(decay=0.5)
    before = bottleneck.codebook.clone()
    for step in range(20):
        bottleneck.update(
            Statistics({"counts": torch.full((8,), 3.0)}, {"candidates": batch(0)[..., 0, 0]}), step
        )
    assert torch.equal(bottleneck.codebook, before)


def test_restarts_are_a_function_of_statistics_and_step() -> None:
    found = []
    for step in (7, 7, 8):
        bottleneck, _, _ = dead_and_live()
        statistics = bottleneck(batch(99), keys=KEYS[:16]).statistics
        torch.rand(len(found))  # what else was drawn does not matter
        bottleneck.update(statistics, step)
        found.append(bottleneck.codebook.clone())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_updates_leave_torchs_own_generator_alone() -> None:
    bottleneck, _, _ = dead_and_live()
    statistics = bottleneck(batch(99), keys=KEYS[:16]).statistics
    before = torch.get_rng_state()
    bottleneck.update(statistics, 0)
    bottleneck.initialize(torch.randn(200, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), before)


# Initialisation


def mixture(seed: int, size: int) -> Tensor:
    """Encoder outputs (size, 4, 3, 3) from 16 clusters far from each other."""
    centres = 5 * torch.randn(16, 4, generator=torch.Generator().manual_seed(77))
    source = torch.Generator().manual_seed(seed)
    chosen = torch.randint(16, (size, 3, 3), generator=source)
    noise = 0.3 * torch.randn(size, 3, 3, 4, generator=source)
    return (centres[chosen] + noise).movedim(-1, 1)


@pytest.mark.parametrize(
    "options",
    [{}, {"codebook": "loss"}, {"normalize": True}, {"code_dim": 3}],
    ids=["plain", "loss", "normalized", "projected"],
)
def test_after_initialisation_fresh_data_uses_nearly_all_codes(options: dict[str, Any]) -> None:
    bottleneck = build(codebook_size=64, **options)
    fresh = mixture(2, 200)
    used_before = bottleneck.encode_ids(fresh).unique().numel()
    vectors = mixture(1, 30).movedim(1, -1).reshape(-1, 4)
    assert len(vectors) >= bottleneck.num_initial_vectors
    bottleneck.initialize(vectors)
    used_after = bottleneck.encode_ids(fresh).unique().numel()
    assert used_after >= 0.95 * 64
    assert used_before < 0.7 * 64


def test_initialisation_lowers_the_commitment_loss() -> None:
    bottleneck = build(codebook_size=64)
    z = mixture(2, 50)
    before = bottleneck(z).losses["loss/commitment"]
    bottleneck.initialize(mixture(1, 30).movedim(1, -1).reshape(-1, 4))
    assert bottleneck(z).losses["loss/commitment"] < 0.05 * before


def test_initialisation_is_deterministic_and_forgets_what_was_learnt() -> None:
    vectors = mixture(1, 30).movedim(1, -1).reshape(-1, 4)
    fresh, used = build(codebook_size=64), build(codebook_size=64)
    learn(used, batch(0))
    fresh.initialize(vectors)
    used.initialize(vectors)
    assert torch.equal(fresh.codebook, used.codebook)
    assert torch.equal(used.running_counts, torch.zeros(64))


def test_initialisation_under_autocast_is_exact() -> None:
    vectors = mixture(1, 30).movedim(1, -1).reshape(-1, 4)
    exact, cast = build(codebook_size=64, code_dim=3), build(codebook_size=64, code_dim=3)
    exact.initialize(vectors)
    with torch.autocast("cpu", torch.bfloat16):
        cast.initialize(vectors)
    assert torch.equal(cast.codebook, exact.codebook)


def test_normalised_codes_start_on_the_sphere() -> None:
    bottleneck = build(codebook_size=64, normalize=True)
    torch.testing.assert_close(bottleneck.codebook.norm(dim=1), torch.ones(64))
    bottleneck.initialize(torch.randn(256, 4))
    torch.testing.assert_close(bottleneck.codebook.norm(dim=1), torch.ones(64))


def test_fewer_vectors_than_codes_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="got 63"):
        build(codebook_size=64).initialize(torch.randn(63, 4))


def test_without_kmeans_no_vectors_are_asked_for() -> None:
    assert build(kmeans_init=False).num_initial_vectors == 0
    assert build().num_initial_vectors == 32
