"""Encoding and decoding of 256 x 256 images, beside the peers, on the same weights."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.measurement import Case
from benchmarks.models import MODELS, Model
from benchmarks.variant_process import Run, Runs, Variant
from benchmarks.weights import as_array, draw_images

SIDE = 256

MOST_NEAR_TIES = 1e-3
"""Share of the ids whose two best scores may lie within float32's rounding of each other."""

HALF_LEVEL = 1 / 510
"""Half a level of an 8-bit pixel: what decoded pixels may differ by."""


def _ids(model: Model) -> torch.Tensor:
    (factor, _) = (8, 8) if model.config["bottleneck"]["type"] == "gumbel" else (4, 4)
    shape = (model.batch, SIDE // factor, SIDE // factor)
    random = torch.Generator().manual_seed(3)
    return torch.randint(model.config["bottleneck"]["codebook_size"], shape, generator=random)


def make_peer(name: str, task: str) -> Runs:
    """A peer's encoding or decoding, without gradients."""
    model = MODELS[name]
    peer = model.build_peer(SIDE)
    if task == "encode":
        x = draw_images(model.batch, SIDE) / 255
        return {"": _without_gradient(lambda: peer.encode(x).flatten(1))}
    ids = _ids(model)
    return {"": _without_gradient(lambda: peer.decode(ids))}


def make_ours(name: str, task: str, half: bool, compiled: bool) -> Runs:
    """The same by imagetok."""
    model = MODELS[name]
    tokenizer: Any = model.build(SIDE).requires_grad_(False).eval()
    tokenizer.to(dtype=torch.bfloat16 if half else torch.float32)
    if compiled:
        tokenizer.compile()
    if task == "encode":
        x = draw_images(model.batch, SIDE)
        return {"": lambda: as_array(tokenizer.encode(x).flatten(1))}
    ids = _ids(model)
    return {"": lambda: as_array(tokenizer.decode(ids, output="pt"))}


def _without_gradient(run: Run) -> Run:
    def quiet() -> Any:
        with torch.no_grad():
            return as_array(run())

    return quiet


def different_ids(part: str, expected: Any, found: Any) -> float:
    """Share of the ids that differ."""
    return 1.0 if expected.shape != found.shape else float((expected != found).mean())


def different_pixels(part: str, expected: Any, found: Any) -> float:
    """Share of the values that differ by over half a level."""
    if expected.shape != found.shape:
        return 1.0
    return float((np.abs(expected - found) > HALF_LEVEL).mean())


def settings() -> list[tuple[str, bool, bool]]:
    """Our variants: name, whether in bfloat16, whether compiled; without a compiler none is."""
    compilers = (os.environ.get("CXX", "c++"), "g++", "clang++")
    if not any(map(shutil.which, compilers)):
        return [("imagetok", False, False), ("imagetok, bf16", True, False)]
    return [
        ("imagetok", False, False),
        ("imagetok, compiled", False, True),
        ("imagetok, bf16, compiled", True, True),
    ]


def cases() -> Iterator[Case]:
    """A case for each task and model."""
    variants = settings()
    for task in ("encode", "decode"):
        for name, model in MODELS.items():
            ours = [
                Variant(
                    title,
                    partial(make_ours, name, task, half, compiled),
                    keeps_memory=True,
                    is_exact=not half,
                )
                for title, half, compiled in variants
            ]
            yield Case(
                f"{task}-{name}",
                f"{task} {model.batch} images of {SIDE} x {SIDE} with {model.title}, "
                f"against {model.peer_title}",
                ours,
                Variant(model.peer_title, partial(make_peer, name, task)),
                difference=different_ids if task == "encode" else different_pixels,
                most_different=MOST_NEAR_TIES if task == "encode" else 0.0,
                requires=model.requires,
            )
