"""Images of every kind through a tokenizer: the same ids, and refusals that name the image."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from torch import Tensor

from imagetok import ImageTokenizer
from imagetok.errors import ImageFileError, ImageTypeError, ImageValueError
from imagetok.tokenizer import BATCH_SIZE

Make = Callable[..., ImageTokenizer]
MakePictures = Callable[..., Tensor]


def to_array(picture: Tensor) -> np.ndarray:
    """(C, H, W) to (H, W, C), or (H, W) where it is gray."""
    array = picture.permute(1, 2, 0).numpy()
    return array[:, :, 0] if array.shape[2] == 1 else array


def to_png(picture: Tensor) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(to_array(picture)).save(stream, "PNG")
    return stream.getvalue()


def column(contents: list[bytes], decode: bool = True) -> Any:
    rows = [{"bytes": content, "path": None} for content in contents]
    features = Features({"image": ImageFeature(decode=decode)})
    return Dataset.from_dict({"image": rows}, features=features)


@pytest.mark.parametrize("name", ["vqvae", "vqvae-loss", "vqvae-normalized", "dvae", "dvae-mlp"])
def test_one_image_gives_the_same_ids_on_every_route(
    make: Make, pictures: MakePictures, tmp_path: Path, name: str
) -> None:
    tokenizer = make(name)
    picture = pictures(tokenizer, 1, size=(37, 61))[0]
    content = to_png(picture)
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    data = column([content])
    routes: list[Any] = [
        path,
        str(path),
        content,
        bytearray(content),
        memoryview(content),
        Image.open(path),
        to_array(picture),
        picture,
        data[0]["image"],
        data.cast_column("image", ImageFeature(decode=False))[0]["image"],
    ]
    ids = tokenizer.encode(picture)
    assert ids.shape == tokenizer.grid_size
    for route in routes:
        assert torch.equal(tokenizer.encode(route), ids), type(route)
    assert torch.equal(tokenizer.encode(routes), ids.expand(len(routes), -1, -1))
    assert torch.equal(tokenizer.encode(data["image"]), ids[None])
    assert torch.equal(tokenizer.encode(tokenizer.preprocess(path).float() / 255), ids[None])


def test_preprocessing_is_what_encode_does_first_and_does_nothing_twice(
    tokenizer: ImageTokenizer, pictures: MakePictures
) -> None:
    batch = pictures(tokenizer, 2, size=(40, 31))
    prepared = tokenizer.preprocess(batch)
    assert prepared.dtype == torch.uint8
    assert prepared.shape == (2, tokenizer.preprocessor.channels, *tokenizer.image_size)
    assert torch.equal(tokenizer.preprocess(prepared), prepared)
    assert torch.equal(tokenizer.encode_latents(prepared), tokenizer.encode_latents(batch))
    as_floats = prepared.float() / 255
    assert torch.equal(tokenizer.encode_latents(as_floats), tokenizer.encode_latents(batch))


@pytest.mark.parametrize("size", [1, 7, 32])
def test_batches_of_files_give_the_ids_of_each_file_alone(
    make: Make, pictures: MakePictures, size: int
) -> None:
    tokenizer = make("dvae")  # scores are apart: see the margins of test_tokenizer_ids.py
    batch = pictures(tokenizer, 33, size=(20, 20))
    contents = [to_png(picture) for picture in batch]
    alone = torch.stack([tokenizer.encode(content) for content in contents])
    order = np.random.default_rng(size).permutation(33)
    for start in range(0, 33, size):
        rows = order[start : start + size]
        assert torch.equal(tokenizer.encode([contents[row] for row in rows]), alone[rows])


def test_a_long_column_is_decoded_a_piece_at_a_time(make: Make, pictures: MakePictures) -> None:
    tokenizer = make("dvae")
    batch = pictures(tokenizer, BATCH_SIZE + 3)
    images = column([to_png(picture) for picture in batch])["image"]
    sizes: list[int] = []
    tokenizer.encoder.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    ids = tokenizer.encode(images)
    assert sizes == [BATCH_SIZE, 3]
    assert torch.equal(ids, tokenizer.encode(batch))


def test_a_file_of_more_bytes_than_a_batch_has_images_is_one_image(
    make: Make, pictures: MakePictures
) -> None:
    tokenizer = make("vqvae")
    content = to_png(pictures(tokenizer, 1)[0])
    assert len(content) > BATCH_SIZE
    for source in (content, bytearray(content), memoryview(content)):
        assert tokenizer.encode(source).shape == tokenizer.grid_size


@pytest.mark.parametrize("place", [2, BATCH_SIZE + 2])
def test_a_refused_image_of_a_list_is_named_by_its_index(
    make: Make, pictures: MakePictures, tmp_path: Path, place: int
) -> None:
    tokenizer = make("vqvae")
    images: list[Any] = list(pictures(tokenizer, BATCH_SIZE + 4))
    images[place] = tmp_path / "none.png"
    with pytest.raises(ImageFileError, match=rf"^images\[{place}\]: '.*none\.png' cannot be read"):
        tokenizer.encode(images)
    images[place] = None
    with pytest.raises(ImageTypeError, match=rf"^images\[{place}\]: found None"):
        tokenizer.encode(images)


def test_a_damaged_row_of_a_long_column_is_named_by_its_index(
    make: Make, pictures: MakePictures
) -> None:
    tokenizer = make("vqvae")
    contents = [to_png(picture) for picture in pictures(tokenizer, BATCH_SIZE + 4)]
    contents[BATCH_SIZE + 1] = contents[0][:50]
    with pytest.raises(ImageFileError, match=rf"^images\[{BATCH_SIZE + 1}\] cannot be decoded"):
        tokenizer.encode(column(contents)["image"])


@pytest.mark.parametrize("count", [2, BATCH_SIZE])
def test_float_tensors_and_images_do_not_mix(
    make: Make, pictures: MakePictures, floats: MakePictures, count: int
) -> None:
    tokenizer = make("vqvae")
    prepared, raw = list(floats(tokenizer, count)), list(pictures(tokenizer, count))
    for mixed, places in ((prepared + raw, (0, count)), (raw + prepared, (count, 0))):
        named = r"images\[{}\] is a float tensor and images\[{}\] is not".format(*places)
        with pytest.raises(ImageTypeError, match=named):
            tokenizer.encode(mixed)


@pytest.mark.parametrize("count", [2, BATCH_SIZE])
def test_a_list_of_float_tensors_has_one_size(make: Make, floats: MakePictures, count: int) -> None:
    tokenizer = make("vqvae")
    unequal = [*floats(tokenizer, count), *floats(tokenizer, 2, size=(8, 8))]
    with pytest.raises(ImageValueError, match=rf"^images\[{count}\] has shape .* one by one"):
        tokenizer.encode(unequal)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: x * 255, ImageValueError, r"outside \[0, 1\]; .*x / 255"),
        (lambda x: x * 2 - 1, ImageValueError, r"outside \[0, 1\]; .*\(x \+ 1\) / 2"),
        (lambda x: x * float("nan"), ImageValueError, "NaN"),
        (lambda x: x.permute(0, 2, 3, 1), ImageValueError, r"channels last: pass x\.permute"),
        (lambda x: x[:, :1], ImageValueError, "1 channels; expected 3"),
        (lambda x: x.numpy(), ImageTypeError, "float32; pass uint8"),
        (lambda x: x.long(), ImageTypeError, "int64"),
        (lambda x: iter(x), ImageTypeError, r"list\(\.\.\.\)"),
        (lambda x: "https://example.org/a.png", ImageValueError, "URLs are never opened"),
        (lambda x: 7, ImageTypeError, "type int"),
        (lambda x: None, ImageTypeError, "None"),
    ],
)
def test_what_is_ambiguous_or_unreadable_is_refused_by_every_method(
    make: Make,
    floats: MakePictures,
    change: Callable[[Tensor], Any],
    error: type[Exception],
    message: str,
) -> None:
    for name in ("dvae", "vae"):
        tokenizer = make(name)
        wrong = change(floats(tokenizer, 2))
        for method in (
            tokenizer.encode_latents,
            tokenizer.reconstruct,
            tokenizer.encode_distribution,
        ):
            with pytest.raises(error, match=message):
                method(wrong)
