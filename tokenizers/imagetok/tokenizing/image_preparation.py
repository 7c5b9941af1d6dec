"""From the image of a row to the pixels that the encoder gets, or to why there are none.

    ImageCell --Preprocessor.read--> pixels --crop and resize, or trim--> Prepared | Refused

This runs in loading threads or processes and depends on the image alone. The reason for a refusal
holds neither a path of the machine nor an address, and is the same in every run. A temporary fault,
such as a server that does not answer, ends the job instead of leaving the row out.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from imagetok.data.remote_file import relative_name
from imagetok.errors import ImageFileError, ImagetokError, ImageValueError, TokenizingError
from imagetok.images import Preprocessor
from imagetok.images.pixels import LIMIT_REMEDY

ImageCell = dict[str, Any]
"""What an image column holds for a row: `{"bytes": ..., "path": ...}`."""


_LASTING = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL),
}
"""Permanent faults of a file: reading it again fails again."""

MAX_GRID_SIDE = 2**16 - 1
"""Most positions along a side, because shards store the sides of a grid as uint16."""


@dataclass(frozen=True)
class Prepared:
    """An image ready for the encoder.

    Attributes:
        pixels: uint8 (C, H, W).
        size: (height, width) in pixels of the image itself, upright.
        key: Name of the image within the dataset; None where the row has no name for it.
        ignores_profile: Whether it carries a colour profile that could not be applied.
    """

    pixels: NDArray[np.uint8]
    size: tuple[int, int]
    key: str | None = None
    ignores_profile: bool = False


@dataclass(frozen=True)
class Refused:
    """Why a row has no ids.

    Attributes:
        key: Name of the image within the dataset; None where the row has no name for it.
        reason: What is wrong with it.
    """

    key: str | None
    reason: str


Outcome = Prepared | Refused


@dataclass(frozen=True)
class Preparation:
    """Reads images and brings them to a size that the encoder takes.

    Attributes:
        preprocessor: The tokenizer's own.
        factors: (height, width) in pixels; a centre crop rounds sides down to multiples of them.
            None crops and resizes to the tokenizer's size.
        root: Folder that the names of images are relative to.
    """

    preprocessor: Preprocessor
    factors: tuple[int, int] | None
    root: Path | None

    def __call__(self, images: Sequence[ImageCell | None]) -> list[Outcome]:
        """The outcome for each image.

        Raises:
            TokenizingError: A file cannot be read for now.
        """
        return [self._prepare(image) for image in images]

    def _prepare(self, image: ImageCell | None) -> Outcome:
        if image is None or (image["bytes"] is None and image["path"] is None):
            return Refused(None, "there is no picture: the value is null")
        path = image["path"]
        key = relative_name(path, self.root) if path else None
        try:
            if image["bytes"] is None and "://" in path:
                image = {"bytes": _fetch(path, f"the file '{key}'"), "path": path}
            notes = list[str]()
            pixels = self.preprocessor.read(image, notes)
            if self.factors is None:
                fitted = self.preprocessor.fit(pixels)
            else:
                fitted = _trim(pixels, self.factors)
            size = (pixels.shape[1], pixels.shape[2])
            return Prepared(fitted.numpy(), size, key, ignores_profile=bool(notes))
        except TokenizingError:
            raise
        except MemoryError:
            named = f"'{key}'" if key else "an image"
            raise TokenizingError(
                f"there is too little memory to decode {named}; start the job again with fewer "
                "workers, or a new one with a smaller max_pixels"
            ) from None
        except ImagetokError as error:
            # What error files say is the same bytes for every version.
            text = str(error).removesuffix(LIMIT_REMEDY)
            text = text.replace(path, str(key)) if path else text
            fault = error.__context__
            if isinstance(fault, OSError) and (fault.errno or errno.EINVAL) not in _LASTING:
                raise TokenizingError(f"{text}; start the job again when it can be read") from None
            return Refused(key, text)


def _trim(pixels: Tensor, factors: tuple[int, int]) -> Tensor:
    """The middle of an image, with sides that are the largest multiples of the factors."""
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
    """The content of a file in an archive or on the Hub.

    Args:
        address: Where it lies.
        name: What messages call it.

    Returns:
        The content; None for any other address, which the reader then refuses.

    Raises:
        ImageFileError: The file is missing or damaged.
        TokenizingError: It cannot be fetched for now.
    """
    # Imported here because loading processes import this module, and few of them need `datasets`.
    from imagetok.data.remote_file import is_remote, read_file

    if not is_remote(address):
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
