"""The compiled search: exact ids in every width of vectors, and what happens without it."""

from __future__ import annotations

import logging
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from imagetok.codesearch import kernel as kernel_module
from imagetok.codesearch import nearest_code, search, search_backend
from imagetok.codesearch.kernel import Kernel, build_kernel
from imagetok.errors import InvalidValueError, KernelError

pytestmark = pytest.mark.usefixtures("kernel")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and a process that has not looked for a kernel yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("IMAGETOK_BACKEND", raising=False)
    search._kernel.cache_clear()
    yield tmp_path / "imagetok"
    search._kernel.cache_clear()


def exact_ids(rows: Tensor, table: Tensor, biases: Tensor | None) -> Tensor:
    """The least score in float64, a code at a time and in order of the dimensions."""
    rows, table = rows.double(), table.double()
    offsets = table.square().cumsum(1)[:, -1] / 2 if biases is None else -biases.double()
    products = (rows[:, None] * table).cumsum(2)[:, :, -1]
    return (offsets - products).argmin(dim=1)


@st.composite
def searches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rows, a table and biases of any shape, with ties, offsets and extreme sizes."""
    rows, codes = draw(st.integers(0, 120)), draw(st.integers(1, 200))
    dim = draw(st.one_of(st.integers(1, 20), st.sampled_from([31, 32, 33, 64, 70])))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    vectors = torch.randn(rows, dim, generator=random)
    table = torch.randn(codes, dim, generator=random)
    biases = torch.randn(codes, generator=random) if draw(st.booleans()) else None
    kind = draw(st.sampled_from(["plain", "lattice", "equal", "near", "mixed"]))
    if kind == "lattice":
        vectors, table = vectors.round(), table.round()
        biases = None if biases is None else biases.round()
    elif kind == "equal":  # codes that died in one place
        table = table[torch.randint(3, (codes,), generator=random) % codes]
        biases = None if biases is None else torch.zeros(codes)
    elif kind == "near":  # many codes within rounding of each other
        table = table[:1] + 1e-6 * table
    elif kind == "mixed":
        table = table * 10.0 ** torch.randint(-20, 20, (codes, 1), generator=random)
    scale = draw(st.sampled_from([1.0, 1e-42, 1e-25, 1e-6, 1e4, 1e15, 1e25, 1e38]))
    shift = draw(st.sampled_from([0.0, 0.0, 1.0, 100.0, 1e5]))
    return vectors * scale + shift * scale, table * scale + shift * scale, biases


@settings(max_examples=150, deadline=None)
@given(searches())
def test_ids_are_those_of_the_least_score_in_float64(
    kernel: Kernel, case: tuple[Tensor, Tensor, Tensor | None]
) -> None:
    assert torch.equal(kernel.search(*case), exact_ids(*case))


@pytest.mark.parametrize("biases", [False, True])
def test_what_is_not_a_number_is_least_as_in_torch(kernel: Kernel, biases: bool) -> None:
    torch.manual_seed(0)
    nan, inf = torch.nan, torch.inf
    for where in ("rows", "table"):
        for value in (nan, inf, -inf):
            rows, table = torch.randn(20, 5), torch.randn(40, 5)
            bias = torch.randn(40) if biases else None
            {"rows": rows, "table": table}[where][3, 2] = value
            assert torch.equal(kernel.search(rows, table, bias), exact_ids(rows, table, bias))


def test_threads_and_the_other_rows_change_no_id(kernel: Kernel) -> None:
    torch.manual_seed(1)
    rows, table = torch.randn(1000, 12), torch.randn(300, 12).round()
    whole = kernel.search(rows, table, None)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            assert torch.equal(kernel.search(rows, table, None), whole)
    finally:
        torch.set_num_threads(before)
    parts = [kernel.search(part, table, None) for part in rows.split(7)]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.slow
@pytest.mark.parametrize("openmp", [("-fopenmp",), ()])
@pytest.mark.parametrize("vectors", [(), *kernel_module.VECTOR_FLAGS.values()])
def test_no_width_of_vectors_changes_an_id(
    kernel: Kernel, vectors: tuple[str, ...], openmp: tuple[str, ...], tmp_path: Path
) -> None:
    needed = next((n for n, told in kernel_module.VECTOR_FLAGS.items() if told == vectors), ())
    if not kernel_module._cpu_flags().issuperset(needed):
        pytest.skip(f"this CPU lacks {needed}")
    compiler = kernel_module._compiler()
    kernel_module._compile(compiler, (*openmp, *vectors), tmp_path / "kernel.so")
    other = Kernel(tmp_path / "kernel.so")
    torch.manual_seed(2)
    for rows, codes, dim in torch.randint(1, 150, (100, 3)).tolist():
        for shift in (0, 50):
            case = torch.randn(rows, dim) + shift, torch.randn(codes, dim) + shift, None
            assert torch.equal(other.search(*case), kernel.search(*case))


@pytest.mark.slow
def test_a_search_takes_a_copy_of_the_table_and_a_little_more(tmp_path: Path) -> None:
    # In a process of its own, whose most memory so far is that of this search.
    code = """
import resource, sys, torch
from imagetok.codesearch import nearest_code, search_backend, use_backend
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
name, rows, codes, dim = sys.argv[1], 2**14, 2**13, 8
with use_backend(name):
    assert search_backend() == name
    vectors, table = torch.randn(rows, dim), torch.randn(codes, dim)
    nearest_code(vectors[:64], table)
    before = peak()
    nearest_code(vectors, table)
    print(peak() - before - rows * 8 - codes * (dim + 1) * 4)
"""
    for name in ("native", "torch"):
        command = [sys.executable, "-c", code, name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert int(done.stdout) < 16 * 2**20 + 64 * 2**14, name


def test_a_process_finds_what_another_one_compiled(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert search_backend() == "native"
    (library,) = cache.iterdir()
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert stat.S_IMODE(library.stat().st_mode) == 0o700
    monkeypatch.setattr(kernel_module, "_compile", unreachable)
    build_kernel()


def test_a_damaged_library_is_compiled_again(cache: Path) -> None:
    assert search_backend() == "native"
    (library,) = cache.iterdir()
    library.unlink()  # it is loaded: in place, its pages would change under this process
    library.write_bytes(b"not a library")
    library.chmod(0o700)
    build_kernel()
    Kernel(library)


@pytest.mark.slow
def test_what_others_can_write_is_not_loaded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert search_backend() == "native"
    (library,) = cache.iterdir()
    library.chmod(0o722)
    build_kernel()  # in place of that one
    assert stat.S_IMODE(library.stat().st_mode) == 0o700
    cache.chmod(0o770)
    library.write_bytes(b"not a library")
    build_kernel()  # in a folder that goes
    assert library.read_bytes() == b"not a library"


def no_compiler(monkeypatch: pytest.MonkeyPatch, _: Path) -> str:
    """A machine without a compiler."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    return "no C++ compiler was found"


def failing_compiler(monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    """A compiler that fails."""
    program = folder / "failing"
    program.write_text("#!/bin/sh\necho what is wrong >&2\nexit 1\n", encoding="utf-8")
    program.chmod(0o700)
    monkeypatch.setenv("CXX", f"{program} --option")
    return "failed: what is wrong"


def useless_compiler(monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    """A compiler that writes something else."""
    program = folder / "useless"
    program.write_text('#!/bin/sh\nfor last; do :; done\necho x > "$last"\n', encoding="utf-8")
    program.chmod(0o700)
    monkeypatch.setenv("CXX", str(program))
    return "cannot be loaded"


@pytest.mark.parametrize("broken", [no_compiler, failing_compiler, useless_compiler])
def test_without_a_kernel_torch_searches_and_says_so_once(
    broken: Callable[[pytest.MonkeyPatch, Path], str],
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    reason = broken(monkeypatch, tmp_path)
    rows, table = torch.randn(50, 4), torch.randn(20, 4)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(nearest_code(rows, table), exact_ids(rows, table, None))
        assert search_backend() == "torch"
    (record,) = caplog.records
    assert reason in record.getMessage()
    monkeypatch.setenv("IMAGETOK_BACKEND", "native")
    with pytest.raises(InvalidValueError, match=r"asked for, but .*IMAGETOK_BACKEND=torch"):
        nearest_code(rows, table)


def test_a_compiler_that_cxx_names_in_vain_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    with pytest.raises(KernelError, match="looked for no-such-compiler"):
        build_kernel()


def unreachable(*_: object) -> None:
    """Stands for what must not be called."""
    raise AssertionError("called")
