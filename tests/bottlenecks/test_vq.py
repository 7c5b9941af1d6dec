"""The training pass of the vector quantizer: codes, gradients, losses, statistics."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imagetok.bottlenecks import VectorQuantizer
from imagetok.bottlenecks.restarts import CANDIDATES_PER_SAMPLE

KEYS = torch.tensor([3, 4, 5, 6])
DESIGNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "loss": {"codebook": "loss"},
    "normalized": {"normalize": True},
    "projected": {"code_dim": 3},
    "projected-normalized": {"code_dim": 3, "normalize": True},
}
every_design = pytest.mark.parametrize("design", DESIGNS)
both_gradients = pytest.mark.parametrize("gradient", ["straight_through", "rotation"])


def build(codebook_size: int = 10, **options: Any) -> tuple[VectorQuantizer, Tensor]:
    """A seeded quantizer, and an encoder output (4, 5, 3, 2) for it."""
    torch.manual_seed(0)
    return VectorQuantizer(codebook_size, 5, **options), torch.randn(4, 5, 3, 2)


def rows(z: Tensor) -> Tensor:
    """(B, D, h, w) to (B h w, D)."""
    return z.movedim(1, -1).flatten(0, 2)


# Codes


@every_design
@both_gradients
def test_the_decoder_gets_exactly_the_looked_up_codes(design: str, gradient: str) -> None:
    bottleneck, z = build(**DESIGNS[design], gradient=gradient)
    for scale in (1e-4, 1.0, 1e4):
        out = bottleneck(scale * z, keys=KEYS)
        assert torch.equal(out.z_q, bottleneck.lookup(out.ids))


@both_gradients
def test_codes_equal_and_opposite_to_their_vectors_give_finite_gradients(gradient: str) -> None:
    bottleneck = VectorQuantizer(1, 2, gradient=gradient)
    bottleneck.codebook.copy_(torch.tensor([[1.0, 2.0]]))
    z = torch.tensor([[1.0, 2.0], [-1.0, -2.0], [1e-9, 0.0]])[:, :, None, None].requires_grad_()
    out = bottleneck(z)
    out.z_q.sum().backward()
    assert torch.equal(rows(out.z_q), torch.tensor([[1.0, 2.0]]).expand(3, 2))
    assert z.grad is not None
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("code_dim", [None, 3])
def test_normalised_codes_are_searched_by_cosine(code_dim: int | None) -> None:
    bottleneck, z = build(normalize=True, code_dim=code_dim)
    vectors = bottleneck.project_in(rows(z))
    cosine = F.cosine_similarity(vectors[:, None], bottleneck.codebook[None], dim=-1)
    assert torch.equal(bottleneck.encode_ids(z).flatten(), cosine.argmax(dim=1))
    scaled = z * torch.rand(4, 1, 3, 2) + 0.1 * z
    if code_dim is None:
        assert torch.equal(bottleneck.encode_ids(scaled), bottleneck.encode_ids(z))


def test_a_code_is_its_own_nearest() -> None:
    bottleneck, _ = build(code_dim=None)
    z = bottleneck.lookup(torch.arange(10).view(1, 2, 5))
    assert torch.equal(bottleneck.encode_ids(z), torch.arange(10).view(1, 2, 5))


def test_only_the_codebook_and_the_projections_are_saved() -> None:
    bottleneck, _ = build(code_dim=3)
    names = {"project_in", "project_out"}
    assert {name.split(".")[0] for name in bottleneck.state_dict()} == {"codebook", *names}
    assert set(build()[0].state_dict()) == {"codebook"}


def test_the_rate_is_ln_k_nats_a_position() -> None:
    bottleneck, z = build(codebook_size=512)
    z_q, nats = bottleneck.rate(z, KEYS)
    assert torch.equal(z_q, bottleneck.latents(z))
    torch.testing.assert_close(nats, torch.full((4,), 6 * math.log(512)))


# Gradients


@pytest.mark.parametrize("codebook", ["ema", "loss"])
def test_the_straight_through_gradient_is_exactly_one(codebook: str) -> None:
    bottleneck, z = build(codebook=codebook)
    z.requires_grad_()
    upstream = torch.randn(4, 5, 3, 2)
    bottleneck(z).z_q.backward(upstream)
    assert z.grad is not None
    assert torch.equal(z.grad, upstream)


def test_the_straight_through_jacobian_is_the_identity() -> None:
    bottleneck, z = build()
    jacobian = torch.autograd.functional.jacobian(lambda x: bottleneck(x).z_q, z[:1])
    assert torch.equal(jacobian.view(30, 30), torch.eye(30))


def test_with_projections_only_theirs_is_the_jacobian() -> None:
    bottleneck, z = build(code_dim=3)
    z.requires_grad_()
    upstream = torch.randn(4, 5, 3, 2)
    bottleneck(z).z_q.backward(upstream)
    expected = rows(upstream) @ bottleneck.project_out.weight @ bottleneck.project_in.weight
    assert z.grad is not None
    torch.testing.assert_close(rows(z.grad), expected)


def test_with_normalisation_only_its_is_the_jacobian() -> None:
    bottleneck, z = build(normalize=True)
    z.requires_grad_()
    upstream = torch.randn(4, 5, 3, 2)
    (found,) = torch.autograd.grad(bottleneck(z).z_q, z, upstream)
    (expected,) = torch.autograd.grad(F.normalize(z, dim=1), z, upstream)
    torch.testing.assert_close(found, expected)


def rotation(vector: Tensor, code: Tensor) -> Tensor:
    """The map of the rotation trick as a matrix, by hand: |e| / |z| times the turn of z to e."""
    v, e = vector / vector.norm(), code / code.norm()
    r = (v + e) / (v + e).norm()
    turn = torch.eye(len(v), dtype=v.dtype) - 2 * torch.outer(r, r) + 2 * torch.outer(e, v)
    return code.norm() / vector.norm() * turn


def test_the_rotation_gradient_is_that_of_the_rotation_built_by_hand() -> None:
    bottleneck, z = build(gradient="rotation")
    bottleneck.double()
    z = z.double().requires_grad_()
    upstream = torch.randn(4, 5, 3, 2, dtype=torch.float64)
    out = bottleneck(z)
    (found,) = torch.autograd.grad(out.z_q, z, upstream)
    triples = zip(rows(z.detach()), rows(out.z_q.detach()), rows(upstream), strict=True)
    expected = []
    for vector, code, gradient in triples:
        matrix = rotation(vector, code)
        torch.testing.assert_close(matrix @ vector, code)
        expected.append(matrix.T @ gradient)
    torch.testing.assert_close(rows(found), torch.stack(expected))


def test_the_rotation_scales_a_gradient_by_the_ratio_of_the_norms() -> None:
    bottleneck, z = build(gradient="rotation")
    bottleneck.double()
    z = z.double().requires_grad_()
    upstream = torch.randn(4, 5, 3, 2, dtype=torch.float64)
    out = bottleneck(z)
    (found,) = torch.autograd.grad(out.z_q, z, upstream)
    ratio = rows(out.z_q).norm(dim=1) / rows(z).norm(dim=1)
    torch.testing.assert_close(rows(found).norm(dim=1), ratio * rows(upstream).norm(dim=1))
    # The angle to the code becomes the angle to the vector.
    torch.testing.assert_close(
        F.cosine_similarity(rows(found), rows(z)),
        F.cosine_similarity(rows(upstream), rows(out.z_q)),
    )


def test_the_codebook_loss_moves_the_codebook_and_the_commitment_loss_the_encoder() -> None:
    bottleneck, z = build(codebook="loss")
    z.requires_grad_()
    losses = bottleneck(z).losses
    assert set(losses) == {"loss/codebook", "loss/commitment"}
    wanted = (z, bottleneck.codebook)
    to_z, to_codebook = torch.autograd.grad(losses["loss/codebook"], wanted, allow_unused=True)
    assert to_z is None
    assert to_codebook.abs().sum() > 0
    to_z, to_codebook = torch.autograd.grad(losses["loss/commitment"], wanted, allow_unused=True)
    assert to_z.abs().sum() > 0
    assert to_codebook is None


@both_gradients
def test_the_decoders_gradient_does_not_reach_the_codebook(gradient: str) -> None:
    bottleneck, z = build(codebook="loss", gradient=gradient)
    found = torch.autograd.grad(
        bottleneck(z.requires_grad_()).z_q.sum(), bottleneck.codebook, allow_unused=True
    )
    assert found == (None,)


def test_an_averaged_codebook_has_no_loss_and_no_gradient() -> None:
    bottleneck, z = build()
    assert set(bottleneck(z).losses) == {"loss/commitment"}
    assert not list(bottleneck.parameters())


@every_design
def test_losses_are_means_over_batch_positions_and_channels(design: str) -> None:
    bottleneck, z = build(**DESIGNS[design])
    out = bottleneck(z)
    vectors = bottleneck.project_in(rows(z))
    vectors = F.normalize(vectors, dim=1) if bottleneck.normalize else vectors
    error = (vectors - bottleneck.codebook[out.ids.flatten()]).double().square().sum()
    for loss in out.losses.values():
        torch.testing.assert_close(loss.double(), error / vectors.numel())


def test_the_codebook_losss_gradient_pulls_each_code_to_the_mean_of_its_members() -> None:
    bottleneck, z = build(codebook="loss")
    out = bottleneck(z)
    out.losses["loss/codebook"].backward()
    assert bottleneck.codebook.grad is not None
    for index in range(10):
        members = rows(z)[out.ids.flatten() == index]
        expected = 2 * (bottleneck.codebook[index] - members).sum(dim=0) / z.numel()
        torch.testing.assert_close(bottleneck.codebook.grad[index], expected)


# Statistics


@every_design
def test_statistics_of_two_halves_add_up_to_those_of_the_whole(design: str) -> None:
    bottleneck, z = build(**DESIGNS[design])
    bottleneck.double()
    z = z.double()
    whole = bottleneck(z, keys=KEYS).statistics
    first, second = (bottleneck(z[i : i + 2], keys=KEYS[i : i + 2]).statistics for i in (0, 2))
    assert set(whole.sums) == {"counts", *(["vectors"] if bottleneck.averaged else [])}
    assert torch.equal(first.sums["counts"] + second.sums["counts"], whole.sums["counts"])
    for name, total in whole.sums.items():
        torch.testing.assert_close(first.sums[name] + second.sums[name], total)
    assert set(whole.samples) == {"candidates"}
    for name, rows_in_order in whole.samples.items():
        halves = torch.cat([first.samples[name], second.samples[name]])
        assert torch.equal(halves, rows_in_order)


def test_sums_are_those_of_the_members() -> None:
    bottleneck, z = build()
    out = bottleneck(z)
    for index in range(10):
        expected = rows(z)[out.ids.flatten() == index].sum(dim=0)
        torch.testing.assert_close(out.statistics.sums["vectors"][index], expected)


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (4, 4)])
def test_candidates_are_a_fixed_number_of_different_places_of_each_sample(
    size: tuple[int, int],
) -> None:
    bottleneck, _ = build()
    z = torch.randn(4, 5, *size)
    candidates = bottleneck(z, keys=KEYS).statistics.samples["candidates"]
    count = min(CANDIDATES_PER_SAMPLE, size[0] * size[1])
    assert candidates.shape == (4 * count, 5)
    for sample, chosen in zip(z, candidates.split(count), strict=True):
        vectors = {tuple(row) for row in sample.flatten(1).T.tolist()}
        assert {tuple(row) for row in chosen.tolist()} <= vectors
        assert len(chosen.unique(dim=0)) == count


def test_without_restarts_there_are_no_candidates() -> None:
    bottleneck, z = build(restart_below=0)
    assert bottleneck(z).statistics.samples == {}


def test_statistics_carry_no_graph() -> None:
    bottleneck, z = build(code_dim=3)
    statistics = bottleneck(z.requires_grad_(), keys=KEYS).statistics
    for tensor in (*statistics.sums.values(), *statistics.samples.values()):
        assert not tensor.requires_grad
