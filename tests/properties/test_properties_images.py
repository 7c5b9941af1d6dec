"""Images of any kind, mode, size and damage: the right pixels, or a refusal by a named error."""

from __future__ import annotations

import functools
import io
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import damages
from effort import often
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from imagetok.errors import ImageFileError, ImageTypeError, ImageValueError
from imagetok.images import FORMATS, Preprocessor, measure_image, read_image, to_pil

REFUSALS = (ImageFileError, ImageTypeError, ImageValueError)

sides = st.one_of(st.integers(1, 3), st.integers(1, 40))
channels = st.sampled_from([1, 3, 4])
seeds = st.integers(0, 2**32)
backgrounds = st.tuples(*[st.integers(0, 255)] * 3)
preprocessors = st.builds(
    Preprocessor,
    st.tuples(st.integers(2, 24), st.integers(2, 24)),
    channels=channels,
    resize=st.sampled_from(["bicubic", "bilinear"]),
    background=backgrounds,
)
MODES = {"1": 1, "L": 1, "LA": 2, "P": 1, "RGB": 3, "RGBA": 4, "CMYK": 4, "YCbCr": 3, "HSV": 3}


def noise(seed: int, *shape: int) -> np.ndarray:
    """Random bytes, with the extremes well represented."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, shape, dtype=np.uint8)
    return np.where(rng.random(shape) < 0.2, rng.choice(np.uint8([0, 255]), shape), values)


def picture(mode: str, height: int, width: int, seed: int) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(noise(seed, height, width, 2).view(np.uint16)[..., 0])
    if mode == "1":
        return Image.fromarray(noise(seed, height, width)).convert("1")
    if mode == "P":
        image = Image.fromarray(noise(seed, height, width) % 16).convert("P")
        image.putpalette(noise(seed + 1, 16 * 3).tolist())
        return image
    layers = [Image.fromarray(layer) for layer in noise(seed, MODES[mode], height, width)]
    return Image.merge(mode, layers) if len(layers) > 1 else layers[0]


pictures = st.builds(picture, st.sampled_from([*MODES, "I;16"]), sides, sides, seeds)


def save(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


# What is taken


def reference_pixels(image: Image.Image, channels: int, background: tuple[int, ...]) -> np.ndarray:
    """Colours of an image in 0..255, float64 (channels, H, W), by the formulas."""
    if image.mode == "I;16":
        layers = np.asarray(image)[None].astype(np.float64) / 257
    else:
        target = {"LA": "LA", "RGBA": "RGBA", "1": "L", "L": "L"}.get(image.mode, "RGB")
        layers = np.atleast_3d(np.asarray(image.convert(target))).astype(np.float64)
        layers = np.moveaxis(layers, -1, 0)
    color, alpha = layers, np.full_like(layers[:1], 255)
    if len(layers) in (2, 4):
        color, alpha = layers[:-1], layers[-1:]
    if channels == 4:
        return np.concatenate([np.broadcast_to(color, (3, *color.shape[1:])), alpha])
    under = np.array(background, dtype=np.float64)[:, None, None]
    if (alpha < 255).any():
        color = (alpha * color + (255 - alpha) * under) / 255
    if channels == 1:
        weights = np.array([0.299, 0.587, 0.114])[:, None, None]
        return color if len(color) == 1 else (weights * color).sum(0, keepdims=True)
    return np.broadcast_to(color, (3, *color.shape[1:]))


@given(pictures, channels, backgrounds)
def test_the_pixels_are_those_of_the_formulas(
    image: Image.Image, channels: int, background: tuple[int, int, int]
) -> None:
    found = read_image(image, channels, background)
    assert found.dtype == torch.uint8
    assert found.shape == (channels, image.height, image.width)
    expected = reference_pixels(image, channels, background)
    assert np.abs(found.numpy() - expected).max() <= 1.01  # each of two roundings moves by a half


def reference_box(height: int, width: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The largest box of a shape in the middle, by fractions."""
    shape = Fraction(size[0], size[1])
    box_height = min(height, max(1, math.floor(width * shape + Fraction(1, 2))))
    box_width = min(width, max(1, math.floor(height / shape + Fraction(1, 2))))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


@given(pictures, preprocessors)
def test_preprocessing_cuts_the_middle_out_and_resizes_it(
    image: Image.Image, preprocess: Preprocessor
) -> None:
    found = preprocess(image)
    assert found.dtype == torch.uint8
    assert found.shape == (1, preprocess.channels, *preprocess.image_size)
    pixels = read_image(image, preprocess.channels, preprocess.background)
    top, left, height, width = reference_box(image.height, image.width, preprocess.image_size)
    across = (preprocess.image_size[1], height)
    method = getattr(Image.Resampling, preprocess.resize.upper())
    for layer, result in zip(pixels, found[0], strict=True):
        cut = Image.fromarray(layer[top : top + height, left : left + width].numpy())
        expected = cut.resize(across, method).resize(preprocess.image_size[::-1], method)
        difference = result.int() - torch.from_numpy(np.array(expected)).int()
        assert difference.abs().max() <= 2  # each of two passes rounds
    assert torch.equal(preprocess(found), found)
    assert torch.equal(preprocess(found[0]), found)


@given(st.lists(pictures, max_size=4), preprocessors)
def test_images_of_a_list_are_what_each_is_alone(
    images: list[Image.Image], preprocess: Preprocessor
) -> None:
    found = preprocess(images)
    assert found.shape == (len(images), preprocess.channels, *preprocess.image_size)
    for image, pixels in zip(images, found, strict=True):
        assert torch.equal(preprocess(image)[0], pixels)


LOSSLESS = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"],
    "BMP": ["1", "L", "P", "RGB"],
    "GIF": ["L", "P"],
    "WebP": ["RGB", "RGBA"],
}


@given(
    data=st.data(),
    height=sides,
    width=sides,
    seed=seeds,
    channels=channels,
    background=backgrounds,
)
def test_an_image_is_the_same_in_memory_and_in_every_lossless_file(
    data: st.DataObject,
    folder: Path,
    height: int,
    width: int,
    seed: int,
    channels: int,
    background: tuple[int, int, int],
) -> None:
    kind = data.draw(st.sampled_from(list(LOSSLESS)))
    image = picture(data.draw(st.sampled_from(LOSSLESS[kind])), height, width, seed)
    options = {"lossless": True, "exact": True} if kind == "WebP" else {}
    content = save(image, kind, **options)
    (folder / "picture").write_bytes(content)
    expected = read_image(image, channels, background)
    for source in (content, folder / "picture", {"bytes": content, "path": None}):
        assert torch.equal(read_image(source, channels, background), expected)
        assert measure_image(source) == (height, width)


@given(st.integers(0, 3), channels, sides, sides, seeds)
def test_images_survive_the_way_through_floats_and_pil(
    count: int, channels: int, height: int, width: int, seed: int
) -> None:
    pixels = torch.from_numpy(noise(seed, count, channels, height, width))
    shown = to_pil(pixels.float() / 255)
    assert isinstance(shown, list)
    assert len(shown) == count
    for image, expected in zip(shown, pixels, strict=True):
        assert torch.equal(read_image(image, channels), expected)


# What may be anything


lengths = st.one_of(st.integers(0, 5), st.sampled_from([1, 3, 4, 8, 12]))
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int8,
          torch.int32, torch.int64, torch.bool, torch.complex64]  # fmt: skip
EDGES = [1.0000001, -1e-45, 1.0, -0.0, math.nan, math.inf, -math.inf, -1.0, 255.0]


@st.composite
def tensors(draw: st.DrawFn, channels: int, factors: tuple[int, int]) -> Tensor:
    """Tensors that fit, with one odd value; or of any shape and dtype."""
    size = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    fitting = (channels, factors[0] * size[0], factors[1] * size[1])
    shape = draw(st.sampled_from([fitting, (2, *fitting), (0, *fitting)]))
    dtype = torch.float32
    if not draw(st.booleans()):
        shape = draw(st.one_of(st.just(shape), st.lists(lengths, max_size=5).map(tuple)))
        dtype = draw(st.sampled_from(DTYPES))
    values = torch.rand(shape, generator=torch.Generator().manual_seed(draw(seeds)))
    if dtype == torch.uint8:
        return (values * 255).to(dtype)
    if values.numel() and draw(st.booleans()):
        values.view(-1)[draw(st.integers(0, values.numel() - 1))] = draw(st.sampled_from(EDGES))
    return values.nan_to_num(0, 0, 0).to(dtype) if not dtype.is_floating_point else values.to(dtype)


@often
@given(st.data(), preprocessors, st.sampled_from([(1, 1), (4, 4), (2, 8)]))
def test_a_tensor_is_taken_as_it_is_or_refused_for_a_reason(
    data: st.DataObject, preprocess: Preprocessor, factors: tuple[int, int]
) -> None:
    x = data.draw(tensors(preprocess.channels, factors))
    before = x.clone()
    well_shaped = x.ndim in (3, 4) and min(x.shape[-2:]) > 0
    if x.dtype == torch.uint8:
        valid = well_shaped and x.shape[-3] in (1, 3, 4)
    else:
        valid = (
            x.dtype.is_floating_point
            and well_shaped
            and x.shape[-3] == preprocess.channels
            and not (x.shape[-2] % factors[0] or x.shape[-1] % factors[1])
            and bool(((x >= 0) & (x <= 1)).all())
        )
    refusal = None
    try:
        batches, single = preprocess.batches(x, factors, 2)
        found = torch.cat(list(batches))
    except REFUSALS as error:
        refusal = error
    assert x.equal(before) or x.isnan().any()
    assert (refusal is None) == valid, refusal
    if refusal:
        return
    assert single == (x.ndim == 3)
    assert found.dtype == torch.float32
    if x.dtype != torch.uint8:
        assert torch.equal(found, (x[None] if single else x).float())
    else:
        assert torch.equal(found, preprocess(x).float() / 255)
    assert found.numel() == 0 or (found.min() >= 0 and found.max() <= 1)


NUMPY = ["uint8", "int8", "uint16", "int64", "float32", "float64", "bool", "complex64", "U1"]


@often
@given(st.lists(lengths, max_size=5).map(tuple), st.sampled_from(NUMPY), seeds, preprocessors)
def test_an_array_is_taken_as_it_is_or_refused_for_a_reason(
    shape: tuple[int, ...], dtype: str, seed: int, preprocess: Preprocessor
) -> None:
    array = noise(seed, *shape).astype(dtype)
    layout = shape[1:] if len(shape) == 4 else shape
    valid = (
        dtype == "uint8"
        and len(layout) in (2, 3)
        and (layout[2:] or (1,))[0] in (1, 3, 4)
        and min(layout[:2]) > 0
        and len(shape) > 1
    )
    refusal = None
    try:
        found = preprocess(array)
    except REFUSALS as error:
        refusal = error
    assert (refusal is None) == valid, refusal
    if refusal:
        return
    singles = array if len(shape) == 4 else array[None]
    assert len(found) == len(singles)
    for one, pixels in zip(singles, found, strict=True):
        hwc = one if one.ndim == 3 else one[..., None]
        chw = torch.from_numpy(np.ascontiguousarray(np.moveaxis(hwc, -1, 0)))
        assert torch.equal(preprocess(chw)[0], pixels)


anything = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
        st.binary(max_size=20), st.builds(np.zeros, st.tuples(lengths, lengths)),
        st.builds(torch.zeros, st.tuples(lengths, lengths, lengths)), pictures,
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.sampled_from(["bytes", "path", "image"]), inner, max_size=3),
    ),
    max_leaves=5,
)  # fmt: skip


@often
@given(anything, preprocessors)
def test_whatever_is_given_for_images_gives_images_or_a_named_error(
    images: Any, preprocess: Preprocessor
) -> None:
    try:
        found = preprocess(images)
    except REFUSALS as error:
        assert str(error)  # noqa: PT017
        assert "at 0x" not in str(error)  # noqa: PT017
        return
    assert found.dtype == torch.uint8
    assert found.shape[1:] == (preprocess.channels, *preprocess.image_size)


# Damaged files


@functools.cache
def samples() -> list[bytes]:
    """Small files of every format, with what their formats can hold."""
    exif = Image.Exif()
    exif[274] = 6
    color, gray = picture("RGB", 9, 13, 0), picture("L", 9, 13, 1)
    wide, inks = picture("I;16", 9, 13, 2), picture("CMYK", 9, 13, 3)
    colors, clear = picture("P", 9, 13, 4), picture("RGBA", 9, 13, 5)
    more: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("JPEG", color, {"exif": exif}),
        ("JPEG", gray, {"progressive": True}),
        ("JPEG", inks, {}),
        ("PNG", colors, {}),
        ("PNG", clear, {"exif": exif}),
        ("PNG", wide, {}),
        ("WebP", color, {"lossless": True}),
        ("GIF", gray, {"save_all": True, "append_images": [gray]}),
        ("TIFF", color, {"compression": "tiff_lzw"}),
        ("TIFF", color, {"compression": "jpeg"}),
        ("TIFF", inks, {"compression": "tiff_adobe_deflate", "exif": exif}),
        ("BMP", colors, {}),
        ("MPO", color, {"exif": exif}),
    ]
    plain = [save(color, kind) for kind in FORMATS]
    return plain + [save(image, kind, **options) for kind, image, options in more]


@pytest.mark.filterwarnings("ignore")
@given(data=st.data(), channels=channels)
def test_a_damaged_file_is_read_the_same_on_every_route_or_refused(
    data: st.DataObject, folder: Path, channels: int
) -> None:
    content = data.draw(damages(data.draw(st.sampled_from(samples()))))
    (folder / "damaged").write_bytes(content)
    results = []
    for source in (content, folder / "damaged", bytearray(content)):
        try:
            results.append(read_image(source, channels))
        except REFUSALS as error:
            assert "at 0x" not in str(error)  # noqa: PT017
            results.append(None)
    first, *others = results
    if first is None:
        assert others == [None, None]
        return
    assert first.dtype == torch.uint8
    assert first.shape[0] == channels
    assert all(other is not None and torch.equal(other, first) for other in others)
    assert measure_image(content) == first.shape[1:]
