"""Print the table of reconstruction quality in docs/benchmarks.md from finished runs.

imagetok train vqvae-shapes --output-dir runs/vqvae-shapes
python scripts/benchmark_recipes.py runs/vqvae-shapes runs/dvae-shapes
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from imagetok.metrics import STANDARD_METRICS, MetricConfig


def main() -> None:
    """Read each run's evaluation.json and print one row for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("runs", nargs="+", type=Path, help="output folders of imagetok train")
    runs: list[Path] = parser.parse_args().runs
    print("| run | images | " + " | ".join(map(heading, STANDARD_METRICS)) + " |")
    print("|---" * (len(STANDARD_METRICS) + 2) + "|")
    for run in runs:
        figures = json.loads((run / "tokenizer" / "evaluation.json").read_text("utf-8"))
        values = [figures[metric.type] for metric in STANDARD_METRICS]
        cells = ["" if value is None else f"{value:.4g}" for value in values]
        print(f"| `{run.name}` | {figures['num_images']} | " + " | ".join(cells) + " |")


def heading(metric: MetricConfig) -> str:
    """A metric's title, with the unit where the title does not say it."""
    says_unit = not metric.unit or metric.unit in metric.title
    return metric.title if says_unit else f"{metric.title} ({metric.unit})"


if __name__ == "__main__":
    main()
