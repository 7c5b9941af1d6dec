"""Image sources: which files are read or refused, and one image on every route."""

import io
import os
import pickle
import re
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image, ImageFile
from PIL.ExifTags import Base

from imagetok.errors import (
    ImageFileError,
    ImagetokError,
    ImageTypeError,
    ImageValueError,
    InvalidValueError,
)
from imagetok.images import (
    FORMATS,
    MAX_PIXELS,
    MOST_PIXELS,
    Preprocessor,
    measure_image,
    read_image,
)

Encode = Callable[..., bytes]

PREPROCESS = Preprocessor((8, 16))


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_of_the_list_is_read_whatever_the_name_says(
    encode: Encode, colors: np.ndarray, format: str, tmp_path: Path
) -> None:
    assert FORMATS == ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF")
    content = encode(Image.fromarray(colors), format)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    for name in ("picture.txt", "picture.jpg", "picture"):
        (tmp_path / name).write_bytes(content)
        assert np.array_equal(read_image(tmp_path / name).permute(1, 2, 0), expected)


@pytest.mark.parametrize("format", ["PPM", "TGA", "ICO", "PDF", "JPEG2000"])
def test_other_formats_are_refused_with_the_list(
    encode: Encode, colors: np.ndarray, format: str, tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(encode(Image.fromarray(colors), format))
    with pytest.raises(ImageFileError, match="one of: JPEG, PNG, WebP, GIF, BMP, TIFF") as caught:
        read_image(path)
    assert f"'{path}'" in str(caught.value)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("format", FORMATS)
def test_a_truncated_file_is_refused_wherever_it_ends(
    encode: Encode, colors: np.ndarray, format: str
) -> None:
    content = encode(Image.fromarray(colors), format)
    for kept in (1, 5, 20, len(content) // 2, len(content) * 9 // 10):
        with pytest.raises(ImageFileError, match=f"a picture of {kept} bytes"):
            read_image(content[:kept])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", FORMATS)
def test_damaged_files_are_read_or_refused_and_nothing_else(
    encode: Encode, colors: np.ndarray, format: str
) -> None:
    content = encode(Image.fromarray(colors), format)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(100):
        damaged = bytearray(content)
        for place in rng.integers(0, min(len(content), 150), 3):
            damaged[place] = rng.integers(256)
        try:
            assert read_image(damaged).shape[0] == 3
        except ImagetokError as error:
            refused += 1
            assert "0x" not in str(error)  # noqa: PT017
    assert refused > 10


def test_messages_about_equal_files_are_equal(encode: Encode, colors: np.ndarray) -> None:
    content = encode(Image.fromarray(colors), "JPEG")
    for kept, message in (
        (1, "is of no format that is read, whatever its name says; convert it to one of: "),
        (100, "has a damaged header, or is of a kind of JPEG that is not read"),
        (len(content) - 90, "cannot be decoded: it is truncated or damaged"),
    ):
        for _ in range(3):
            with pytest.raises(ImageFileError) as caught:
                read_image(bytes(bytearray(content[:kept])))
            found = str(caught.value).removesuffix(", ".join(FORMATS))
            assert found == f"a picture of {kept} bytes {message}"
            assert caught.value.__cause__ is None


def test_what_is_not_a_file_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "pipe")
    for source, reason in (
        (tmp_path / "missing.png", "No such file"),
        (str(tmp_path / "empty.png"), "is empty"),
        (b"", "is empty"),
        (tmp_path, "is a directory"),
        (tmp_path / "pipe", "is no regular file"),
        (tmp_path / "empty.png" / "below.png", "Not a directory"),
        ("a\0b", "is not a valid path"),
        ("n" * 5000, "File name too long"),
        ("", "No such file"),
    ):
        for function in (read_image, measure_image):
            with pytest.raises(ImageFileError, match=reason):
                function(source)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.touch(mode=0)
    with pytest.raises(ImageFileError, match="Permission denied"):
        read_image(path)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a.png",
        "HTTP://example.com/a.png",
        "hf://datasets/user/name/a.png",
        "s3://bucket/a.png",
        "file:///tmp/a.png",
        "zip://a.png::/tmp/b.zip",
        "data:image/png;base64,AAAA",
    ],
)
def test_a_url_is_never_opened(url: str) -> None:
    for source in (url, {"bytes": None, "path": url}):
        with pytest.raises(ImageValueError, match="URLs are never opened; download the picture"):
            read_image(source)


@pytest.mark.parametrize(
    ("width", "height"), [(50_001, 1000), (9000, 9000), (12_000, 12_000), (60_000, 60_000)]
)
def test_a_huge_image_is_refused_before_it_is_decoded(
    encode_png: Encode, width: int, height: int
) -> None:
    content = encode_png(width, 8, 2, b"", height=height)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for function in (read_image, measure_image):
            with pytest.raises(ImageValueError, match=f"{width * height} pixels, over the limit"):
                function(content)


@pytest.mark.parametrize("format", FORMATS)
def test_the_limit_holds_in_every_format(encode: Encode, format: str) -> None:
    content = encode(Image.new("RGB", (11, 10)), format)
    array = np.zeros((10, 11), np.uint8)
    sources = (content, Image.open(io.BytesIO(content)), array, torch.from_numpy(array)[None])
    for source in sources:
        assert read_image(source, max_pixels=110).shape == (3, 10, 11)
        for refused in (
            lambda image: read_image(image, max_pixels=109),
            lambda image: measure_image(image, 109),
            Preprocessor((2, 2), max_pixels=109),
        ):
            with pytest.raises(ImageValueError, match="110 pixels, over the limit of 109 pixels"):
                refused(source)


def test_the_limit_is_50_megapixels_inclusive_unless_raised() -> None:
    assert MAX_PIXELS == 50_000_000
    strip = np.broadcast_to(np.uint8(7), (1, MAX_PIXELS))
    assert measure_image(strip) == (1, MAX_PIXELS)
    longer = np.broadcast_to(np.uint8(7), (1, MOST_PIXELS))
    with pytest.raises(ImageValueError, match=r"of 50 megapixels; shrink it .* or raise max_pixe"):
        measure_image(longer)
    assert measure_image(longer, MOST_PIXELS) == (1, MOST_PIXELS)


@pytest.mark.parametrize("limit", [0, -1, 178_956_971, 1.0, True, None])
def test_a_limit_is_at_most_what_pillow_opens(limit: object) -> None:
    assert MOST_PIXELS == 2 * 89_478_485  # PIL.Image.MAX_IMAGE_PIXELS
    with pytest.raises(InvalidValueError, match=r"expected an integer in 1\.\.178956970"):
        Preprocessor((2, 2), max_pixels=limit)  # type: ignore[arg-type]


@pytest.mark.parametrize("format", FORMATS)
def test_a_lower_limit_of_the_process_is_named(
    encode: Encode, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = encode(Image.new("RGB", (300, 200)), format)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    try:
        assert read_image(content).shape == (3, 200, 300)
    except ImageValueError as error:
        assert "PIL.Image.MAX_IMAGE_PIXELS" in str(error)  # noqa: PT017


def test_no_global_setting_of_pillow_is_changed_and_nothing_is_warned(
    encode: Encode, encode_png: Encode, colors: np.ndarray, recwarn: pytest.WarningsRecorder
) -> None:
    filters, limit = list(warnings.filters), Image.MAX_IMAGE_PIXELS
    image = Image.fromarray(colors)
    transparent = image.quantize(16)
    transparent.info["transparency"] = bytes(range(16))
    for content in [encode(image, format) for format in FORMATS] + [encode(transparent, "PNG")]:
        read_image(content)
        measure_image(content)
    with pytest.raises(ImageValueError):
        read_image(encode_png(10_000, 8, 2, b"", height=10_000))
    assert not recwarn.list
    assert warnings.filters == filters
    assert limit == Image.MAX_IMAGE_PIXELS
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_size_is_that_of_the_upright_image(
    encode: Encode, format: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[Base.Orientation] = orientation
    content = encode(Image.new("RGB", (20, 12)), format, exif=exif)
    size = (20, 12) if orientation == 6 else (12, 20)
    for source in (content, Image.open(io.BytesIO(content)), {"bytes": content, "path": None}):
        assert measure_image(source) == size
        assert read_image(source).shape[1:] == size


def test_the_size_is_read_from_the_header_alone(encode: Encode, colors: np.ndarray) -> None:
    for format in ("JPEG", "GIF", "BMP"):
        content = encode(Image.fromarray(colors), format)
        assert measure_image(content[:-90]) == (12, 20)


def test_an_image_whose_file_was_closed_is_refused(encode: Encode, colors: np.ndarray) -> None:
    image = Image.open(io.BytesIO(encode(Image.fromarray(colors), "PNG")))
    image.close()
    with pytest.raises(ImageFileError, match="its file was closed"):
        read_image(image)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (None, "found None where a picture was expected"),
        (7, "an object of type int is no picture; pass a path, bytes"),
        (io.BytesIO(b""), "an object of type BytesIO is no picture"),
        ({}, re.escape("found a mapping with the keys (none)")),
        ({"image": b"", "label": 1}, 'keys image, label; .* such as row."image".'),
    ],
    ids=["none", "number", "stream", "empty mapping", "row"],
)
def test_what_is_not_an_image_is_refused(source: object, reason: str) -> None:
    with pytest.raises(ImageTypeError, match=reason):
        read_image(source)


def test_an_image_value_without_content_is_refused() -> None:
    with pytest.raises(ImageValueError, match="neither bytes nor a path"):
        read_image({"bytes": None, "path": None})


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[Base.Orientation] = 6
    return exif


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {}),
        ("PNG", {"exif": rotated()}),
        ("JPEG", {"quality": 60}),
        ("JPEG", {"quality": 60, "exif": rotated()}),
        ("JPEG", {"progressive": True}),
        ("MPO", {"exif": rotated()}),
        ("WEBP", {"exif": rotated()}),
        ("TIFF", {"compression": "tiff_lzw", "exif": rotated()}),
        ("BMP", {}),
        ("GIF", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "plain",
)
def test_all_routes_give_the_same_pixels(
    encode: Encode, colors: np.ndarray, tmp_path: Path, format: str, options: dict[str, object]
) -> None:
    path = tmp_path / "picture"
    content = encode(Image.fromarray(colors), format, **options)
    path.write_bytes(content)
    pixels = read_image(path)

    data = Dataset.from_dict({"image": [str(path)]}).cast_column("image", ImageFeature())
    embedded = Dataset.from_dict(
        {"image": [{"bytes": content, "path": None}]}, features=Features({"image": ImageFeature()})
    )
    routes: dict[str, object] = {
        "path string": str(path),
        "bytes": content,
        "bytearray": bytearray(content),
        "memoryview": memoryview(content),
        "PIL image of a file": Image.open(path),
        "PIL image of bytes": Image.open(io.BytesIO(content)),
        "array": pixels.permute(1, 2, 0).numpy(),
        "array in another order": np.asfortranarray(pixels.permute(1, 2, 0).numpy()),
        "tensor": pixels,
        "tensor, channels last in memory": pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        "decoded row": data[0]["image"],
        "decoded row of bytes": embedded[0]["image"],
        "undecoded row": data.cast_column("image", ImageFeature(decode=False))[0]["image"],
        "undecoded bytes": embedded.cast_column("image", ImageFeature(decode=False))[0]["image"],
    }
    if format != "GIF":  # of a palette image, a formatted data set gives the indices
        routes["torch row"] = embedded.with_format("torch")[0]["image"]
        routes["numpy row"] = embedded.with_format("numpy")[0]["image"]
    prepared = PREPROCESS(path)
    for name, source in routes.items():
        assert torch.equal(read_image(source), pixels), name
        assert torch.equal(PREPROCESS(source), prepared), name
    assert torch.equal(PREPROCESS(list(routes.values())), prepared.repeat(len(routes), 1, 1, 1))
    assert torch.equal(PREPROCESS(embedded["image"]), prepared)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_routes_agree_for_every_mode(
    encode: Encode, colors: np.ndarray, mode: str, channels: int
) -> None:
    image = Image.fromarray(colors).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 200)
    elif mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(colors[:, :, 0]))
    content = encode(image, "TIFF" if mode == "CMYK" else "PNG")
    undecoded = {"bytes": content, "path": None}
    decoded = Dataset.from_dict(
        {"image": [undecoded]}, features=Features({"image": ImageFeature()})
    )[0]["image"]
    pixels = read_image(content, channels)
    for source in (image, undecoded, decoded):
        assert torch.equal(read_image(source, channels), pixels)


def test_a_damaged_row_of_a_decoding_column_is_refused_with_its_index(
    encode: Encode, colors: np.ndarray
) -> None:
    content = encode(Image.fromarray(colors), "PNG")
    column = Dataset.from_dict(
        {"image": [{"bytes": data, "path": None} for data in (content, content[:99])]},
        features=Features({"image": ImageFeature()}),
    )["image"]
    with pytest.raises(ImageFileError, match=r"images\[1\] cannot be decoded by its data set"):
        PREPROCESS(column)


def test_a_column_with_missing_images_is_refused_with_the_index(colors: np.ndarray) -> None:
    column = Dataset.from_dict(
        {"image": [Image.fromarray(colors), None]}, features=Features({"image": ImageFeature()})
    )["image"]
    with pytest.raises(TypeError, match=r"images\[1\]: found None"):
        PREPROCESS(column)
    with pytest.raises(TypeError, match=r"images\[0\]: an object of type int is no picture"):
        PREPROCESS(Dataset.from_dict({"n": [1]}, features=Features({"n": Value("int64")}))["n"])


def test_threads_and_copies_in_other_processes_give_the_same_pixels(
    encode: Encode, colors: np.ndarray
) -> None:
    contents = [
        encode(Image.fromarray(np.roll(colors, shift, axis=1)), format)
        for shift in range(5)
        for format in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP")
    ]
    expected = [PREPROCESS(content) for content in contents]
    copy = pickle.loads(pickle.dumps(PREPROCESS))
    assert copy == PREPROCESS
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(copy, contents * 4))
    for index, pixels in enumerate(found):
        assert torch.equal(pixels, expected[index % len(contents)])
