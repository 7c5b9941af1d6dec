"""Training samples: crops and flips by a key, and rows that cannot be read."""

from __future__ import annotations

import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from small_rows import Open, save, write_images
from torch.utils.data import DataLoader

from imagetok.data import (
    EpochOrder,
    ImageRows,
    SampleBatches,
    TrainingImages,
    TrainTransform,
    evaluation_batches,
    worded_error,
)
from imagetok.errors import DataError, InvalidValueError
from imagetok.images import Preprocessor
from tiny_data import png

RAMP = np.zeros((60, 100, 3), dtype=np.uint8)
RAMP[..., 0] = np.arange(100)[None, :]
RAMP[..., 1] = np.arange(60)[:, None]
"""Red tells the column of a pixel, green its row."""


def test_without_a_crop_scale_training_sees_what_evaluation_sees() -> None:
    preprocessor = Preprocessor((16, 24))
    seen = TrainTransform(preprocessor)(RAMP, 5)
    assert torch.equal(seen, preprocessor(RAMP)[0])


def test_a_crop_scale_of_one_is_the_whole_of_an_image_that_has_the_shape() -> None:
    preprocessor = Preprocessor((30, 50))
    seen = TrainTransform(preprocessor, crop_scale=(1.0, 1.0))(RAMP, 5)
    assert torch.equal(seen, preprocessor(RAMP)[0])


def test_a_crop_and_flip_are_functions_of_the_key() -> None:
    transform = TrainTransform(Preprocessor((8, 8)), crop_scale=(0.3, 0.9), flip=True)
    first = [transform(RAMP, key) for key in range(20)]
    torch.manual_seed(1)
    again = [transform(RAMP, key) for key in reversed(range(20))]
    assert all(torch.equal(a, b) for a, b in zip(first, reversed(again), strict=True))
    assert len({tuple(pixels.flatten().tolist()) for pixels in first}) == 20


@pytest.mark.parametrize(("size", "largest"), [((20, 20), (60, 60)), ((10, 20), (50, 100))])
def test_crops_have_the_shape_of_the_image_and_a_side_in_the_range(
    size: tuple[int, int], largest: tuple[int, int]
) -> None:
    transform = TrainTransform(Preprocessor(size, resize="bilinear"), crop_scale=(0.5, 0.8))
    shares, tops, lefts = [], [], []
    for key in range(300):
        columns, rows, _ = transform(RAMP, key).double()
        across = float(columns[0, -1] - columns[0, 0]) * size[1] / (size[1] - 1)
        down = float(rows[-1, 0] - rows[0, 0]) * size[0] / (size[0] - 1)
        assert across / largest[1] == pytest.approx(down / largest[0], abs=0.06)
        shares.append(across / largest[1])
        tops.append(float(rows[0, 0]))
        lefts.append(float(columns[0, 0]))
    assert 0.46 < min(shares) < 0.55
    assert 0.75 < max(shares) < 0.84
    assert np.mean(shares) == pytest.approx(0.65, abs=0.03)
    assert (min(tops) < 4, min(lefts) < 4) == (True, True)
    assert max(lefts) > 100 - 0.5 * largest[1] - 10
    assert max(tops) > 60 - 0.5 * largest[0] - 10


def test_half_of_the_images_are_mirrored() -> None:
    preprocessor = Preprocessor((8, 8))
    plain = preprocessor(RAMP)[0]
    seen = [TrainTransform(preprocessor, flip=True)(RAMP, key) for key in range(400)]
    mirrored = sum(torch.equal(pixels, plain.flip(-1)) for pixels in seen)
    kept = sum(torch.equal(pixels, plain) for pixels in seen)
    assert mirrored + kept == 400
    assert 150 < mirrored < 250


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.8, 0.5), (0.5, 1.1)])
def test_a_crop_scale_that_is_not_a_range_is_refused(scale: tuple[float, float]) -> None:
    with pytest.raises(InvalidValueError, match="not a range"):
        TrainTransform(Preprocessor((8, 8)), crop_scale=scale)


def training_images(rows: ImageRows, seed: int = 0, flip: bool = True) -> TrainingImages:
    transform = TrainTransform(Preprocessor((8, 8)), crop_scale=(0.4, 0.9), flip=flip)
    return TrainingImages(rows, transform, EpochOrder(len(rows), seed), seed)


def test_a_loader_gives_the_samples_of_the_steps_over_the_epoch_s_end(open_rows: Open) -> None:
    images = training_images(open_rows("builtin:shapes?size=16&count=5"))
    loader = DataLoader(images, batch_sampler=SampleBatches(1, 3, 4, 0, 1, 2))
    batches = list(loader)
    assert [tuple(batch["pixels"].shape) for batch in batches] == [(2, 3, 8, 8)] * 6
    assert batches[0]["pixels"].dtype == torch.uint8
    located = [
        (int(epoch), int(row))
        for batch in batches
        for epoch, row in zip(batch["epoch"], batch["row"], strict=True)
    ]
    assert located == [images.order.locate(sample) for sample in range(4, 16)]


def test_a_loader_with_its_own_collation_takes_samples_in_place_of_unreadable_rows(
    open_rows: Open, tmp_path: Path
) -> None:
    folder = write_images(tmp_path / "flat", range(4))
    (folder / "002.png").write_bytes(b"no image")
    images = training_images(open_rows(folder))
    (batch,) = DataLoader(images, batch_sampler=SampleBatches(0, 1, 4), collate_fn=list)
    assert [len(sample["refused"]) for sample in batch].count(0) == 3
    assert 2 not in [sample["row"] for sample in batch]


def test_the_end_of_a_loader_s_worker_is_told_in_words_of_our_own() -> None:
    told = worded_error(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "))
    assert isinstance(told, DataError)
    assert str(told).startswith("a process that loads images was ended from outside")
    for other in (RuntimeError("out of memory"), ValueError("DataLoader worker")):
        assert worded_error(other) is other


def test_a_row_is_augmented_anew_in_every_epoch_and_by_every_seed(open_rows: Open) -> None:
    rows = open_rows("builtin:shapes?size=16&count=1")
    pixels = [training_images(rows, seed)[epoch]["pixels"] for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(each.flatten().tolist()) for each in pixels}) == 4


def test_a_sample_survives_the_way_to_a_worker(open_rows: Open) -> None:
    images = training_images(open_rows("builtin:shapes?size=16&count=6"))
    there = pickle.loads(pickle.dumps(images))
    for sample in (11, 2, 7):
        assert torch.equal(there[sample]["pixels"], images[sample]["pixels"])
        assert there[sample]["row"] == images[sample]["row"]


def test_an_order_for_other_rows_is_refused(open_rows: Open) -> None:
    rows = open_rows("builtin:shapes?size=8&count=3")
    with pytest.raises(InvalidValueError, match=r"for 4 rows, .* has 3"):
        TrainingImages(rows, TrainTransform(Preprocessor((8, 8))), EpochOrder(4, 0), 0)


def test_an_unreadable_image_is_named_with_row_file_and_reason(
    open_rows: Open, tmp_path: Path
) -> None:
    folder = write_images(tmp_path / "flat", range(1))
    (folder / "000.png").write_bytes(png(3)[:50])
    rows = open_rows(folder)
    expected = r"row 0 of '.*flat' \(train\).* cannot be read: .*000\.png' .* truncated or damaged"
    with pytest.raises(DataError, match=expected):
        training_images(rows)[0]
    with pytest.raises(DataError, match=expected):
        list(evaluation_batches(rows, Preprocessor((8, 8)), 2, [0]))


def test_an_unreadable_image_kept_as_bytes_is_named_by_its_path_too(
    open_rows: Open, tmp_path: Path
) -> None:
    data = Dataset.from_dict(
        {"image": [{"bytes": b"no image", "path": "cat.jpg"}]},
        features=Features({"image": datasets.Image()}),
    )
    with pytest.raises(DataError, match=r"row 0 of .*, file 'cat\.jpg' cannot be read: "):
        training_images(open_rows(save(tmp_path, data)))[0]


def test_a_null_image_is_named(open_rows: Open, tmp_path: Path) -> None:
    data = Dataset.from_dict({"image": [None]}, features=Features({"image": datasets.Image()}))
    with pytest.raises(DataError, match=r"row 0 of .* has no image"):
        training_images(open_rows(save(tmp_path, data)))[0]
