"""Tokenizing a sample again finds ids of other images, and lets near ties pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_jobs import ROWS, RunJob, make_tokenizer, save_images

from imagetok import ImageTokenizer
from imagetok.errors import DataError
from imagetok.shards.token_folder import open_folder
from imagetok.tokenizing import deep_check
from imagetok.tokenizing.batch_encoder import BatchEncoder
from imagetok.tokenizing.deep_check import compare_rows
from tiny_data import png, write_split


@pytest.fixture
def loaded(tokenizer: Path) -> ImageTokenizer:
    return ImageTokenizer.from_pretrained(tokenizer)


def test_the_ids_of_a_sound_dataset_come_out_again(reference: Path, loaded: ImageTokenizer) -> None:
    found = compare_rows(open_folder(reference), loaded)
    assert found.faults == ()
    assert found.rows == ROWS
    assert found.ids == 16 * found.rows
    assert found.near_ties == 0


def test_about_as_many_rows_are_compared_as_asked_however_many_shards_there_are(
    job: RunJob, tmp_path: Path, reference: Path, loaded: ImageTokenizer
) -> None:
    assert compare_rows(open_folder(reference), loaded, num_rows=24).rows in range(16, 25)
    job(tmp_path / "one", rows_per_shard=ROWS)
    assert compare_rows(open_folder(tmp_path / "one"), loaded, num_rows=24).rows == 24


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("resize", ["crop", "native"])
def test_every_kind_of_job_can_be_compared(
    job: RunJob, tmp_path: Path, loaded: ImageTokenizer, streaming: bool, resize: str
) -> None:
    folder = write_split(tmp_path / "in", "parquet", [range(9), range(9, 14)], broken=[2])
    changes = {"streaming": streaming, "resize": resize, "max_error_rate": 0.2, "keep": ["file"]}
    job(tmp_path / "out", dataset=str(folder), **changes)
    opened = open_folder(tmp_path / "out")
    with pytest.raises(DataError, match="say by dataset where 'in' lies"):
        compare_rows(opened, loaded)
    found = compare_rows(opened, loaded, folder)
    assert found.faults == ()
    assert found.rows == 13


def test_ids_of_another_image_are_faults(
    job: RunJob, tmp_path: Path, loaded: ImageTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = BatchEncoder.__call__
    monkeypatch.setattr(
        BatchEncoder, "__call__", lambda self, images: encode(self, [1 - one for one in images])
    )
    job(tmp_path / "out")
    found = compare_rows(open_folder(tmp_path / "out"), loaded)
    assert len(found.faults) > found.rows // 2
    assert "of 16 ids differ" in found.faults[0]


def test_ids_that_rounding_may_change_are_counted_and_no_faults() -> None:
    model = make_tokenizer("vqvae")
    encoder = BatchEncoder(model, 4)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16), dtype=np.uint8)
    place = encoder.features([pixels])[0, :, 1, 2]
    offset = torch.ones_like(place)
    with torch.no_grad():  # codes 0 and 1 are as near to that position, and all others are far
        model.bottleneck.codebook.fill_(100)
        model.bottleneck.codebook[0] = place + offset
        model.bottleneck.codebook[1] = place - offset * (1 + 1e-6)
        model.bottleneck.codebook[2] = place - offset * 1.1
    (ids,) = encoder([pixels])
    assert deep_check._compare(encoder, pixels, ids) == (0, 0)
    assert ids[1, 2] in (0, 1)
    expected = {1 - ids[1, 2]: (1, 0), 2: (0, 1), 3: (0, 1)}
    for number, counts in expected.items():
        other = ids.copy()
        other[1, 2] = number
        assert deep_check._compare(encoder, pixels, other) == counts


def test_a_row_that_should_have_been_refused_is_a_fault(
    job: RunJob, tmp_path: Path, loaded: ImageTokenizer
) -> None:
    source = save_images(tmp_path / "in", [png(0), png(1)])
    job(tmp_path / "out", dataset=str(source))
    opened = open_folder(tmp_path / "out")
    output = opened.job.output.model_copy(update={"max_pixels": 3})
    stricter = replace(opened, job=opened.job.model_copy(update={"output": output}))
    found = compare_rows(stricter, loaded, source)
    assert "row 0 has ids, and cannot be read" in found.faults[0]


def test_another_tokenizer_and_another_input_are_refused(
    reference: Path, loaded: ImageTokenizer
) -> None:
    opened = open_folder(reference)
    with pytest.raises(DataError, match="were made by the tokenizer 'tiny'"):
        compare_rows(opened, make_tokenizer(seed=1))
    with pytest.raises(DataError, match="another dataset, or has changed"):
        compare_rows(opened, loaded, f"builtin:shapes?size=16&count={ROWS + 1}")
