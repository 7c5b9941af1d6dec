"""PNG files are read whatever texts they hold, and damaged ones are refused as ever."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from icc_profiles import DISPLAY_P3, rgb_profile
from imagetok.errors import ImageFileError
from imagetok.images import measure_image, read_image

LEVELS = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
PIXELS = torch.from_numpy(LEVELS).permute(2, 0, 1)

LONG = zlib.compress(b"a prompt and a graph of nodes, " * 50_000)
TURNED = b"<x tiff:Orientation='6' tiff:Orientation=\"6\"/>"


def chunk(kind: bytes, data: bytes, damage: int = 0) -> bytes:
    checksum = zlib.crc32(kind + data) ^ damage
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(before: bytes = b"", behind: bytes = b"") -> bytes:
    """A PNG of `LEVELS` whose image data come in chunks of 100 bytes."""
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in LEVELS))
    data = b"".join(chunk(b"IDAT", rows[i : i + 100]) for i in range(0, len(rows), 100))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 12, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + before + data + behind + chunk(b"IEND", b"")


TEXTS = {
    "zTXt": chunk(b"zTXt", b"parameters\0\0" + LONG),
    "iTXt": chunk(b"iTXt", b"workflow\0\1\0\0\0" + LONG),
    "tEXt": chunk(b"tEXt", b"prompt\0" + bytes(70_000_000)),
    "long metadata": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG),
    "several": chunk(b"tEXt", b"a\0b") + chunk(b"zTXt", b"c\0\0" + LONG) * 2,
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_png_is_read_however_long_its_texts_are(name: str, tmp_path: Path) -> None:
    for number, content in enumerate((png(TEXTS[name]), png(b"", TEXTS[name]))):
        path = tmp_path / f"{number}.png"
        path.write_bytes(content)
        for source in (content, path):
            assert torch.equal(read_image(source), PIXELS)
            assert measure_image(source) == (12, 16)


@pytest.mark.parametrize(
    "text",
    [
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + TURNED),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(TURNED)),
        chunk(
            b"zTXt",
            b"Raw profile type exif\0\0"
            + zlib.compress(
                b"\nexif\n32\n"
                + b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0".hex().encode()
            ),
        ),
    ],
    ids=["XMP", "compressed XMP", "EXIF as text"],
)
def test_an_orientation_that_stands_in_a_text_is_applied(text: bytes) -> None:
    content = png(TEXTS["zTXt"] + text)
    assert torch.equal(read_image(content), PIXELS.rot90(-1, (1, 2)))
    assert torch.equal(read_image(Image.open(io.BytesIO(png(text)))), read_image(content))


def test_a_long_profile_is_applied_and_a_longer_one_is_ignored() -> None:
    profile = rgb_profile(DISPLAY_P3)
    expected = read_image(
        png(chunk(b"iCCP", b"p\0\0" + zlib.compress(profile))), color_profile="srgb"
    )
    assert not torch.equal(expected, PIXELS)
    padding = random.Random(0).randbytes(5_000_000)
    for size, pixels, count in ((1_500_000, expected, 0), (5_000_000, PIXELS, 1)):
        padded = profile + padding[:size]
        if not count:  # what a profile says of its size must be true
            padded = struct.pack(">I", len(padded)) + padded[4:]
        content, notes = png(chunk(b"iCCP", b"p\0\0" + zlib.compress(padded))), list[str]()
        assert torch.equal(read_image(content, color_profile="srgb", notes=notes), pixels)
        assert torch.equal(read_image(content), PIXELS)
        assert len(notes) == count


@pytest.mark.parametrize(
    "content",
    [
        png(chunk(b"zTXt", b"parameters\0\0" + LONG, damage=1)),
        png(chunk(b"tEXt", b"a\0b", damage=1)),
        png(chunk(b"iCCP", b"p\0\0" + LONG, damage=1)),
        png(TEXTS["zTXt"])[:2000],
        png(TEXTS["zTXt"] + chunk(b"gAMA", bytes(4), damage=1)),
    ],
    ids=["text", "short text", "profile", "end of file", "chunk behind a text"],
)
def test_a_damaged_file_is_refused_for_the_reason_that_it_always_was(content: bytes) -> None:
    with pytest.raises(ImageFileError, match="has a damaged header, or is of a kind of PNG that"):
        read_image(content)


def test_damaged_pixels_behind_a_text_are_refused() -> None:
    content = png(TEXTS["zTXt"])
    with pytest.raises(ImageFileError, match="cannot be decoded: it is truncated or damaged"):
        read_image(content[:-200])


def test_no_setting_of_pillow_decides_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import PngImagePlugin

    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 10)
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_MEMORY", 10)
    assert torch.equal(read_image(png(TEXTS["several"])), PIXELS)
