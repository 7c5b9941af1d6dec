"""Pixels to the bytes of a PNG file, as datasets keep them."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def png_bytes(pixels: NDArray[np.uint8]) -> bytes:
    """Encode uint8 pixels, (H, W) gray or (H, W, 3) RGB, without loss."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
