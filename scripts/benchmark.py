"""Compare imagetok with the peers and with plain torch, as ratios from one run.

    python scripts/benchmark.py                        # every case
    python scripts/benchmark.py encode jpeg --rounds 15 --json figures.json

Every variant of a case runs in a process of its own, and the processes take turns, so that whatever
else the machine does slows all of them alike. The results are compared first: a case whose ids or
pixels do not agree fails. The table gives medians with quartiles, and memory: MiB at the peak of a
timed run beyond what is in use after the first one, models and input included.

Peers: `pip install -e ".[bench]"` and `pip install --no-deps dalle-pytorch DALL-E`. A case whose
peer is not installed is skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import clustering, inference, jobs, loading, programs, scaling, search, training
from benchmarks.measurement import Case, Measured, Row, measure
from benchmarks.variant_process import CaseError

HEADER = (
    "| case | variant | ms (quartiles) | times the peer (quartiles) "
    "| times the peer with freed memory kept | differs | memory (MiB) |"
)


def all_cases(tokenizer: Path | None, tree: Path | None) -> list[Case]:
    """Every case, in the order of the tables.

    Args:
        tokenizer: Folder of a saved VQ-VAE whose codebook is searched as well.
        tree: Checkout of an older version, for the cases that compare with it.
    """
    return [
        *search.cases(tokenizer),
        *inference.cases(),
        *training.cases(),
        *loading.cases(),
        *clustering.cases(),
        *jobs.cases(tree),
        *programs.cases(tree),
    ]


def show(row: Row) -> str:
    """A row of the table."""
    name = f"{row.case} {row.part}".strip()
    own = f"{1e3 * row.seconds:.4g} ({1e3 * row.low:.4g} to {1e3 * row.high:.4g})"
    ratio = kept = different = memory = ""
    if row.ratio is not None:
        ratio = f"{row.ratio:.2f} ({row.ratio_low:.2f} to {row.ratio_high:.2f})"
    if row.kept_ratio is not None:
        kept = f"{row.kept_ratio:.2f}"
    if row.different is not None:
        different = "no" if row.different == 0 else f"{row.different:.3%}"
    if row.memory is not None:
        memory = f"{row.memory:.0f}"
    return f"| {name} | {row.variant} | {own} | {ratio} | {kept} | {different} | {memory} |"


def describe_machine() -> dict[str, Any]:
    """What the figures depend on."""
    import torch

    from imagetok import __version__

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "imagetok": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d"),
    }


def run_cases(chosen: Iterable[Case], rounds: int, seconds: float) -> dict[str, Any]:
    """Measure cases and print their rows.

    Returns:
        JSON-like: the machine, the rows, what was derived, and the reasons of the cases that were
        skipped or failed, by their names.
    """
    rows: list[dict[str, Any]] = []
    found: dict[str, Any] = {"machine": describe_machine(), "rows": rows}
    found |= {"derived": {}, "skipped": {}, "failed": {}, "seconds": {}}
    print(f"{HEADER}\n|{'---|' * 7}")
    for case in chosen:
        started = time.perf_counter()
        if missing := case.missing():
            found["skipped"][case.name] = f"not installed: {', '.join(missing)}"
            print(f"{case.name}: skipped, {found['skipped'][case.name]}", file=sys.stderr)
            continue
        try:
            measured: Measured = measure(case, rounds, seconds)
        except CaseError as error:
            found["failed"][case.name] = str(error)
            reason = str(error).strip().splitlines()[-1]
            print(f"{case.name}: FAILED: {reason}", file=sys.stderr)
            continue
        for row in measured.rows:
            rows.append(asdict(row))
            print(show(row), flush=True)
        found["derived"][case.name] = dict(measured.derived)
        found["seconds"][case.name] = round(time.perf_counter() - started, 1)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the cases that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", help="beginnings of names of cases; none: all of them")
    parser.add_argument("--list", action="store_true", help="say what cases there are")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each variant at most")
    parser.add_argument(
        "--seconds", type=float, default=12, help="of a case after which no round begins"
    )
    parser.add_argument("--tokenizer", type=Path, help="folder of a trained VQ-VAE")
    parser.add_argument(
        "--against", type=Path, metavar="TREE", help="checkout of an older version of imagetok"
    )
    parser.add_argument(
        "--scaling", action="store_true", help="measure cost per image against sizes instead"
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}; at least 1 is needed")
    tree = None if options.against is None else options.against.resolve()
    cases = scaling.cases() if options.scaling else all_cases(options.tokenizer, tree)
    chosen = [case for case in cases if case.name.startswith(tuple(options.cases or [""]))]
    if not chosen:
        parser.error(f"no case begins so; there are: {', '.join(case.name for case in cases)}")
    if options.list:
        for case in chosen:
            print(f"{case.name:24} {case.about}")
        return 0
    found = run_cases(chosen, options.rounds, options.seconds)
    for name, figures in found["derived"].items():
        for figure, value in figures.items():
            print(f"{name}: {figure}: {value:.4g}")
    print("seconds of each case:", found["seconds"])
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
