"""Compare imagetok's kernels with what they stand in for, as ratios from one run.

    python scripts/benchmark.py                        # every case
    python scripts/benchmark.py jpeg search-d8 --rounds 15 --json figures.json

Every variant of a case runs in a process of its own, and the processes take turns, so that whatever
else the machine does slows all of them alike. A case prints the ratio of the medians, the spread,
and how much memory each variant took beyond its input. It first checks that the results agree:
pixels within one level, and ids that differ only where two codes are equally near to float32.

    jpeg        three JPEG files of 512 to 256 pixels on one core, against Pillow's decoding and
                bicubic resize
    search-dD   16,384 vectors of D numbers against 512 to 16,384 codes, against the plain
                |z|^2 + |e|^2 - 2 z.e; with the share of the rate of a 4096^3 matrix product
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch
from PIL import Image

from imagetok.codesearch import nearest_code
from imagetok.images import Preprocessor

Run = Callable[[], Any]
NUM_VECTORS = 16_384
CODEBOOK_SIZES = (512, 2048, 8192, 16_384)
RATE_SIDE = 4096


@dataclass(frozen=True)
class Case:
    """Two ways to one result.

    Attributes:
        name: What the command line calls it.
        ours: Makes the input and returns what is timed.
        peer: The same for what it is compared with.
        difference: From both results to what is wrong with them; "" where they agree.
        work: Floating-point operations of a run, for the share of the matrix rate; None for none.
        threads: Threads of each process; None takes torch's choice.
    """

    name: str
    ours: Callable[[], Run]
    peer: Callable[[], Run]
    difference: Callable[[Any, Any], str]
    work: float | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Figures:
    """What a case came to.

    Attributes:
        case: Its name.
        ratio: Median time of the peer over ours.
        low, high: Quartiles of the ratio by round.
        memory: MiB beyond the input at their peak, ours and the peer's.
        rate_share: Share of the matrix rate that ours reached.
    """

    case: str
    ratio: float
    low: float
    high: float
    memory: tuple[float, float]
    rate_share: float | None


def _peak_memory() -> float:
    """The most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _serve(make: Callable[[], Run], threads: int | None, pipe: Connection) -> None:
    """Run what `make` makes whenever asked; in a process of its own."""
    if threads is not None:
        torch.set_num_threads(threads)
    run = make()
    before = _peak_memory()
    pipe.send((run(), _peak_memory() - before))
    while pipe.recv():
        started = time.perf_counter()
        run()
        pipe.send(time.perf_counter() - started)


def measure(
    makers: Sequence[Callable[[], Run]], rounds: int, threads: int | None
) -> tuple[list[Any], list[float], list[list[float]]]:
    """Run several variants in turns.

    Returns:
        Of each variant the result, the memory in MiB, and the seconds of every round.
    """
    context = get_context("spawn")
    pipes = []
    for make in makers:
        ours, theirs = context.Pipe()
        context.Process(target=_serve, args=(make, threads, theirs), daemon=True).start()
        pipes.append(ours)
    first = [pipe.recv() for pipe in pipes]
    seconds: list[list[float]] = [[] for _ in pipes]
    for _ in range(rounds):
        for pipe, found in zip(pipes, seconds, strict=True):
            pipe.send(True)
            found.append(pipe.recv())
    for pipe in pipes:
        pipe.send(False)
    return [result for result, _ in first], [memory for _, memory in first], seconds


def compare(case: Case, rounds: int) -> Figures:
    """Measure a case.

    Raises:
        ValueError: The results differ.
    """
    makers = [case.ours, case.peer]
    if case.work is not None:
        makers.append(make_product)
    results, memory, seconds = measure(makers, rounds, case.threads)
    if wrong := case.difference(*results[:2]):
        raise ValueError(f"{case.name}: {wrong}")
    low, _, high = quantiles([p / o for o, p in zip(*seconds[:2], strict=True)], n=4)
    share = None
    if case.work is not None:
        share = case.work / 2 / RATE_SIDE**3 * median(seconds[2]) / median(seconds[0])
    return Figures(
        case.name,
        ratio=median(seconds[1]) / median(seconds[0]),
        low=low,
        high=high,
        memory=(memory[0], memory[1]),
        rate_share=share,
    )


def make_product() -> Run:
    """The matrix product whose rate is the machine's limit."""
    one, two = torch.randn(2, RATE_SIDE, RATE_SIDE, generator=torch.Generator().manual_seed(0))
    out = torch.empty(RATE_SIDE, RATE_SIDE)

    def run() -> None:
        torch.mm(one, two, out=out)

    return run


# JPEG


def _jpegs() -> list[bytes]:
    random = np.random.default_rng(0)
    files = []
    for quality in (75, 85, 95):
        small = Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        file = io.BytesIO()
        small.resize((512, 512), Image.Resampling.BICUBIC).save(file, "JPEG", quality=quality)
        files.append(file.getvalue())
    return files


def make_jpeg() -> Run:
    """Files to pixels as tokenizers read them."""
    files = _jpegs()
    preprocessor = Preprocessor(image_size=(256, 256), channels=3, color_profile="srgb")
    return lambda: preprocessor(files).permute(0, 2, 3, 1).numpy()


def make_pillow_jpeg() -> Run:
    """Files to pixels with Pillow alone."""
    files = _jpegs()

    def run() -> np.ndarray[Any, Any]:
        images = [Image.open(io.BytesIO(file)) for file in files]
        return np.stack(
            [np.asarray(i.resize((256, 256), Image.Resampling.BICUBIC)) for i in images]
        )

    return run


def _pixel_difference(ours: Any, peer: Any) -> str:
    most = np.abs(ours.astype(int) - peer.astype(int)).max()
    return f"pixels differ by up to {most} levels" if most > 1 else ""


# Search


def _vectors(dim: int, codebook_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(dim)
    codebook = torch.randn(codebook_size, dim, generator=random)
    return torch.randn(NUM_VECTORS, dim, generator=random), codebook


def make_search(dim: int, codebook_size: int) -> Run:
    """The nearest codes as tokenizers find them."""
    return partial(nearest_code, *_vectors(dim, codebook_size))


def make_plain_search(dim: int, codebook_size: int) -> Run:
    """The nearest codes by the expression that most code has."""
    z, e = _vectors(dim, codebook_size)

    def run() -> torch.Tensor:
        squares = z.square().sum(1, keepdim=True) + e.square().sum(1)
        return (squares - 2 * z @ e.T).argmin(1)

    return run


def _id_difference(dim: int, codebook_size: int, ours: Any, peer: Any) -> str:
    z, e = (each.double() for each in _vectors(dim, codebook_size))
    rows = (ours != peer).nonzero()[:, 0]
    near, far = ((z[rows] - e[ids[rows]]).square().sum(1) for ids in (ours, peer))
    wrong = ((near - far).abs() > 1e-5 * far).sum().item()
    return f"{wrong} of {len(ours)} ids differ without a tie" if wrong else ""


def _cases() -> list[Case]:
    cases = [Case("jpeg", make_jpeg, make_pillow_jpeg, _pixel_difference, threads=1)]
    for dim in (8, 32, 64, 256):
        for codebook_size in CODEBOOK_SIZES:
            cases.append(
                Case(
                    f"search-d{dim}-k{codebook_size}",
                    partial(make_search, dim, codebook_size),
                    partial(make_plain_search, dim, codebook_size),
                    partial(_id_difference, dim, codebook_size),
                    work=2 * dim * codebook_size * NUM_VECTORS,
                )
            )
    return cases


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the cases that are asked for and print a line each."""
    cases = _cases()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", help="beginnings of names of cases; none: all of them")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each variant")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(arguments)
    if options.rounds < 2:
        parser.error(f"--rounds is {options.rounds}; quartiles need at least 2")
    chosen = [case for case in cases if case.name.startswith(tuple(options.cases or [""]))]
    if not chosen:
        parser.error(f"no case begins so; there are: {', '.join(case.name for case in cases)}")
    figures = []
    for case in chosen:
        found = compare(case, options.rounds)
        figures.append(asdict(found))
        rate = "" if found.rate_share is None else f", {found.rate_share:.2f} of the matrix rate"
        print(
            f"{found.case}: {found.ratio:.2f} times as fast ({found.low:.2f} to {found.high:.2f})"
            f"{rate}; memory {found.memory[0]:.0f} and {found.memory[1]:.0f} MiB",
            flush=True,
        )
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
