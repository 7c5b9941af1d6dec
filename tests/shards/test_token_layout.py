"""Text and image ids share a vocabulary and a sequence, and come apart again as they were."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from imagetok.errors import IdsError, IdsTypeError, InvalidTypeError, InvalidValueError
from imagetok.shards.token_layout import TokenLayout

TEXT, CODES, GRID = 50, 16, (2, 3)


def layout(**specials: Any) -> TokenLayout:
    return TokenLayout(TEXT, CODES, GRID, **specials)


def image(offset: int = 0) -> torch.Tensor:
    return torch.arange(6) + offset


def test_an_image_stands_in_row_major_order_between_its_special_ids() -> None:
    sequence = layout(boi=True, eoi=True, eor=True).join(torch.tensor([8, 9]), image())
    boi, eoi, eor = 66, 67, 68
    assert sequence.tolist() == [8, 9, boi, 50, 51, 52, eor, 53, 54, 55, eor, eoi]


def test_the_vocabulary_counts_the_special_ids_that_are_used() -> None:
    assert layout().vocab_size == TEXT + CODES
    assert layout(eor=True).vocab_size == TEXT + CODES + 1
    assert layout(boi=True, eoi=True, eor=True).vocab_size == TEXT + CODES + 3
    assert layout(boi=3, eoi=4).vocab_size == TEXT + CODES
    assert layout(boi=99).vocab_size == 100
    assert layout().image_range == range(50, 66)


def test_free_ids_pass_over_those_that_are_given() -> None:
    both = layout(boi=True, eoi=66, eor=True)
    assert (both.boi, both.eoi, both.eor) == (67, 66, 68)


def test_images_without_text_have_their_own_vocabulary() -> None:
    alone = TokenLayout(0, CODES, GRID, boi=True)
    sequence = alone.join(torch.empty(0, dtype=torch.int64), image())
    assert sequence.tolist() == [16, 0, 1, 2, 3, 4, 5]
    assert alone.split(sequence)[0].shape == (0,)


def test_narrow_dtypes_join_without_overflow() -> None:
    wide = TokenLayout(60_000, 256, GRID)
    sequence = wide.join(torch.tensor([1], dtype=torch.uint8), image(250).to(torch.uint8))
    assert sequence.tolist() == [1, *range(60_250, 60_256)]


@pytest.mark.parametrize(
    ("text", "ids", "message"),
    [
        ([50], range(6), "text id 50 at position 0 is out of range: text ids lie in [0, 50)"),
        ([3, -1], range(6), "text id -1 at position 1 is out of range"),
        ([1], range(11, 17), "id 16 is out of range"),
        ([1], range(-1, 5), "id -1 is out of range"),
        ([7], range(6), "the text holds 7, which is the begin-of-image id"),
        ([1], range(5), "fit no reading for the grid (2, 3)"),
    ],
)
def test_what_does_not_fit_is_not_joined(text: list[int], ids: range, message: str) -> None:
    with pytest.raises(IdsError, match=re.escape(message)):
        layout(boi=7).join(torch.tensor(text), torch.tensor(ids))


def test_as_many_texts_as_images_are_joined() -> None:
    with pytest.raises(IdsError, match="2 texts do not go with 3 images"):
        layout().join(torch.ones(2, 4, dtype=torch.int64), torch.ones(3, 6, dtype=torch.int64))


@pytest.mark.parametrize(
    ("place", "token", "message"),
    [
        (0, 50, "text id 50 at position 0 is out of range"),
        (1, 66, "the text holds 66, which is the begin-of-image id boi"),
        (2, 5, "token 5 at position 2 stands where the begin-of-image id 66 belongs"),
        (3, 49, "token 49 at position 3 stands where an image id in [50, 66) belongs"),
        (5, 68, "token 68 at position 5 stands where an image id in [50, 66) belongs"),
        (6, 52, "token 52 at position 6 stands where the end-of-row id 68 belongs"),
        (11, 68, "token 68 at position 11 stands where the end-of-image id 67 belongs"),
    ],
)
def test_a_misplaced_token_is_named_with_its_position(place: int, token: int, message: str) -> None:
    both = layout(boi=True, eoi=True, eor=True)
    sequence = both.join(torch.tensor([8, 9]), image())
    sequence[place] = token
    with pytest.raises(IdsError, match=re.escape(message)):
        both.split(sequence)


def test_the_sequence_of_a_batch_that_is_wrong_is_named() -> None:
    sequences = layout().join(torch.ones(3, 2, dtype=torch.int64), torch.stack([image()] * 3))
    sequences[1, 4] = 3
    with pytest.raises(IdsError, match="token 3 at position 4 of sequence 1 stands where an image"):
        layout().split(sequences)
    sequences[1, 0] = 50
    with pytest.raises(IdsError, match="text id 50 at position 0 of sequence 1 is out of range"):
        layout().split(sequences)


def test_a_sequence_that_is_too_short_is_refused() -> None:
    with pytest.raises(IdsError, match=r"5 tokens holds no image.* takes 6"):
        layout().split(torch.arange(5))


@pytest.mark.parametrize("wrong", [torch.ones(6), torch.ones(6, dtype=torch.bool), [1, 2]])
def test_only_integer_tensors_are_taken(wrong: Any) -> None:
    with pytest.raises(IdsTypeError, match="a sequence must be an integer tensor"):
        layout().split(wrong)
    with pytest.raises(IdsTypeError, match="text_ids must be an integer tensor"):
        layout().join(wrong, image())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text_vocab_size": -1}, "text_vocab_size must be at least 0 .*, got -1"),
        ({"codebook_size": 0}, "codebook_size must be at least 1 .*, got 0"),
        ({"grid": (0, 3)}, r"grid must be .* at least 1"),
        ({"boi": 50}, r"boi 50 is not a free id: image ids take \[50, 66\)"),
        ({"eor": -2}, "eor -2 is not a free id"),
        ({"boi": 70, "eoi": 70}, "special ids must differ"),
        ({"codebook_sizes": (16, 0)}, "a size in codebook_sizes must be at least 1"),
        ({"codebook_sizes": (8, 4)}, r"largest of codebook_sizes \(8, 4\) must be codebook_size"),
        ({"levels": "each"}, "unknown levels 'each'; choose one of: own, shared"),
        ({"codebook_sizes": (16, 4), "boi": 69}, r"boi 69 is not a free id: .* \[50, 70\)"),
    ],
)
def test_a_layout_that_contradicts_itself_is_refused(
    arguments: dict[str, Any], message: str
) -> None:
    given = {"text_vocab_size": TEXT, "codebook_size": CODES, "grid": GRID, **arguments}
    with pytest.raises(InvalidValueError, match=message):
        TokenLayout(**given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"boi": "x"}, "must be an id, True or None"),
        ({"eoi": 1.0}, "must be an id, True or None"),
        ({"eor": False}, "must be an id, True or None"),
        ({"codebook_sizes": 16}, "codebook_sizes must be"),
        ({"codebook_sizes": (16, 2.0)}, "codebook_sizes must be"),
    ],
)
def test_ids_and_sizes_are_integers(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidTypeError, match=message):
        layout(**arguments)


def test_each_level_has_its_own_ids_or_all_share_them() -> None:
    deep = layout(boi=True, codebook_sizes=(16, 4), levels="own")
    assert deep.level_ranges == (range(50, 66), range(66, 70))
    assert (deep.image_range, deep.boi, deep.vocab_size) == (range(50, 70), 70, 71)
    shared = layout(boi=True, codebook_sizes=(16, 4), levels="shared")
    assert shared.level_ranges == (range(50, 66), range(50, 54))
    assert (shared.image_range, shared.boi, shared.vocab_size) == (range(50, 66), 66, 67)
    text, ids = torch.tensor([8]), torch.tensor([[[9, 0], [9, 1], [9, 2]]]).repeat(2, 1, 1)
    row = [59, 66, 59, 67, 59, 68]
    assert deep.join(text, ids).tolist() == [8, 70, *row, *row]
    row = [59, 50, 59, 51, 59, 52]
    assert shared.join(text, ids).tolist() == [8, 66, *row, *row]


@pytest.mark.parametrize("levels", ["own", "shared"])
def test_a_code_out_of_its_level_is_named(levels: Any) -> None:
    deep = layout(eor=True, codebook_sizes=(16, 4), levels=levels)
    ids = torch.zeros(12, dtype=torch.int64)
    with pytest.raises(IdsError, match=r"id 4 is out of range.*\[0, 4\)"):
        deep.join(torch.tensor([1]), torch.tensor([0, 4] * 6))
    sequence = deep.join(torch.tensor([1]), ids)
    place = deep.position(1, 0, text_length=1, level=1)
    sequence[place] = deep.level_ranges[1].stop
    words = f"position {place} stands where an image id of level 1 in "
    with pytest.raises(IdsError, match=words):
        deep.split(sequence)


def test_places_outside_the_grid_have_no_position() -> None:
    with pytest.raises(InvalidValueError, match=r"level 1 is out of range; expected \[0, 1\)"):
        layout().position(0, 0, level=1)
    with pytest.raises(InvalidValueError, match=r"column 3 is outside the grid \(2, 3\)"):
        layout().position(0, 3)
    with pytest.raises(InvalidValueError, match="row must be at least 0"):
        layout().position(-1, 0)
