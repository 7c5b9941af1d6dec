"""One picture gives the same pixels whichever way it comes."""

import io
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from PIL.ExifTags import Base

from imagetok.errors import ImageFileError
from imagetok.images import Preprocessor, read_picture

Encode = Callable[..., bytes]

PREPROCESS = Preprocessor((8, 16))


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
    pixels = read_picture(path)

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
    if format != "GIF":  # of a palette picture, a formatted data set gives the indices
        routes["torch row"] = embedded.with_format("torch")[0]["image"]
        routes["numpy row"] = embedded.with_format("numpy")[0]["image"]
    prepared = PREPROCESS(path)
    for name, source in routes.items():
        assert torch.equal(read_picture(source), pixels), name
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
    pixels = read_picture(content, channels)
    for source in (image, undecoded, decoded):
        assert torch.equal(read_picture(source, channels), pixels)


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


def test_a_column_with_missing_pictures_is_refused_with_the_index(colors: np.ndarray) -> None:
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
