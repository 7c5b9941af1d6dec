"""Nearest codes of 16,384 vectors, beside the expression that most code has.

The share of the matrix rate is that of the faster of two products of 4096 x 4096 matrices in the
same run, torch.mm's and oneDNN's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measurement import Case, Medians
from benchmarks.variant_process import Run, Runs, Variant
from benchmarks.weights import as_array

NUM_VECTORS = 16_384
CODEBOOK_SIZES = (512, 2048, 8192, 16_384)
DIMS = (8, 32, 64, 256)
RATE_SIDE = 4096

TIE = 1e-5
"""Two codes are equally near to float32 where their squared distances differ by less than this
share.
"""

Tables = Callable[[], dict[str, tuple[Tensor, Tensor]]]
"""Vectors (N, D) and codes (K, D) by part of a case."""


def random_tables(dim: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Random vectors, and codebooks of all sizes."""
    random = torch.Generator().manual_seed(dim)
    vectors = torch.randn(NUM_VECTORS, dim, generator=random)
    return {
        f"K {size:,}": (vectors, torch.randn(size, dim, generator=random))
        for size in CODEBOOK_SIZES
    }


def unit_tables() -> dict[str, tuple[Tensor, Tensor]]:
    """Vectors of unit length, and as many codes that lie as they do: many near ties."""
    random = torch.Generator().manual_seed(0)
    spread = torch.linspace(1, 0.2, 8)
    both = torch.randn(2, NUM_VECTORS, 8, generator=random) * spread + 0.1
    vectors, codes = torch.nn.functional.normalize(both, dim=-1)
    return {"": (vectors, codes)}


def trained_tables(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """What a saved VQ-VAE's encoder makes of drawn shapes, and its codes."""
    from imagetok import ImageTokenizer
    from imagetok.builtin import first_index, render, scene

    tokenizer: Any = ImageTokenizer.from_pretrained(folder)
    size, positions = tokenizer.image_size[0], tokenizer.num_tokens
    first = first_index("test")
    images = [render(scene(first + i), size) for i in range(-(-NUM_VECTORS // positions))]
    with torch.no_grad():
        z = tokenizer.encode_pixels(tokenizer.preprocess(images))
    vectors = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])[:NUM_VECTORS].contiguous()
    return {"": (vectors, tokenizer.bottleneck.codebook.clone())}


def make_ours(tables: Tables) -> Runs:
    """The search of imagetok's quantizers."""
    from imagetok.codesearch import nearest_code

    def bind(vectors: Tensor, codes: Tensor) -> Run:
        return lambda: as_array(nearest_code(vectors, codes))

    return {part: bind(*both) for part, both in tables().items()}


def make_plain(tables: Tables) -> Runs:
    """|z|^2 + |e|^2 - 2 z.e and its argmin, as taming-transformers and LlamaGen write it."""

    def bind(z: Tensor, e: Tensor) -> Run:
        def run() -> Any:
            squares = torch.sum(z**2, dim=1, keepdim=True) + torch.sum(e**2, dim=1)
            return as_array(torch.argmin(squares - 2 * torch.matmul(z, e.t()), dim=1))

        return run

    return {part: bind(*both) for part, both in tables().items()}


def make_products() -> Runs:
    """The matrix products whose rate is the machine's limit."""
    random = torch.Generator().manual_seed(0)
    one, two = torch.randn(2, RATE_SIDE, RATE_SIDE, generator=random)
    out = torch.empty(RATE_SIDE, RATE_SIDE)

    def mm() -> None:
        torch.mm(one, two, out=out)

    def one_dnn() -> None:
        torch.ops.mkldnn._linear_pointwise(one, two, None, "none", [], "")

    try:
        one_dnn()
    except (AttributeError, RuntimeError):  # private to torch, or built without oneDNN
        return {"mm": mm}
    return {"mm": mm, "oneDNN": one_dnn}


def different_ids(tables: Tables, part: str, expected: Any, found: Any) -> float:
    """Share of the ids that differ where the two codes are not equally near in float64."""
    z, e = (each.double() for each in tables()[part])
    rows = torch.from_numpy(expected != found).nonzero()[:, 0]
    theirs, ours = (
        (z[rows] - e[torch.from_numpy(ids)[rows]]).square().sum(1) for ids in (expected, found)
    )
    return float((ours - theirs > TIE * theirs).sum()) / len(z)


def _derive(dim: int, medians: Medians) -> dict[str, float]:
    """The matrix rate, and the smallest ratios and shares over the codebook sizes."""
    rates = [s for (variant, _), s in medians.items() if variant == "matrix product"]
    rate = 2 * RATE_SIDE**3 / min(rates)
    found = {"matrix rate (GFLOP/s)": rate / 1e9}
    for name in dict.fromkeys(v for v, _ in medians if v.startswith("imagetok")):
        parts = {part: s for (variant, part), s in medians.items() if variant == name}
        shares = {
            part: 2 * dim * int(part.removeprefix("K ").replace(",", "")) * NUM_VECTORS / s / rate
            for part, s in parts.items()
        }
        found |= {f"{name}, {p}: share of the matrix rate": share for p, share in shares.items()}
        found[f"{name}: smallest share of the matrix rate"] = min(shares.values())
        found[f"{name}: smallest ratio"] = min(medians["plain", p] / s for p, s in parts.items())
    return found


def _case(name: str, about: str, tables: Tables, **further: Any) -> Case:
    search = partial(make_ours, tables)
    return Case(
        f"search-{name}",
        about,
        [
            Variant("imagetok", search),
            Variant(
                "imagetok without a compiler",
                search,
                environment={"IMAGETOK_BACKEND": "torch"},
            ),
        ],
        Variant("plain", partial(make_plain, tables)),
        difference=partial(different_ids, tables),
        **further,
    )


def cases(tokenizer: Path | None) -> Iterator[Case]:
    """A case for each dimension, and two of codebooks with many near ties.

    Args:
        tokenizer: Folder of a saved VQ-VAE; None leaves its codebook out.
    """
    for dim in DIMS:
        yield _case(
            f"d{dim}",
            f"nearest of 512 to 16,384 codes of {dim} numbers, against the plain expression",
            partial(random_tables, dim),
            references=[Variant("matrix product", make_products)],
            derive=partial(_derive, dim),
        )
    about = "nearest of 16,384 codes of unit length in 8 dimensions, with many near ties"
    yield _case("unit", about, unit_tables)
    if tokenizer is not None:
        about = f"nearest code of the VQ-VAE in '{tokenizer}', which --tokenizer names"
        yield _case("trained", about, partial(trained_tables, tokenizer))
