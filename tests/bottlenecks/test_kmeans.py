from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imagetok.bottlenecks.kmeans import kmeans
from imagetok.codesearch import nearest_code
from imagetok.errors import InvalidValueError


def clusters(count: int, members: int, width: int = 8) -> tuple[Tensor, Tensor]:
    """Centres (count, width) far from each other, and shuffled vectors close to them."""
    torch.manual_seed(0)
    centres = 10 * torch.randn(count, width)
    vectors = centres.repeat(members, 1) + 0.05 * torch.randn(count * members, width)
    return centres, vectors[torch.randperm(len(vectors))]


@pytest.mark.parametrize("count", [1, 2, 8, 64])
def test_well_separated_clusters_are_all_found(count: int) -> None:
    centres, vectors = clusters(count, 20)
    found = kmeans(vectors, count)
    assert found.shape == centres.shape
    assert torch.cdist(centres, found).min(dim=1).values.max() < 0.2
    assert torch.cdist(found, centres).argmin(dim=1).unique().numel() == count


def test_of_very_many_clusters_nearly_all_are_found() -> None:
    centres, vectors = clusters(512, 4)
    found = torch.cdist(centres, kmeans(vectors, 512)).min(dim=1).values < 0.5
    assert found.double().mean() > 0.97


def test_centres_are_the_means_of_their_members() -> None:
    torch.manual_seed(1)
    vectors = torch.randn(400, 2, dtype=torch.float64)
    centres = kmeans(vectors, 5, iterations=200)
    nearest = torch.cdist(vectors, centres).argmin(dim=1)
    for index in range(5):
        torch.testing.assert_close(vectors[nearest == index].mean(dim=0), centres[index])


def test_iterations_lower_the_error() -> None:
    torch.manual_seed(1)
    vectors = torch.randn(2000, 4)
    errors = [
        torch.cdist(vectors, kmeans(vectors, 32, iterations)).min(dim=1).values.square().mean()
        for iterations in (1, 3, 10)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_the_same_vectors_give_the_same_centres_whatever_was_drawn_before() -> None:
    _, vectors = clusters(16, 8)
    before = vectors.clone()
    first = kmeans(vectors, 16)
    state = torch.get_rng_state()
    torch.rand(5)
    assert torch.equal(kmeans(vectors, 16), first)
    assert torch.equal(vectors, before)
    torch.set_rng_state(state)
    kmeans(vectors, 16)
    assert torch.equal(torch.get_rng_state(), state)


def test_as_many_centres_as_vectors_are_the_vectors() -> None:
    vectors = torch.arange(12.0).view(6, 2)
    centres = kmeans(vectors, 6)
    assert torch.equal(centres[centres[:, 0].argsort()], vectors)


def test_fewer_different_vectors_than_centres_give_finite_centres() -> None:
    vectors = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).repeat(10, 1)
    centres = kmeans(vectors, 5)
    assert centres.isfinite().all()
    assert {tuple(centre) for centre in centres.tolist()} == {(0.0, 0.0), (1.0, 1.0)}


def test_fewer_vectors_than_centres_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="8 centres needs at least as many vectors, got 7"):
        kmeans(torch.randn(7, 2), 8)


def test_a_large_codebook_fits_as_well_as_by_all_iterations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    vectors, held_out = torch.randn(2, 4 * 1100, 8)
    centres = kmeans(vectors, 1100)
    monkeypatch.setattr("imagetok.bottlenecks.kmeans.SMALL", 1100)
    errors = [
        torch.cdist(held_out, found).min(dim=1).values.square().mean()
        for found in (centres, kmeans(vectors, 1100))
    ]
    assert errors[0] < 1.01 * errors[1]


def test_a_large_codebook_is_searched_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    searched = []

    def count(vectors: Tensor, codes: Tensor) -> Tensor:
        searched.append(len(codes))
        return nearest_code(vectors, codes)

    monkeypatch.setattr("imagetok.bottlenecks.kmeans.nearest_code", count)
    torch.manual_seed(0)
    kmeans(torch.randn(4 * 1100, 8), 1100)
    assert sum(searched) <= 5 * 1100  # the start's search, and four iterations
