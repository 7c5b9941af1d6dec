"""Many images become batches: read when asked for, and named by their place in the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from whole_batch import batch

from imagetok.errors import ImagetokError, ImageTypeError, ImageValueError
from imagetok.images import Preprocessor

PREPROCESS = Preprocessor((8, 8))


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


def pictures(count: int) -> torch.Tensor:
    """uint8 (count, 3, 9, 10), no two alike."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 9, 10), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("size", [1, 3, 7, 8])
def test_batches_are_the_whole_in_pieces(size: int) -> None:
    raw = pictures(7)
    floats = raw.float() / 255
    array = raw.permute(0, 2, 3, 1).numpy()
    for images in (raw, list(raw), tuple(array), array, floats, list(floats)):
        batches, single = PREPROCESS.batches(images, (1, 1), size)
        found = list(batches)
        assert [len(x) for x in found] == [min(size, 7 - start) for start in range(0, 7, size)]
        assert all(x.dtype == torch.float32 for x in found)
        assert not single
        assert torch.equal(torch.cat(found), batch(PREPROCESS, images)[0])


@pytest.mark.parametrize(
    "images", [[], np.empty((0, 5, 7, 3), np.uint8), torch.empty(0, 3, 8, 8)], ids=type
)
def test_no_images_are_one_empty_batch(images: object) -> None:
    batches, single = PREPROCESS.batches(images, (1, 1), 4)
    assert [x.shape for x in batches] == [(0, 3, 8, 8)]
    assert not single


def test_images_are_read_when_their_batch_is_asked_for() -> None:
    images = Watched(list(pictures(5)))
    batches, _ = PREPROCESS.batches(images, (1, 1), 2)
    assert images.seen == []
    next(batches)
    assert images.seen == [0, 1]
    next(batches)
    assert images.seen == [0, 1, 2, 3]


def test_a_batch_of_float32_tensors_is_not_copied() -> None:
    x = torch.rand(5, 3, 8, 8)
    batches, _ = PREPROCESS.batches(x, (1, 1), 2)
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
    raw = pictures(7)
    with pytest.raises(error, match=message):
        batch(PREPROCESS, change(raw, raw.float() / 255), size=size)


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
        PREPROCESS.batches(x, (1, 1), 2)
