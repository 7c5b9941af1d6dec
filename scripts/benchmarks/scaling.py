"""What an image, a vector and a row cost, against how many there are and how large they are.

Each figure is flat where work is done once for each, whatever the batch, the resolution, the
codebook or the job.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.jobs import make_job
from benchmarks.measurement import Case, Medians
from benchmarks.models import MODELS
from benchmarks.variant_process import Run, Runs, Variant
from benchmarks.weights import draw_images, draw_table

BATCHES = (1, 2, 4, 8, 16, 32)
SIDES = (64, 128, 256, 512)
CODEBOOK_SIZES = (512, 2048, 8192, 32_768, 131_072)
ROWS = (500, 1000, 2000)

GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**22)}
"""Has glibc give large buffers back when they are freed: what it keeps unused differs between equal
jobs, by 15 %.
"""


def make_encoding(sizes: Sequence[tuple[int, int]]) -> Runs:
    """Encoding of batches of images, by (batch, side)."""

    def bind(batch: int, side: int) -> Run:
        tokenizer: Any = MODELS["vqvae"].build(side).requires_grad_(False).eval()
        images = draw_images(batch, side)
        return lambda: tokenizer.encode(images).shape

    return {f"{batch} x {side}": bind(batch, side) for batch, side in sizes}


def make_search(sizes: Sequence[int]) -> Runs:
    """The nearest of so many codes of 8 numbers, for 4,096 vectors."""
    from imagetok.codesearch import nearest_code

    vectors = draw_table(4096, 8)

    def bind(size: int) -> Run:
        codes = torch.randn(size, 8, generator=torch.Generator().manual_seed(0))
        return lambda: nearest_code(vectors, codes).shape

    return {f"K {size}": bind(size) for size in sizes}


def _costs(counts: dict[str, float], unit: str, medians: Medians) -> dict[str, float]:
    return {
        f"{part} microseconds per {unit}".strip(): 1e6 * medians["imagetok", part] / count
        for part, count in counts.items()
    }


def cases() -> list[Case]:
    """A case for each size that changes."""
    batches = [(batch, 128) for batch in BATCHES]
    sides = [(2, side) for side in SIDES]
    found = [
        Case(
            "scaling-batch",
            "encoding with a VQ-VAE, per image, against the batch",
            [Variant("imagetok", partial(make_encoding, batches), keeps_memory=True)],
            derive=partial(_costs, {f"{b} x {s}": float(b) for b, s in batches}, "image"),
        ),
        Case(
            "scaling-resolution",
            "encoding with a VQ-VAE, per million pixels, against the resolution",
            [Variant("imagetok", partial(make_encoding, sides), keeps_memory=True)],
            derive=partial(
                _costs, {f"{b} x {s}": b * s * s / 1e6 for b, s in sides}, "million pixels"
            ),
        ),
        Case(
            "scaling-codebook",
            "search of 4,096 vectors of 8 numbers, per million distances, against the codebook",
            [Variant("imagetok", partial(make_search, CODEBOOK_SIZES))],
            derive=partial(
                _costs,
                {f"K {size}": 4096 * size / 1e6 for size in CODEBOOK_SIZES},
                "million distances",
            ),
        ),
    ]
    for rows in ROWS:
        found.append(
            Case(
                f"scaling-rows-{rows}",
                f"a job on {rows} files, per image; its memory should not grow with the rows",
                [Variant("imagetok", partial(make_job, rows), environment=GIVES_BACK)],
                derive=partial(_costs, {"": float(rows)}, "image"),
                runs_once=True,
            )
        )
    return found
