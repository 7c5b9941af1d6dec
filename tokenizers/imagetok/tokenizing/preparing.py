"""From a row's picture to the pixels that the encoder gets, or to why there are none.

It runs in loading threads or processes and depends on the picture alone. A reason names no path
of the machine and no address, and is the same in every run: what may go away by itself, such as a
server that does not answer, is an error of the job and no reason to leave a row out.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from imagetok.errors import ImageFileError, ImagetokError, ImageValueError
from imagetok.images import Preprocessor, center_box, read_picture, resize
from imagetok.tokenizing.ending import TokenizingError

Picture = dict[str, Any]
"""`{"bytes": ..., "path": ...}`, as `imagetok.images.read_picture` takes it."""

_REPOSITORY = re.compile(r"^hf://datasets/[^@]*@[^/]*/")

_LASTING = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL),
}
"""Faults of a file that are there again when it is read again."""

MAX_GRID_SIDE = 2**16 - 1


@dataclass(frozen=True)
class Prepared:
    """A picture's pixels, uint8 (C, H, W), and its own (height, width) after EXIF."""

    pixels: NDArray[np.uint8]
    size: tuple[int, int]


@dataclass(frozen=True)
class Refused:
    """Why a row has no ids; `key` names its picture, as far as the row does."""

    key: str | None
    reason: str


Outcome = Prepared | Refused


@dataclass(frozen=True)
class Preparation:
    """Reads pictures and brings them to the encoder.

    Attributes:
        preprocessor: The tokenizer's own.
        factors: (height, width) that sides are rounded down to a multiple of, by a centre crop;
            None crops and resizes to the tokenizer's size.
        root: Folder that pictures are named relative to.
    """

    preprocessor: Preprocessor
    factors: tuple[int, int] | None
    root: Path | None

    def __call__(self, pictures: Sequence[Picture | None]) -> list[Outcome]:
        """The outcome of each picture.

        Raises:
            TokenizingError: A file cannot be read for now.
        """
        return [self._prepare(picture) for picture in pictures]

    def _prepare(self, picture: Picture | None) -> Outcome:
        if picture is None or (picture["bytes"] is None and picture["path"] is None):
            return Refused(None, "there is no picture: the value is null")
        path = picture["path"]
        key = relative_name(path, self.root) if path else None
        try:
            if picture["bytes"] is None and "://" in path:
                picture = {"bytes": _fetch(path, f"the file '{key}'"), "path": path}
            pixels = read_picture(picture, self.preprocessor.channels, self.preprocessor.background)
            return Prepared(self._fit(pixels).numpy(), (pixels.shape[1], pixels.shape[2]))
        except TokenizingError:
            raise
        except ImagetokError as error:
            text = str(error).replace(path, str(key)) if path else str(error)
            fault = error.__context__
            if isinstance(fault, OSError) and (fault.errno or errno.EINVAL) not in _LASTING:
                raise TokenizingError(f"{text}; start the job again when it can be read") from None
            return Refused(key, text)

    def _fit(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[1], pixels.shape[2]
        if self.factors is None:
            size = self.preprocessor.image_size
            return resize(pixels, center_box(height, width, size), size, self.preprocessor.resize)
        return _trim(pixels, self.factors)


def relative_name(path: str, root: Path | None) -> str:
    """A path as it is told: below the dataset's folder or repository, or its last part.

    A file in an archive is told as if that were a folder: `data/train.zip/a/1.png`.
    """
    if "::" in path and "://" in path:
        file, _, archive = path.partition("::")
        return f"{relative_name(archive, root)}/{file.partition('://')[2]}"
    if "://" in path:
        inside = _REPOSITORY.sub("", path)
        return path.rpartition("/")[2] if inside == path else inside
    if root is not None and root.is_dir() and Path(path).is_relative_to(root):
        return Path(path).relative_to(root).as_posix()
    return os.path.basename(path)


def _trim(pixels: Tensor, factors: tuple[int, int]) -> Tensor:
    """The middle of a picture whose sides are the largest multiples of the factors."""
    _, height, width = pixels.shape
    rows, columns = height // factors[0], width // factors[1]
    if min(rows, columns) < 1 or max(rows, columns) > MAX_GRID_SIDE:
        raise ImageValueError(
            f"the picture is {height} high and {width} wide; with one position for {factors[0]} x "
            f"{factors[1]} pixels, each side must have 1 to {MAX_GRID_SIDE} of them"
        )
    top, left = height % factors[0] // 2, width % factors[1] // 2
    return pixels[:, top : top + rows * factors[0], left : left + columns * factors[1]].contiguous()


def _fetch(address: str, name: str) -> bytes | None:
    """The content of a file in an archive or on the Hub; None leaves other addresses to refusal.

    Raises:
        ImageFileError: It is missing or damaged; `name` is what the message calls it.
        TokenizingError: It cannot be fetched for now.
    """
    # Here, because a loading process imports this module, and few need `datasets`.
    from imagetok.data.files import lies_apart, read_file

    if not lies_apart(address):
        return None
    try:
        return read_file(address)
    except FileNotFoundError:
        raise ImageFileError(f"{name} is missing") from None
    except BadZipFile as error:
        raise ImageFileError(f"{name} cannot be read from its archive: {error}") from None
    except Exception as error:  # fsspec, httpx and the Hub's client all raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise TokenizingError(f"'{address}' cannot be fetched: {reason}") from None
