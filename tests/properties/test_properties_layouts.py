"""Text and image ids of any layout come apart as they were joined."""

from __future__ import annotations

import math
from typing import Any

import torch
from effort import often
from hypothesis import given
from hypothesis import strategies as st

from imagetok.shards import TokenLayout

specials = st.sampled_from([None, True, True, "text", "beyond"])
sides = st.integers(1, 4)


@st.composite
def layouts(draw: st.DrawFn) -> TokenLayout:
    """Layouts of any grid, depth and special ids."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    text = draw(st.integers(1, 20))
    chosen: dict[str, Any] = {}
    for number, name in enumerate(("boi", "eoi", "eor")):
        kind = draw(specials)
        chosen[name] = {"text": text + number, "beyond": text + 3 + sum(sizes) + number}.get(
            kind, kind
        )
    if draw(st.booleans()):
        chosen["levels"] = draw(st.sampled_from(["own", "shared"]))
    if len(sizes) > 1 or draw(st.booleans()):
        chosen["codebook_sizes"] = tuple(sizes)
    grid = (draw(sides), draw(sides))
    return TokenLayout(text + 3, max(sizes), grid, **chosen)


@often
@given(layouts(), st.integers(0, 3), st.integers(0, 4), st.integers(0, 2**32))
def test_split_is_the_inverse_of_join(
    layout: TokenLayout, count: int, length: int, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    texts = torch.randint(layout.text_vocab_size - 3, (count, length), generator=random)
    levels = [
        torch.randint(size, (count, *layout.grid), generator=random)
        for size in layout.codebook_sizes
    ]
    images = torch.stack(levels, dim=-1).reshape(count, *layout.token_shape)
    sequences = layout.join(texts, images)
    assert sequences.shape == (count, length + layout.image_length)
    assert not count or 0 <= int(sequences.min()) <= int(sequences.max()) < layout.vocab_size
    found_texts, found_images = layout.split(sequences)
    assert torch.equal(found_texts, texts)
    assert torch.equal(found_images, images.reshape(count, math.prod(layout.token_shape)))
    for sequence, text, image in zip(sequences, texts, images, strict=True):
        assert torch.equal(layout.join(text, image), sequence)


@often
@given(layouts(), st.integers(0, 3))
def test_every_code_stands_at_its_position_and_in_the_range_of_its_level(
    layout: TokenLayout, length: int
) -> None:
    last = torch.tensor(layout.codebook_sizes) - 1
    images = last.repeat(layout.grid).reshape(1, *layout.token_shape)
    (sequence,) = layout.join(torch.zeros(1, length, dtype=torch.int64), images)
    for row in range(layout.grid[0]):
        for column in range(layout.grid[1]):
            for level, ids in enumerate(layout.level_ranges):
                place = layout.position(row, column, text_length=length, level=level)
                assert int(sequence[place]) == ids[-1]
    own = sum(map(len, layout.level_ranges)) == len(set().union(*layout.level_ranges))
    assert own or layout.levels == "shared"
