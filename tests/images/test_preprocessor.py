"""Images of any kind are cropped around the centre, resized, and become batches."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from whole_batch import batch

from imagetok.errors import ImagetokError, ImageTypeError, ImageValueError, InvalidValueError
from imagetok.images import Preprocessor, center_box, resize

PREPROCESS = Preprocessor((8, 12))
SQUARE = Preprocessor((8, 8))


@pytest.mark.parametrize("filter_name", ["bicubic", "bilinear"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(8, 8), (5, 9), (16, 4), (2, 2), (40, 64)])
def test_preprocessing_twice_is_preprocessing_once(
    colors: np.ndarray, size: tuple[int, int], channels: int, filter_name: str
) -> None:
    preprocess = Preprocessor(size, channels, filter_name)
    once = preprocess([colors, np.roll(colors, 1)])
    assert once.dtype == torch.uint8
    assert once.shape == (2, channels, *size)
    assert torch.equal(preprocess(once), once)
    assert torch.equal(preprocess(list(once)), once)


def test_an_image_of_the_size_is_untouched_in_memory_of_its_own(colors: np.ndarray) -> None:
    x = torch.from_numpy(colors).permute(2, 0, 1).contiguous()
    y = Preprocessor((12, 20))(x)
    assert torch.equal(y[0], x)
    y.zero_()
    assert x.any()


@pytest.mark.parametrize(
    ("height", "width", "size", "box"),
    [
        (12, 20, (8, 8), (0, 4, 12, 12)),
        (20, 12, (8, 8), (4, 0, 12, 12)),
        (12, 20, (6, 10), (0, 0, 12, 20)),
        (12, 20, (8, 4), (0, 7, 12, 6)),
        (10, 10_000, (64, 64), (0, 4995, 10, 10)),
        (10_000, 10, (64, 64), (4995, 0, 10, 10)),
        (1, 1, (64, 32), (0, 0, 1, 1)),
        (5, 3, (2, 3), (1, 0, 2, 3)),
        (10, 5, (64, 128), (3, 0, 3, 5)),
        (3, 7, (1000, 1), (0, 3, 3, 1)),
    ],
)
def test_the_box_is_the_largest_in_the_middle(
    height: int, width: int, size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    assert center_box(height, width, size) == box


def test_the_box_lies_inside_and_touches_two_sides_for_every_shape() -> None:
    for height in range(1, 25):
        for width in range(1, 25):
            for size in ((1, 1), (2, 3), (7, 1), (1, 9), (24, 24)):
                top, left, box_height, box_width = center_box(height, width, size)
                assert (box_height, box_width) >= (1, 1)
                assert box_height == height or box_width == width
                assert 0 <= top <= height - box_height
                assert 0 <= left <= width - box_width
                assert abs(2 * top + box_height - height) <= 1
                assert abs(2 * left + box_width - width) <= 1


def test_what_lies_outside_the_box_has_no_influence(colors: np.ndarray) -> None:
    changed = colors.copy()
    changed[:, :4] = 0
    changed[:, 16:] = 255
    preprocess = Preprocessor((8, 8))
    assert torch.equal(preprocess(changed), preprocess(colors))


def test_a_long_strip_is_cut_before_it_is_resized() -> None:
    strip = np.broadcast_to(np.uint8(9), (2, 10_000_000, 1))
    assert Preprocessor((64, 64), channels=1)(strip).eq(9).all()


@pytest.mark.parametrize("filter_name", ["bicubic", "bilinear"])
def test_a_plain_image_stays_plain(filter_name: str) -> None:
    for value in (0, 1, 128, 255):
        image = np.full((37, 501, 3), value, dtype=np.uint8)
        for size in ((8, 8), (64, 50), (3, 200)):
            assert Preprocessor(size, 3, filter_name)(image).eq(value).all()


@pytest.mark.parametrize("filter_name", ["bicubic", "bilinear"])
def test_the_resize_is_that_of_pillow_up_to_one_level(colors: np.ndarray, filter_name: str) -> None:
    x = torch.from_numpy(colors).permute(2, 0, 1)
    method = Image.Resampling[filter_name.upper()]
    for size in ((6, 10), (5, 7), (24, 40), (12, 3)):
        ours = resize(x, (0, 0, 12, 20), size, filter_name).permute(1, 2, 0).int()
        theirs = np.asarray(Image.fromarray(colors).resize(size[::-1], method)).astype(int)
        assert (ours.numpy() - theirs).__abs__().max() <= 1


def test_the_resize_does_not_depend_on_the_layout_in_memory(colors: np.ndarray) -> None:
    last = torch.from_numpy(colors).permute(2, 0, 1)
    first = last.contiguous()
    box, size = (1, 2, 10, 15), (7, 6)
    expected = resize(first, box, size)
    assert expected.is_contiguous()
    assert torch.equal(resize(last, box, size), expected)
    for channel in range(3):
        single = resize(first[channel : channel + 1], box, size)
        assert torch.equal(single[0], expected[channel])


@pytest.mark.parametrize("box", [(-1, 0, 4, 4), (0, 0, 13, 4), (0, 17, 4, 4), (0, 0, 0, 4)])
def test_a_box_outside_the_image_is_refused(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(ImageValueError, match="does not lie inside an image of height 12"):
        resize(torch.zeros(3, 12, 20, dtype=torch.uint8), box, (2, 2))


def test_a_result_one_pixel_wide_is_refused() -> None:
    with pytest.raises(ImageValueError, match="is too small; both must be at least 2"):
        resize(torch.zeros(3, 12, 20, dtype=torch.uint8), (0, 0, 12, 20), (6, 1))


def test_images_of_mixed_kinds_and_sizes_come_in_one_list(colors: np.ndarray) -> None:
    gray = np.full((30, 9), 7, dtype=np.uint8)
    tensor = torch.full((4, 6, 6), 255, dtype=torch.uint8)
    images = [Image.fromarray(colors), colors, gray, tensor]
    batch = PREPROCESS(images)
    assert batch.shape == (4, 3, 8, 12)
    for index, image in enumerate(images):
        assert torch.equal(PREPROCESS(image)[0], batch[index])
    assert torch.equal(PREPROCESS(tuple(images)), batch)


def test_batches_of_arrays_and_tensors_are_batches(colors: np.ndarray) -> None:
    arrays = np.stack([colors, colors[::-1], colors[:, ::-1]])
    expected = PREPROCESS(list(arrays))
    assert torch.equal(PREPROCESS(arrays), expected)
    assert torch.equal(PREPROCESS(torch.from_numpy(arrays).permute(0, 3, 1, 2)), expected)
    for images, single in ((colors, True), (arrays[:1], False), ([colors], False)):
        x, found = batch(PREPROCESS, images)
        assert found is single
        assert torch.equal(x, PREPROCESS(images).float() / 255)


def test_a_batch_of_images_is_float_in_the_unit_interval() -> None:
    x, _ = batch(Preprocessor((2, 2), channels=1), np.array([[0, 51], [102, 255]], dtype=np.uint8))
    assert x.dtype == torch.float32
    assert torch.equal(x, torch.tensor([[[[0, 0.2], [0.4, 1]]]]))


@pytest.mark.parametrize(
    "images",
    [[], (), np.empty((0, 5, 7, 3), np.uint8), torch.empty((0, 3, 5, 7), dtype=torch.uint8)],
    ids=["list", "tuple", "array", "tensor"],
)
def test_no_images_are_an_empty_batch(images: object) -> None:
    assert PREPROCESS(images).shape == (0, 3, 8, 12)
    assert PREPROCESS(images).dtype == torch.uint8
    x, single = batch(PREPROCESS, images)
    assert x.shape == (0, 3, 8, 12)
    assert x.dtype == torch.float32
    assert not single


def test_a_refusal_in_a_list_names_the_index_and_keeps_its_kind(colors: np.ndarray) -> None:
    with pytest.raises(ImageTypeError, match=r"^images\[1\]: found None where a picture"):
        PREPROCESS([colors, None])
    with pytest.raises(ImageValueError, match=r"^images\[2\]: 'https://a' is a URL"):
        PREPROCESS([colors, colors, "https://a"])
    with pytest.raises(ImagetokError, match=r"^images\[0\]: an object of type list is no picture"):
        PREPROCESS([[colors]])
    with pytest.raises(ImageValueError, match=r"^images\[1\]: .* is a batch where one picture"):
        PREPROCESS([colors, colors[None]])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"image_size": 64}, "image_size is 64; expected 2 integers"),
        ({"image_size": (64, 1)}, r"image_size is \(64, 1\); expected 2 integers in 2.."),
        ({"image_size": (64.0, 64)}, r"image_size is \(64.0, 64\)"),
        ({"image_size": (8, 8), "channels": 2}, "channels is 2; choose one of: 1, 3, 4"),
        ({"image_size": (8, 8), "resize": "area"}, "'area'; choose one of: bicubic, bilinear"),
        ({"image_size": (8, 8), "background": (0, 0, 256)}, "background is .* in 0..255"),
    ],
)
def test_other_arguments_are_refused(arguments: dict[str, object], reason: str) -> None:
    with pytest.raises(InvalidValueError, match=reason):
        Preprocessor(**arguments)  # type: ignore[arg-type]


def test_a_preprocessor_is_a_value() -> None:
    assert Preprocessor([8, 8], background=[1, 2, 3]) == Preprocessor(  # type: ignore[arg-type]
        (8, 8), 3, "bicubic", (1, 2, 3)
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        PREPROCESS.channels = 1  # type: ignore[misc]


class Watched(Sequence[Any]):
    """A sequence that notes which items were asked for."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items
        self.seen: list[int] = []

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        self.seen.append(index)
        return self.items[index]


def make_images(count: int) -> torch.Tensor:
    """uint8 (count, 3, 9, 10), no two alike."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 9, 10), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("size", [1, 3, 7, 8])
def test_batches_are_the_whole_in_pieces(size: int) -> None:
    raw = make_images(7)
    floats = raw.float() / 255
    array = raw.permute(0, 2, 3, 1).numpy()
    for images in (raw, list(raw), tuple(array), array, floats, list(floats)):
        batches, single = SQUARE.batches(images, (1, 1), size)
        found = list(batches)
        assert [len(x) for x in found] == [min(size, 7 - start) for start in range(0, 7, size)]
        assert all(x.dtype == torch.float32 for x in found)
        assert not single
        assert torch.equal(torch.cat(found), batch(SQUARE, images)[0])


def test_images_are_read_when_their_batch_is_asked_for() -> None:
    images = Watched(list(make_images(5)))
    batches, _ = SQUARE.batches(images, (1, 1), 2)
    assert images.seen == []
    next(batches)
    assert images.seen == [0, 1]
    next(batches)
    assert images.seen == [0, 1, 2, 3]


def test_a_batch_of_float32_tensors_is_not_copied() -> None:
    x = torch.rand(5, 3, 8, 8)
    batches, _ = SQUARE.batches(x, (1, 1), 2)
    assert [piece.data_ptr() for piece in batches] == [x[start:].data_ptr() for start in (0, 2, 4)]


@pytest.mark.parametrize("size", [1, 2, 5, 8])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda raw, floats: [*raw[:5], None, *raw[6:]],
            ImageTypeError,
            r"^images\[5\]: found None",
        ),
        (
            lambda raw, floats: [*raw[:5], "images[1]", *raw[6:]],
            ImagetokError,
            r"^images\[5\]: 'images\[1\]' cannot be read",
        ),
        (
            lambda raw, floats: [*floats[:5], floats[5] * 2, *floats[6:]],
            ImageValueError,
            r"^images\[5\]: .* outside \[0, 1\]",
        ),
        (
            lambda raw, floats: [*floats[:5], floats[5, :, :4], *floats[6:]],
            ImageValueError,
            r"^images\[5\] has shape \(3, 4, 10\) .* images\[0\] has shape \(3, 9, 10\)",
        ),
        (
            lambda raw, floats: [*floats[:5], floats[5:6], *floats[6:]],
            ImageValueError,
            r"^images\[5\] is a batch",
        ),
        (
            lambda raw, floats: [*floats[:5], *raw[5:]],
            ImageTypeError,
            r"^images\[0\] is a float tensor and images\[5\] is not",
        ),
        (
            lambda raw, floats: [*raw[:5], *floats[5:]],
            ImageTypeError,
            r"^images\[5\] is a float tensor and images\[0\] is not",
        ),
    ],
)
def test_a_refusal_names_the_place_in_the_whole(
    change: Any, error: type[Exception], message: str, size: int
) -> None:
    raw = make_images(7)
    with pytest.raises(error, match=message):
        batch(SQUARE, change(raw, raw.float() / 255), size=size)


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (torch.zeros(5, 3, 8, 8, device="meta"), "holds no values"),
        (torch.zeros(5, 3, 8, 8).to_sparse(), "pass a dense tensor"),
    ],
    ids=["meta", "sparse"],
)
def test_tensors_without_values_are_refused_before_they_are_cut(
    x: torch.Tensor, reason: str
) -> None:
    with pytest.raises(ImageTypeError, match=f"shape .5, 3, 8, 8. .*{reason}"):
        SQUARE.batches(x, (1, 1), 2)
