"""JPEG files have the same pixels and the same refusals whether simplejpeg is there or not."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from icc_profiles import DISPLAY_P3, rgb_profile
from imagetok.errors import ImagetokError
from imagetok.images import jpeg_decoder, read_image

CALLS: list[bytes] = []


@pytest.fixture(autouse=True)
def _spy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert jpeg_decoder._simplejpeg() is simplejpeg, "simplejpeg is not used"
    decode = simplejpeg.decode_jpeg

    def spy(content: bytes, *arguments: Any, **options: Any) -> Any:
        CALLS.append(content)
        return decode(content, *arguments, **options)

    CALLS.clear()
    monkeypatch.setattr(simplejpeg, "decode_jpeg", spy)


def jpeg(
    mode: str = "RGB", size: tuple[int, int] = (37, 50), seed: int = 0, **options: Any
) -> bytes:
    """A file of smooth noise, which every step of decoding has a part in."""
    random = np.random.default_rng(seed)
    image = Image.fromarray(random.integers(0, 256, (6, 5, 4), dtype=np.uint8), "RGBA")
    image = image.resize(size, Image.Resampling.BICUBIC).convert("RGB").convert(mode)
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def read(content: bytes, **options: Any) -> tuple[str, Any]:
    """The pixels, or what is said in place of them."""
    notes: list[str] = []
    try:
        return "pixels", (read_image(content, notes=notes, **options).tolist(), notes)
    except ImagetokError as error:
        return type(error).__name__, str(error)


def read_by_pillow(content: bytes, **options: Any) -> tuple[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jpeg_decoder, "_simplejpeg", lambda: None)
        return read(content, **options)


@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    quality=st.integers(1, 100),
    subsampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    mode=st.sampled_from(["RGB", "L"]),
    progressive=st.booleans(),
    orientation=st.integers(1, 8),
    restart=st.sampled_from([0, 2]),
)
def test_pixels_are_pillows(
    size: tuple[int, int],
    quality: int,
    subsampling: str,
    mode: str,
    progressive: bool,
    orientation: int,
    restart: int,
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = jpeg(
        mode,
        size,
        quality=quality,
        subsampling=subsampling,
        progressive=progressive,
        exif=exif,
        restart_marker_blocks=restart,
    )
    CALLS.clear()
    assert read(content) == read_by_pillow(content)
    assert CALLS.count(content) == len(CALLS) == 1


@pytest.mark.parametrize("options", [{}, {"keep_rgb": True}, {"dpi": (72, 72)}])
def test_colours_are_converted_as_ever(options: dict[str, Any]) -> None:
    content = jpeg(icc_profile=rgb_profile(DISPLAY_P3), **options)
    converted = read(content, color_profile="srgb")
    assert converted == read_by_pillow(content, color_profile="srgb")
    assert converted != read(content)


def test_other_modes_are_left_to_pillow() -> None:
    content = jpeg("CMYK")
    assert read(content) == read_by_pillow(content)
    assert not CALLS


@given(
    cut=st.integers(0, 1500), flips=st.lists(st.tuples(st.integers(0, 1500), st.integers(1, 255)))
)
def test_damaged_files_are_read_or_refused_alike(cut: int, flips: list[tuple[int, int]]) -> None:
    content = bytearray(jpeg(size=(64, 64)))
    for place, bits in flips:
        content[place % len(content)] ^= bits
    damaged = bytes(content[: len(content) - cut % len(content)])
    assert read(damaged) == read_by_pillow(damaged)


def test_a_file_behind_which_more_follows_is_its_first_image() -> None:
    content = jpeg() + jpeg(seed=1) + b"more"
    assert read(content) == read(jpeg()) == read_by_pillow(content)


@pytest.mark.parametrize("frame", [0, 1])
def test_a_pil_image_is_taken_as_it_is_and_not_as_its_file(frame: int) -> None:
    """Of a multi-picture file that is not decoded yet, the frame that it is at."""
    first, second = (Image.open(io.BytesIO(jpeg(seed=seed))) for seed in (0, 1))
    file = io.BytesIO()
    first.save(file, "MPO", save_all=True, append_images=[second])
    image, decoded = Image.open(file), Image.open(file)
    for each in (image, decoded):
        each.seek(frame)
    expected = torch.from_numpy(np.array(decoded)).permute(2, 0, 1)
    assert torch.equal(read_image(image), expected)
    image.putpixel((0, 0), (1, 2, 3))
    assert read_image(image)[:, 0, 0].tolist() == [1, 2, 3]


def test_a_file_that_is_too_large_to_hold_is_left_to_pillow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jpeg_decoder, "MAX_BYTES", 100)
    assert read(jpeg()) == read_by_pillow(jpeg())
    assert not CALLS


def test_a_library_with_other_pixels_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    decode = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *a, **k: decode(*a, **k) ^ 1)
    jpeg_decoder._simplejpeg.cache_clear()
    try:
        assert torch.equal(read_image(jpeg()), torch.tensor(read_by_pillow(jpeg())[1][0]))
        assert "simplejpeg has other pixels than Pillow" in caplog.text
    finally:
        jpeg_decoder._simplejpeg.cache_clear()
