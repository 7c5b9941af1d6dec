from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from imagetok.codesearch import argmax_linear, blocks, nearest_code, search_backend, use_backend
from imagetok.codesearch.blocks import search_dtype
from imagetok.codesearch.kernel import Kernel
from imagetok.errors import InvalidValueError


@pytest.fixture(params=["native", "torch"], autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each test holds for each backend."""
    if request.param == "native":
        request.getfixturevalue("kernel")
    with use_backend(request.param):
        yield request.param


@pytest.fixture
def any_matmul_precision() -> Iterator[None]:
    """Lets a test change how exact float32 products are, and restores it."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def squared_distances(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Brute force in float64, without expanding the square: (N, K)."""
    return (vectors.double()[:, None] - codebook.double()[None]).square().sum(dim=2)


def test_the_nearest_code_is_that_of_brute_force_in_float64() -> None:
    torch.manual_seed(0)
    sizes = torch.randint(1, 70, (60, 3)).tolist()
    for rows, codes, width in sizes:
        vectors, codebook = torch.randn(rows, width), torch.randn(codes, width)
        found = nearest_code(vectors, codebook)
        expected = squared_distances(vectors, codebook).argmin(dim=1)
        assert found.dtype == torch.int64
        assert torch.equal(found, expected), (rows, codes, width)


def test_at_mean_100_and_spread_1_the_code_found_is_the_nearest_or_within_rounding_of_it() -> None:
    torch.manual_seed(0)
    vectors, codebook = 100 + torch.randn(2000, 16), 100 + torch.randn(128, 16)
    distances = squared_distances(vectors, codebook)
    found = distances.gather(1, nearest_code(vectors, codebook)[:, None])[:, 0]
    least = distances.min(dim=1).values
    # |e|^2 / 2 is about 80,000 there, and the rounding of a float32 of that size about 0.01.
    assert (found - least).max() < 0.1
    assert (found == least).double().mean() > 0.98


def test_a_tie_goes_to_the_lowest_index() -> None:
    codebook = torch.tensor([[3.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [3.0, 0.0]])
    vectors = torch.tensor([[0.0, 0.0], [2.0, 5.0], [3.0, 1.0], [-9.0, 0.0]])
    assert nearest_code(vectors, codebook).tolist() == [1, 0, 0, 1]
    weight = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    features = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    assert argmax_linear(features, weight).tolist() == [1, 1, 0]


def test_on_a_lattice_with_many_ties_the_ids_are_those_of_brute_force() -> None:
    torch.manual_seed(1)
    vectors, codebook = torch.randint(-3, 4, (500, 3)), torch.randint(-3, 4, (100, 3))
    distances = squared_distances(vectors, codebook)
    ties = (distances == distances.min(dim=1, keepdim=True).values).sum(dim=1)
    assert (ties > 1).double().mean() > 0.3
    assert torch.equal(nearest_code(vectors.float(), codebook.float()), distances.argmin(dim=1))


@pytest.mark.parametrize("scores", [1, 7, 50, 64, 1000])
def test_blocks_change_no_id(scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    vectors, codebook, bias = torch.randn(101, 5), torch.randn(9, 5), torch.randn(9)
    nearest, largest = nearest_code(vectors, codebook), argmax_linear(vectors, codebook, bias)
    monkeypatch.setattr(blocks, "CPU_SCORES", scores)
    monkeypatch.setattr(blocks, "MIN_ROWS", 1)
    assert torch.equal(nearest_code(vectors, codebook), nearest)
    assert torch.equal(argmax_linear(vectors, codebook, bias), largest)


@pytest.mark.parametrize(("min_rows", "rows"), [(1, [10] * 9 + [5]), (40, [40, 40, 15])])
def test_torch_holds_scores_up_to_the_limit_or_of_a_few_rows(
    min_rows: int, rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = held_scores(monkeypatch)
    monkeypatch.setattr(blocks, "CPU_SCORES", 100)
    monkeypatch.setattr(blocks, "MIN_ROWS", min_rows)
    with use_backend("torch"):
        nearest_code(torch.randn(95, 4), torch.randn(10, 4))
    assert held == [(count, 10) for count in rows]


def test_torch_compares_a_large_table_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(8)
    vectors, codebook, bias = torch.randn(30, 3), torch.randn(50, 3).round(), torch.randn(50)
    vectors[3, 1] = codebook[41, 2] = torch.nan
    with use_backend("torch"):
        nearest, largest = nearest_code(vectors, codebook), argmax_linear(vectors, codebook, bias)
        held = held_scores(monkeypatch)
        monkeypatch.setattr(blocks, "MAX_CODES", 20)
        assert torch.equal(nearest_code(vectors, codebook), nearest)
        assert torch.equal(argmax_linear(vectors, codebook, bias), largest)
    assert {codes for _, codes in held} == {20, 10}


def held_scores(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of all matrices of scores from now on."""
    held = []

    def addmm(bias: Tensor, rows: Tensor, table: Tensor, *, alpha: float, out: Tensor) -> Tensor:
        held.append(tuple(out.shape))
        return torch.add(bias, rows @ table, alpha=alpha, out=out)

    monkeypatch.setattr(torch, "addmm", addmm)
    return held


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_half_types_are_searched_in_float32_and_float64_in_float64(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    vectors, codebook = torch.randn(3000, 8).to(dtype), torch.randn(256, 8).to(dtype)
    expected = squared_distances(vectors, codebook).argmin(dim=1)
    assert torch.equal(nearest_code(vectors, codebook), expected)
    naive = (codebook.square().sum(dim=1) / 2 - vectors @ codebook.T).argmin(dim=1)
    if dtype != torch.float64:
        assert not torch.equal(naive, expected)  # what the promotion is there for


def test_float16_vectors_of_length_300_do_not_overflow() -> None:
    torch.manual_seed(4)
    vectors = (300 * torch.randn(500, 64)).half()
    codebook = 300 * torch.randn(64, 64)
    expected = squared_distances(vectors, codebook).argmin(dim=1)
    assert torch.equal(nearest_code(vectors, codebook), expected)


def test_a_double_search_separates_codes_that_float32_cannot() -> None:
    codebook = torch.tensor([[1.0], [1.0 + 1e-6]], dtype=torch.float64)
    vectors = torch.tensor([[1.0 + 2e-6], [1.0]], dtype=torch.float64)
    assert nearest_code(vectors, codebook).tolist() == [1, 0]


def test_the_torch_backend_searches_float32_in_float32_and_the_native_one_exactly(
    backend: str,
) -> None:
    codebook, vectors = torch.tensor([[1.0], [1.0 + 1e-6]]), torch.tensor([[1.0 + 2e-6]])
    assert nearest_code(vectors, codebook).tolist() == [1 if backend == "native" else 0]


def test_autocast_changes_no_id() -> None:
    torch.manual_seed(5)
    vectors, codebook, bias = torch.randn(4000, 8), torch.randn(256, 8), torch.randn(256)
    nearest, largest = nearest_code(vectors, codebook), argmax_linear(vectors, codebook, bias)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal((vectors @ codebook.T + bias).argmax(dim=1), largest)
        assert torch.equal(nearest_code(vectors, codebook), nearest)
        assert torch.equal(argmax_linear(vectors, codebook, bias), largest)


@pytest.mark.usefixtures("any_matmul_precision")
@pytest.mark.parametrize("precision", ["high", "medium"])
def test_faster_float32_products_change_no_id(precision: str) -> None:
    torch.manual_seed(6)
    vectors, codebook, bias = torch.randn(4000, 8), torch.randn(256, 8), torch.randn(256)
    torch.set_float32_matmul_precision(precision)
    expected = squared_distances(vectors, codebook).argmin(dim=1)
    assert torch.equal(nearest_code(vectors, codebook), expected)
    largest = (vectors.double() @ codebook.double().T + bias.double()).argmax(dim=1)
    assert torch.equal(argmax_linear(vectors, codebook, bias), largest)


@pytest.mark.usefixtures("any_matmul_precision")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_reduced_precision_widens_the_search(device: str) -> None:
    assert search_dtype(torch.bfloat16, torch.device(device)) == torch.float32
    torch.set_float32_matmul_precision("high")
    assert search_dtype(torch.bfloat16, torch.device(device)) == torch.float64


def test_a_precision_reduced_by_the_newer_switches_widens_the_search_too() -> None:
    # In a process of its own: once these are used, the older ones raise.
    code = """
import torch
from imagetok.codesearch import nearest_code
from imagetok.codesearch.blocks import search_dtype
cpu, cuda = torch.device("cpu"), torch.device("cuda")
torch.backends.cuda.matmul.fp32_precision = "tf32"
assert search_dtype(torch.float32, cuda) == torch.float64
assert search_dtype(torch.float32, cpu) == torch.float32
torch.backends.mkldnn.matmul.fp32_precision = "bf16"
assert search_dtype(torch.float32, cpu) == torch.float64
assert nearest_code(torch.tensor([[0.9]]), torch.tensor([[0.0], [1.0]])).tolist() == [1]
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_largest_output_is_that_of_the_linear_map_in_float64() -> None:
    torch.manual_seed(7)
    for rows, codes, width in torch.randint(1, 60, (40, 3)).tolist():
        features, weight = torch.randn(rows, width), torch.randn(codes, width)
        for bias in (None, torch.randn(codes)):
            scores = features.double() @ weight.double().T
            scores = scores if bias is None else scores + bias.double()
            assert torch.equal(argmax_linear(features, weight, bias), scores.argmax(dim=1))


def test_no_rows_give_no_ids() -> None:
    empty = torch.empty(0, 4)
    assert nearest_code(empty, torch.randn(3, 4)).shape == (0,)
    assert argmax_linear(empty, torch.randn(3, 4)).shape == (0,)


def test_the_search_builds_no_graph() -> None:
    vectors = torch.randn(4, 3, requires_grad=True)
    codebook = torch.randn(5, 3, requires_grad=True)
    assert not nearest_code(vectors, codebook).requires_grad
    assert not argmax_linear(vectors, codebook).requires_grad


def test_tensors_that_do_not_fit_together_are_refused() -> None:
    rows, table = torch.randn(4, 3), torch.randn(5, 3)
    for width in (1, 2):
        with pytest.raises(InvalidValueError, match=rf"do not fit together: \[\(4, {width}\), "):
            nearest_code(rows[:, :width], table)
    with pytest.raises(InvalidValueError, match="do not fit together"):
        argmax_linear(rows, table, torch.randn(4))


def test_a_context_names_the_backend_whatever_the_environment_says(
    backend: str, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGETOK_BACKEND", "torch" if backend == "native" else "native")
    assert search_backend() == backend
    with use_backend(None):
        assert search_backend() == backend
    assert search_backend("cuda") == "torch"


def test_an_unknown_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGETOK_BACKEND", "fast")
    with pytest.raises(InvalidValueError, match="'fast'; set it to one of native, torch"):
        search_backend()
