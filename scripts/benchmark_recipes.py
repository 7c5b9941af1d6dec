"""Print the table of reconstruction quality in docs/benchmarks.md from finished runs.

imagetok train vqvae-shapes --output-dir runs/vqvae-shapes
python scripts/benchmark_recipes.py runs/vqvae-shapes runs/dvae-shapes
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

FIGURES = {
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "l1": "L1",
    "bits_per_dim": "bits a dimension",
    "bits_per_pixel": "bits a pixel",
    "codebook_usage": "codebook usage",
    "codebook_perplexity": "perplexity",
}


def main() -> None:
    """Read each run's evaluation.json and print one row for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("runs", nargs="+", type=Path, help="output folders of imagetok train")
    runs: list[Path] = parser.parse_args().runs
    print("| run | images | " + " | ".join(FIGURES.values()) + " |")
    print("|---" * (len(FIGURES) + 2) + "|")
    for run in runs:
        figures = json.loads((run / "tokenizer" / "evaluation.json").read_text("utf-8"))
        values = [figures[name] for name in FIGURES]
        cells = ["" if value is None else f"{value:.4g}" for value in values]
        print(f"| `{run.name}` | {figures['num_images']} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
