"""A picture of what shards hold: ids decoded, with captions."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Features, Value
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from imagetok.errors import DataError, InvalidValueError
from imagetok.images import to_pil
from imagetok.shards.opening import TokenFolder
from imagetok.shards.rows import ShardRows
from imagetok.tokenizer import ImageTokenizer

CELL = 160
"""Least side in pixels of a picture in the grid; smaller ones are enlarged by whole factors."""

MAX_ROWS = 256
"""Most pictures of a grid."""

_CAPTIONS = ("caption", "text", "prompt", "description", "label")
_PADDING, _LINES, _LINE_HEIGHT = 6, 3, 13


def read_range(text: str) -> range:
    """Rows `first:end` of a dataset, as in `0:16`; a single number is one row.

    Raises:
        InvalidValueError: This is no range, or an empty or too long one.
    """
    found = re.fullmatch(r"(\d{1,15})(?::(\d{1,15}))?", text.strip())
    rows = range(0)
    if found:
        first = int(found[1])
        rows = range(first, first + 1 if found[2] is None else int(found[2]))
    if not 1 <= len(rows) <= MAX_ROWS:
        raise InvalidValueError(
            f"rows is '{text}'; expected first:end with 1 to {MAX_ROWS} rows, as in 0:16"
        )
    return rows


def decode_rows(
    folder: TokenFolder, tokenizer: ImageTokenizer, rows: range
) -> tuple[list[Image.Image], list[str]]:
    """Pictures of the rows of a tokenized dataset, in the order of its shards, and their captions.

    Raises:
        DataError: The ids are of another tokenizer, or there are no such rows.
        UnreadableFileError: A shard is missing or damaged.
    """
    folder.check_tokenizer(tokenizer)
    shards = folder.manifest.shards
    ends = np.cumsum([shard.rows for shard in shards])
    if rows.stop > ends[-1]:
        raise DataError(
            f"'{folder.path}' has the rows 0 to {ends[-1] - 1}, not {rows.start}:{rows.stop}"
        )
    wanted = np.arange(rows.start, rows.stop)
    numbers = np.searchsorted(ends, wanted, side="right")
    places = wanted - (ends[numbers] - np.array([shard.rows for shard in shards])[numbers])
    schema = folder.job.schema
    column = _caption_column(schema.kept)
    columns = [] if column is None else [column]
    reader = ShardRows(folder.path, shards, folder.manifest.job, schema, columns)
    batch = reader.gather(numbers, places).batch(0, len(wanted))
    return _decode(tokenizer, batch, schema.grid), _captions(batch, column, schema.kept)


def draw_grid(pictures: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Pictures with captions below, in a grid that is about square."""
    scaled = [_enlarged(picture) for picture in pictures]
    width = max(picture.width for picture in scaled) + _PADDING
    height = max(picture.height for picture in scaled) + _LINES * _LINE_HEIGHT + 2 * _PADDING
    across = math.ceil(math.sqrt(len(scaled)))
    down = math.ceil(len(scaled) / across)
    canvas = Image.new("RGB", (across * width + _PADDING, down * height + _PADDING), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default()
    for number, (picture, caption) in enumerate(zip(scaled, captions, strict=True)):
        left = _PADDING + number % across * width
        top = _PADDING + number // across * height
        canvas.paste(picture, (left, top))
        letters = max(8, (width - _PADDING) // 7)
        lines = textwrap.wrap(caption, letters, max_lines=_LINES, placeholder=" …")
        for line, text in enumerate(lines):
            place = (left, top + picture.height + 2 + line * _LINE_HEIGHT)
            draw.text(place, text, fill="black", font=font)
    return canvas


def _decode(
    tokenizer: ImageTokenizer, batch: Mapping[str, Any], grid: tuple[int, int] | None
) -> list[Image.Image]:
    ids = batch["ids"]
    if isinstance(ids, Tensor):
        pictures = tokenizer.decode(ids, grid=grid, output="pt")
        assert isinstance(pictures, Tensor)
        return [_render(picture) for picture in pictures]
    found = []
    for one, own in zip(ids, batch["grid"], strict=True):
        picture = tokenizer.decode(one, grid=own, output="pt")
        assert isinstance(picture, Tensor)
        found.append(_render(picture))
    return found


def _render(x_hat: Tensor) -> Image.Image:
    picture = to_pil(x_hat.to(torch.float32))
    assert isinstance(picture, Image.Image)
    return picture.convert("RGB")


def _enlarged(picture: Image.Image) -> Image.Image:
    factor = math.ceil(CELL / max(picture.size))
    size = (picture.width * factor, picture.height * factor)
    return picture.resize(size, Image.Resampling.NEAREST)


def _caption_column(kept: Features) -> str | None:
    """The kept column that says most of a picture: one of a usual name, or the first text."""
    texts = [
        name
        for name, feature in kept.items()
        if isinstance(feature, ClassLabel)
        or (isinstance(feature, Value) and feature.dtype in ("string", "large_string"))
    ]
    return next((name for name in _CAPTIONS if name in texts), next(iter(texts), None))


def _captions(batch: Mapping[str, Any], column: str | None, kept: Features) -> list[str]:
    rows = batch["row"].tolist()
    places = [f"row {row}" for row in rows]
    if "file" in batch:
        places = [f"{file}, {place}" for file, place in zip(batch["file"], places, strict=True)]
    if column is None:
        return places
    feature, values = kept[column], batch[column]
    if isinstance(feature, ClassLabel):
        values = [None if value is None else feature.int2str(value) for value in values]
    return [place if value is None else value for value, place in zip(values, places, strict=True)]
