"""JPEG files of 512 x 512 pixels to 256 x 256 ones, on one core."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.measurement import Case
from benchmarks.variant_process import Runs, Variant

SIDE = 512


def make_jpeg(side: int, quality: int, seed: int = 0) -> bytes:
    """A file that compresses about as a photograph does."""
    from PIL import Image

    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (48, 48, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.int16)
    noise = random.integers(-12, 13, smooth.shape, dtype=np.int16)
    file = io.BytesIO()
    image = Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _files() -> list[bytes]:
    return [make_jpeg(SIDE, quality) for quality in (75, 85, 95)]


def make_ours() -> Runs:
    """Files to pixels as tokenizers read them."""
    from imagetok.images import Preprocessor

    files = _files()
    preprocessor = Preprocessor(image_size=(256, 256), channels=3, color_profile="srgb")
    return {"": lambda: preprocessor(files).permute(0, 2, 3, 1).numpy()}


def make_pillow() -> Runs:
    """Files to pixels with Pillow alone."""
    from PIL import Image

    files = _files()

    def run() -> np.ndarray[Any, Any]:
        images = [Image.open(io.BytesIO(file)) for file in files]
        return np.stack(
            [np.asarray(i.resize((256, 256), Image.Resampling.BICUBIC)) for i in images]
        )

    return {"": run}


def different_pixels(part: str, expected: Any, found: Any) -> float:
    """Share of the pixels that differ by over one level."""
    if expected.shape != found.shape:
        return 1.0
    return float((np.abs(expected.astype(int) - found.astype(int)) > 1).mean())


def cases() -> Iterator[Case]:
    """The one case."""
    yield Case(
        "jpeg",
        "three JPEG files of 512 to 256 pixels on one core, against Pillow's decoding and bicubic "
        "resize",
        [
            Variant("imagetok", make_ours),
        ],
        Variant("Pillow", make_pillow),
        difference=different_pixels,
        keeps=False,
        threads=1,
    )
