"""Colours are converted to sRGB by the profile that an image carries, on every route alike."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, features
from PIL.ExifTags import Base
from torch import Tensor

from icc_profiles import DISPLAY_P3, SRGB, cmyk_profile, gray_profile, rgb_profile
from imagetok.errors import InvalidValueError
from imagetok.images import Preprocessor, read_image
from imagetok.images.color_profile import MAX_PROFILE_BYTES

Encode = Callable[..., bytes]

P3 = rgb_profile(DISPLAY_P3)


def read(source: object, channels: int = 3, **options: object) -> Tensor:
    return read_image(source, channels, color_profile="srgb", **options)  # type: ignore[arg-type]


def with_profile(image: Image.Image, profile: object) -> Image.Image:
    image.info["icc_profile"] = profile
    return image


def in_srgb(image: Image.Image, profile: bytes) -> np.ndarray:
    """What Pillow itself makes of an RGB image."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"))
    assert converted is not None
    return np.asarray(converted)


@pytest.fixture
def image(colors: np.ndarray) -> Image.Image:
    return Image.fromarray(colors)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WebP", "TIFF"])
def test_the_profile_of_a_file_is_applied_whichever_way_the_file_comes(
    encode: Encode, image: Image.Image, format: str, tmp_path: Path
) -> None:
    options = {"lossless": True} if format == "WebP" else {}
    content = encode(image, format, icc_profile=P3, **options)
    path = tmp_path / "image"
    path.write_bytes(content)
    stored = Image.open(path).convert("RGB")
    expected = torch.from_numpy(np.moveaxis(in_srgb(stored, P3), -1, 0).copy())
    plain = torch.from_numpy(np.moveaxis(np.asarray(stored), -1, 0).copy())
    assert (expected.int() - plain.int()).abs().max() > 20
    for source in (path, content, {"bytes": content, "path": None}, Image.open(path)):
        assert torch.equal(read(source), expected)
        assert torch.equal(read_image(source), plain)
    assert torch.equal(read(np.asarray(stored)), plain)


def test_a_profile_of_srgb_changes_nothing(encode: Encode, image: Image.Image) -> None:
    plain = read_image(encode(image, "PNG"))
    made = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    nearly = rgb_profile(tuple(tuple(0.99 * part for part in color) for color in SRGB))
    assert not np.array_equal(in_srgb(image, nearly), image)
    for profile in (made, rgb_profile(SRGB), nearly):
        notes = list[str]()
        assert torch.equal(read(encode(image, "PNG", icc_profile=profile), notes=notes), plain)
        gray = with_profile(image.convert("L"), profile)
        assert torch.equal(read(gray, 1, notes=notes)[0], torch.from_numpy(np.array(gray)))
        assert not notes


def test_colours_are_converted_before_alpha_is_composited(image: Image.Image) -> None:
    alpha = np.arange(image.width * image.height, dtype=np.uint8).reshape(image.size[::-1])
    image.putalpha(Image.fromarray(alpha))
    converted = Image.fromarray(in_srgb(image.convert("RGB"), P3))
    converted.putalpha(image.getchannel("A"))
    image = with_profile(image, P3)
    for channels in (1, 3, 4):
        assert torch.equal(read(image, channels), read_image(converted, channels))


def test_a_palette_is_converted_as_the_colours_that_it_stands_for(image: Image.Image) -> None:
    palette = image.quantize(16)
    expected = np.moveaxis(in_srgb(palette.convert("RGB"), P3), -1, 0).copy()
    assert torch.equal(read(with_profile(palette, P3)), torch.from_numpy(expected))


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_gray_pixels_have_gray_profiles_and_stay_gray(encode: Encode, mode: str) -> None:
    linear, levels = gray_profile(1.0), np.arange(256, dtype=np.uint16).reshape(16, 16)
    image = Image.fromarray(levels.astype(np.uint8))
    if mode == "LA":
        image.putalpha(255)
    if mode == "I;16":
        image = Image.fromarray(levels * 257)
    gray = read(with_profile(image, linear), 1)[0].numpy()
    unit = levels / 255
    curve = np.where(unit > 0.0031308, 1.055 * unit ** (1 / 2.4) - 0.055, 12.92 * unit)
    assert np.abs(gray - 255 * curve).max() <= 1
    assert np.array_equal(read(encode(image, "PNG", icc_profile=linear)).numpy(), [gray] * 3)


def test_cmyk_is_converted_by_its_profile_where_it_has_one(encode: Encode) -> None:
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [255, 255, 255, 255]]], dtype=np.uint8)
    image = Image.frombytes("CMYK", (3, 1), inks.tobytes())
    content = encode(image, "TIFF", icc_profile=cmyk_profile())
    assert read_image(content)[:, 0].T.tolist() == [[255] * 3, [0, 255, 255], [0] * 3]
    white, cyan, black = read(content)[:, 0].T.tolist()
    assert (white, black) == ([255] * 3, [0] * 3)
    assert len(set(cyan)) == 1
    assert 180 < cyan[0] < 190  # L* 75


def test_the_orientation_is_applied_to_converted_pixels(encode: Encode, image: Image.Image) -> None:
    exif = Image.Exif()
    exif[Base.Orientation] = 6
    turned = read(encode(image, "PNG", icc_profile=P3, exif=exif))
    upright = read(encode(image, "PNG", icc_profile=P3))
    assert torch.equal(turned, upright.rot90(-1, (1, 2)))


@pytest.mark.parametrize(
    ("mode", "profile", "reason"),
    [
        ("RGB", P3[:200], "damaged, or of a kind"),
        ("RGB", b"", "damaged, or of a kind"),
        ("RGB", bytes(MAX_PROFILE_BYTES + 1), "over 4194304 bytes"),
        ("RGB", None, "incomplete or damaged"),
        ("RGB", "text", "incomplete or damaged"),
        ("RGB", gray_profile(1.0), "describes colours of GRAY, and the pixels are RGB"),
        ("RGB", cmyk_profile(), "describes colours of CMYK, and the pixels are RGB"),
        ("L", cmyk_profile(), "describes colours of CMYK, and the pixels are L"),
        ("CMYK", P3, "describes colours of RGB, and the pixels are CMYK"),
    ],
)
def test_a_profile_that_cannot_be_applied_counts_as_none_and_is_noted(
    image: Image.Image, mode: str, profile: object, reason: str
) -> None:
    image, notes = image.convert(mode), list[str]()
    plain = read_image(image)
    assert torch.equal(read(with_profile(image, profile), notes=notes), plain)
    assert len(notes) == 1
    assert reason in notes[0]


def test_what_is_prepared_once_is_prepared(image: Image.Image) -> None:
    preprocess = Preprocessor((8, 8), color_profile="srgb")
    x = preprocess(with_profile(image, P3))
    assert not torch.equal(x, Preprocessor((8, 8))(image))
    assert torch.equal(preprocess(x), x)
    assert torch.equal(preprocess(Image.fromarray(x[0].permute(1, 2, 0).numpy())), x)


def test_threads_that_share_a_transform_get_the_same_pixels(image: Image.Image) -> None:
    expected = read(with_profile(image, P3))
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(x, expected) for x in pool.map(lambda _: read(image), range(64)))


def test_what_cannot_be_done_with_profiles_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidValueError, match="unknown color_profile 'p3'; choose one of"):
        Preprocessor((8, 8), color_profile="p3")
    monkeypatch.setattr(features, "check_module", lambda name: False)
    with pytest.raises(InvalidValueError, match="was built without littlecms"):
        Preprocessor((8, 8), color_profile="srgb")
