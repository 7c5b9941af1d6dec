"""Image files made in memory."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

Encode = Callable[..., bytes]


@pytest.fixture
def encode() -> Encode:
    """`encode(image, format, **options)` gives the bytes of a file."""

    def encode(image: Image.Image, format: str, **options: Any) -> bytes:
        stream = io.BytesIO()
        image.save(stream, format, **options)
        return stream.getvalue()

    return encode


@pytest.fixture
def colors() -> np.ndarray:
    """An image (12, 20, 3) in which every pixel differs from its neighbours."""
    return np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


@pytest.fixture
def png_chunk() -> Callable[[bytes, bytes], bytes]:
    """`png_chunk(kind, content)` gives one chunk of a PNG file."""

    def png_chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    return png_chunk


@pytest.fixture
def encode_png(png_chunk: Callable[[bytes, bytes], bytes]) -> Callable[..., bytes]:
    """`encode_png(...)` writes a PNG of one row, for what Pillow does not write.

    `before` and `after` are chunks around the pixels; `height` may lie about them.
    """

    def encode_png(
        width: int,
        depth: int,
        color_type: int,
        row: bytes,
        before: bytes = b"",
        after: bytes = b"",
        height: int = 1,
    ) -> bytes:
        header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
        pixels = png_chunk(b"IDAT", zlib.compress(b"\0" + row))
        start = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)
        return start + before + pixels + after + png_chunk(b"IEND", b"")

    return encode_png
