"""Datasets of images on the Hub, in every form that is read."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from imagetok.data import open_evaluation, open_images, open_stream
from imagetok.images import Preprocessor
from loopback_hub import LoopbackHub
from tiny_data import KINDS, data_config, write_split

datasets.disable_progress_bars()

DATA = "user/images"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "saved"])
def test_images_on_the_hub_are_those_that_lie_there(
    logged_in: LoopbackHub, tmp_path: Path, kind: str
) -> None:
    folder = write_split(tmp_path / "set", kind, [range(3), range(3, 5)])
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    logged_in.create(DATA, "dataset", files=files)
    small, cache = Preprocessor((8, 8)), str(tmp_path / "cache")
    rows = open_images(DATA, "train", cache_dir=cache)
    assert [int(small(rows.image(row))[0, 0, 0, 0]) for row in range(5)] == list(range(5))
    stream = open_stream(DATA, "train", cache_dir=cache)
    found = [
        stream.fetch(image, stream.describe(segment, row))
        for segment in range(len(stream.segments))
        for row, image in stream.read(segment)
    ]
    assert [int(small(image)[0, 0, 0, 0]) for image in found] == list(range(5))
    config = data_config(DATA, streaming=True, evaluation_split="train[1:4]")
    kept = open_evaluation(config, cache)
    assert [int(small(kept.image(row))[0, 0, 0, 0]) for row in range(3)] == [1, 2, 3]
