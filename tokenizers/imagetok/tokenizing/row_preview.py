"""A preview of what shards hold: ids decoded to images, with captions, in one grid."""

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
from imagetok.shards.shard_reader import ShardReader
from imagetok.shards.token_folder import TokenFolder
from imagetok.tokenizer import ImageTokenizer

CELL = 160
"""Least length of an image's longer side in pixels; smaller ones are enlarged by whole factors."""

MAX_ROWS = 256
"""Most images of a grid."""

_CAPTIONS = ("caption", "text", "prompt", "description", "label")
_PADDING, _LINES, _LINE_HEIGHT = 6, 3, 13


def read_range(text: str) -> range:
    """A range of rows from text: `first:end`, as in `0:16`, or a single row, as in `7`.

    Raises:
        InvalidValueError: The text is not a range, or the range is empty or longer than `MAX_ROWS`.
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
    """Decode rows of a tokenized dataset.

    Args:
        folder: The tokenized dataset.
        tokenizer: The one that made the ids.
        rows: Rows to decode, counted over the shards in their order.

    Returns:
        The images and their captions.

    Raises:
        DataError: The ids were made by another tokenizer, or the rows do not exist.
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
    starts = ends - [shard.rows for shard in shards]
    schema = folder.job.schema
    column = _caption_column(schema.kept)
    columns = [] if column is None else [column]
    gathered = ShardReader(folder, columns).gather(numbers, wanted - starts[numbers])
    batch = gathered.batch(0, len(wanted))
    return _decode(tokenizer, batch), _captions(batch, column, schema.kept)


def draw_grid(images: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Draw images with their captions below them, in a grid that is about square."""
    scaled = [_enlarged(image) for image in images]
    width = max(image.width for image in scaled) + _PADDING
    height = max(image.height for image in scaled) + _LINES * _LINE_HEIGHT + 2 * _PADDING
    across = math.ceil(math.sqrt(len(scaled)))
    down = math.ceil(len(scaled) / across)
    canvas = Image.new("RGB", (across * width + _PADDING, down * height + _PADDING), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default()
    for number, (image, caption) in enumerate(zip(scaled, captions, strict=True)):
        left = _PADDING + number % across * width
        top = _PADDING + number // across * height
        canvas.paste(image, (left, top))
        letters = max(8, (width - _PADDING) // 7)
        lines = textwrap.wrap(caption, letters, max_lines=_LINES, placeholder=" …")
        for line, text in enumerate(lines):
            place = (left, top + image.height + 2 + line * _LINE_HEIGHT)
            draw.text(place, text, fill="black", font=font)
    return canvas


def _decode(tokenizer: ImageTokenizer, batch: Mapping[str, Any]) -> list[Image.Image]:
    ids = batch["ids"]
    if isinstance(ids, Tensor):
        images = tokenizer.decode(ids, output="pt")
        assert isinstance(images, Tensor)
        return [_render(image) for image in images]
    found = []
    for one, own in zip(ids, batch["grid"], strict=True):
        image = tokenizer.decode(one, grid=own, output="pt")
        assert isinstance(image, Tensor)
        found.append(_render(image))
    return found


def _render(x_hat: Tensor) -> Image.Image:
    image = to_pil(x_hat.to(torch.float32))
    assert isinstance(image, Image.Image)
    return image.convert("RGB")


def _enlarged(image: Image.Image) -> Image.Image:
    factor = math.ceil(CELL / max(image.size))
    size = (image.width * factor, image.height * factor)
    return image.resize(size, Image.Resampling.NEAREST)


def _caption_column(kept: Features) -> str | None:
    """The kept column to caption images with: one of a usual name, or else the first text."""
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
