"""Every mode, depth and orientation of an image becomes the pixels that a viewer would show."""

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin
from PIL.ExifTags import Base

from imagetok.errors import ImageFileError, ImageTypeError, InvalidValueError
from imagetok.images import read_image, to_unit

Encode = Callable[..., bytes]
Color = tuple[int, int, int]

WHITE, GREEN = (255, 255, 255), (0, 255, 0)


def pixel(mode: str, value: int | tuple[int, ...], **info: object) -> Image.Image:
    image = Image.new(mode, (1, 1), value)
    image.info.update(info)
    return image


def palette(index: int, **info: object) -> Image.Image:
    image = Image.new("P", (1, 1), index)
    image.putpalette([1, 2, 3, 10, 20, 30])
    image.info.update(info)
    return image


def alpha_palette() -> Image.Image:
    image = Image.new("PA", (1, 1))
    image.putpalette([1, 2, 3, 10, 20, 30])
    image.putpixel((0, 0), (1, 255))
    return image


def read(source: object, channels: int = 3, background: Color = WHITE) -> list[list[int]]:
    """The values of an image of one row, channels last."""
    values: list[list[int]] = read_image(source, channels, background)[:, 0].T.tolist()
    return values


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (pixel("1", 1), (255, 255, 255)),
        (pixel("1", 0), (0, 0, 0)),
        (pixel("1", 255, transparency=255), GREEN),
        (pixel("L", 77), (77, 77, 77)),
        (pixel("L", 77, transparency=77), GREEN),
        (pixel("L", 77, transparency=78), (77, 77, 77)),
        (pixel("LA", (77, 255)), (77, 77, 77)),
        (pixel("LA", (77, 0)), GREEN),
        (pixel("La", (50, 255)), (50, 50, 50)),
        (palette(1), (10, 20, 30)),
        (palette(1, transparency=1), GREEN),
        (palette(1, transparency=0), (10, 20, 30)),
        (palette(1, transparency=b"\xff\x00"), GREEN),
        (alpha_palette(), (10, 20, 30)),
        (pixel("RGB", (9, 8, 7)), (9, 8, 7)),
        (pixel("RGB", (9, 8, 7), transparency=(9, 8, 7)), GREEN),
        (pixel("RGBA", (9, 8, 7, 255)), (9, 8, 7)),
        (pixel("RGBA", (9, 8, 7, 0)), GREEN),
        (pixel("RGBa", (100, 50, 0, 255)), (100, 50, 0)),
        (pixel("RGBX", (9, 8, 7, 0)), (9, 8, 7)),
        (pixel("CMYK", (255, 0, 0, 0)), (0, 255, 255)),
        (pixel("CMYK", (0, 0, 0, 255)), (0, 0, 0)),
        (pixel("YCbCr", (76, 85, 255)), (254, 0, 0)),
        (pixel("HSV", (85, 255, 255)), (0, 255, 0)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else str(value),
)
def test_a_mode_becomes_rgb_on_the_background(
    image: Image.Image, expected: tuple[int, ...]
) -> None:
    assert read(image, background=GREEN) == [list(expected)]


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
def test_modes_without_a_certain_8_bit_reading_are_refused(mode: str) -> None:
    with pytest.raises(ImageTypeError, match="pass its pixels as a uint8 array"):
        read_image(Image.new(mode, (2, 2)))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_files_of_32_bit_pixels_are_refused(encode: Encode, mode: str) -> None:
    with pytest.raises(ImageFileError, match="whose range is not known"):
        read_image(encode(Image.new(mode, (2, 2)), "TIFF"))


def test_half_transparent_pixels_mix_with_the_background_exactly() -> None:
    alphas = np.arange(256)
    for color, under in ((0, 255), (200, 255), (255, 3), (17, 17)):
        pixels = np.full((1, 256, 4), color, dtype=np.uint8)
        pixels[..., 3] = alphas
        exact = (alphas * color + (255 - alphas) * under) / 255
        expected = np.floor(exact + 0.5).astype(int).tolist()
        found = read(Image.fromarray(pixels), background=(under, under, under))
        assert [value[0] for value in found] == expected


def test_colour_hidden_under_full_transparency_does_not_show(encode: Encode) -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    for source in (image, encode(image, "PNG"), encode(image, "WEBP", lossless=True, exact=True)):
        assert read_image(source).eq(255).all()
        assert read_image(source, background=(0, 0, 0)).eq(0).all()


def test_four_channels_keep_alpha_and_make_the_rest_opaque() -> None:
    assert read(pixel("RGBA", (9, 8, 7, 6)), channels=4) == [[9, 8, 7, 6]]
    assert read(pixel("LA", (9, 6)), channels=4) == [[9, 9, 9, 6]]
    assert read(pixel("RGB", (9, 8, 7)), channels=4) == [[9, 8, 7, 255]]
    assert read(pixel("L", 9), channels=4) == [[9, 9, 9, 255]]
    assert read(palette(1, transparency=b"\xff\x40"), channels=4) == [[10, 20, 30, 64]]


def test_gray_is_itu_r_601_luma_as_pillow_computes_it(colors: np.ndarray) -> None:
    image = Image.fromarray(colors)
    expected = torch.from_numpy(np.array(image.convert("L")))
    assert torch.equal(read_image(image, channels=1)[0], expected)
    assert read(pixel("RGB", (255, 0, 0)), channels=1) == [[76]]  # 0.299 * 255 = 76.2
    assert read(pixel("RGB", (0, 255, 0)), channels=1) == [[150]]  # 0.587 * 255 = 149.7
    assert read(pixel("RGB", (0, 0, 255)), channels=1) == [[29]]  # 0.114 * 255 = 29.1


def test_gray_survives_a_way_through_colour() -> None:
    for value in range(256):
        assert read(pixel("RGB", (value,) * 3), channels=1) == [[value]]


def test_a_number_of_channels_that_no_tokenizer_has_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="channels is 2; choose one of: 1, 3, 4"):
        read_image(pixel("L", 0), channels=2)


WIDE = np.array([[0, 128, 129, 257, 385, 386, 32_768, 65_406, 65_407, 65_535]], dtype=np.uint16)


def test_16_bit_gray_is_divided_by_257_and_rounded(encode: Encode) -> None:
    image = Image.fromarray(WIDE)
    expected = [[round(value / 257)] for value in WIDE[0].tolist()]
    assert expected[1:3] == [[0], [1]]
    big_endian = Image.frombytes("I;16B", image.size, WIDE.astype(">u2").tobytes())
    sources = [image, big_endian, encode(image, "PNG"), encode(image, "TIFF")]
    for source in [*sources, encode(big_endian, "TIFF")]:
        assert read(source, channels=1) == expected


def test_the_transparent_value_of_16_bit_gray_is_compared_at_16_bits(
    encode_png: Encode, png_chunk: Encode
) -> None:
    row = WIDE.astype(">u2").tobytes()
    key = png_chunk(b"tRNS", struct.pack(">H", 385))
    found = read(encode_png(10, 16, 0, row, before=key), channels=4)
    assert [value[3] for value in found] == [255, 255, 255, 255, 0, 255, 255, 255, 255, 255]


def test_16_bit_colour_keeps_its_upper_8_bits(encode_png: Encode) -> None:
    for color_type, channels in ((2, 3), (6, 4)):
        row = np.repeat(WIDE[0, :, None], channels, axis=1).astype(">u2").tobytes()
        found = read(encode_png(10, 16, color_type, row), channels=4)
        assert [value[0] for value in found] == [value >> 8 for value in WIDE[0].tolist()]


@pytest.mark.parametrize(("depth", "color_type", "key"), [(2, 0, 2), (4, 0, 2), (16, 2, 6)])
def test_transparent_colours_that_pillow_misreads_are_refused(
    encode_png: Encode, png_chunk: Encode, depth: int, color_type: int, key: int
) -> None:
    transparent = png_chunk(b"tRNS", bytes(key))
    assert read(encode_png(1, depth, color_type, bytes(6))) == [[0, 0, 0]]
    with pytest.raises(ImageFileError, match="save it with an alpha channel"):
        read_image(encode_png(1, depth, color_type, bytes(6), before=transparent))


def test_16_bit_tiffs_whose_white_is_zero_are_refused(encode: Encode) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] = 0
    with pytest.raises(ImageFileError, match="white is not 65535"):
        read_image(encode(Image.fromarray(WIDE), "TIFF", tiffinfo=tags))


UPRIGHT = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: np.rot90(UPRIGHT),
    7: UPRIGHT[::-1, ::-1].T,
    8: np.rot90(UPRIGHT, -1),
}


def exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[Base.Orientation] = orientation
    return exif


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied_once_on_every_route(
    encode: Encode, format: str, orientation: int, tmp_path: Path
) -> None:
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    options = {"lossless": True} if format == "WEBP" else {}
    content = encode(image, format, exif=exif(orientation), **options)
    path = tmp_path / "picture"
    path.write_bytes(content)
    opened = Image.open(io.BytesIO(content))
    for source in (content, path, opened, opened.copy()):
        assert torch.equal(read_image(source, channels=1)[0], torch.from_numpy(UPRIGHT))


def test_exif_behind_the_pixels_of_a_png_counts(encode_png: Encode, png_chunk: Encode) -> None:
    late = png_chunk(b"eXIf", exif(2).tobytes()[6:])
    assert read(encode_png(2, 8, 0, b"\x01\x02", after=late), channels=1) == [[2], [1]]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("broken", [b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\0\x09", b""])
def test_damaged_exif_does_not_cost_the_image(encode: Encode, broken: bytes) -> None:
    image = Image.fromarray(UPRIGHT)
    for content in (encode(image, "PNG", exif=broken), encode(image, "JPEG", exif=broken)):
        assert read_image(content, channels=1).shape == (1, 2, 3)


def test_the_first_frame_of_an_animation_is_read(encode: Encode) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ((255, 0, 0), (0, 0, 255))]
    for format, options in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        content = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert read_image(content)[:, 0, 0].tolist() == [255, 0, 0]


def test_the_image_of_the_caller_is_left_as_it_was(encode: Encode) -> None:
    stored = Image.fromarray(STORED[6].copy())
    image = Image.open(io.BytesIO(encode(stored, "PNG", exif=exif(6))))
    read_image(image)
    assert image.size == (2, 3)
    assert image.getexif()[Base.Orientation] == 6


LEVELS = torch.arange(256, dtype=torch.uint8)


@pytest.mark.parametrize("count", [1, 3, 8, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_levels_in_the_unit_interval_are_correctly_rounded(dtype: torch.dtype, count: int) -> None:
    levels = LEVELS[-count:]
    expected = levels.numpy().astype(str(dtype).removeprefix("torch.")) / 255
    assert np.array_equal(to_unit(levels, dtype).numpy(), expected)
    if torch.cuda.is_available():
        assert np.array_equal(to_unit(levels.cuda(), dtype).cpu().numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_levels_are_divided_in_float32_whatever_type_is_asked_for(dtype: torch.dtype) -> None:
    assert torch.equal(to_unit(LEVELS, dtype), to_unit(LEVELS).to(dtype))


def test_levels_can_be_divided_in_memory_that_is_used_again() -> None:
    memory = torch.empty(256)
    assert to_unit(LEVELS, out=memory) is memory
    assert torch.equal(memory, to_unit(LEVELS))
    assert LEVELS.equal(torch.arange(256, dtype=torch.uint8))


def test_levels_that_are_not_8_bit_are_refused() -> None:
    with pytest.raises(ImageTypeError, match=r"found dtype torch.float32; 8-bit pixels are uint8"):
        to_unit(torch.rand(3))
