"""Reading one picture of any kind at its native size.

A picture is a path, the bytes of a file, a PIL image, a value of a data set's image column
(decoded, or as `{"bytes": ..., "path": ...}`), a uint8 array or a uint8 tensor. One picture gives
the same pixels whichever way it comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from PIL import Image
from torch import Tensor

from imagetok.errors import ImageTypeError, ImageValueError
from imagetok.images.files import FILE_SOURCES, FileSource, file_name, open_file, pillow_errors
from imagetok.images.layouts import array_to_pixels, check_array, check_tensor, tensor_to_pixels
from imagetok.images.limits import check_size
from imagetok.images.modes import Pixels, check_mode, orientation, pixels_of, to_channels

KINDS = (
    "a path, bytes, a PIL image, a uint8 array (H, W) or (H, W, C), a uint8 tensor (C, H, W), or a "
    'data set\'s {"bytes": ..., "path": ...}'
)


def read_picture(
    source: object, channels: int = 3, background: tuple[int, int, int] = (255, 255, 255)
) -> Tensor:
    """Read one picture at its native size.

    Files may be JPEG, PNG, WebP, GIF, BMP or TIFF, whatever their name says; of an animation the
    first frame is read. EXIF orientation is applied once. A PIL image is taken at its current
    frame, and upright if it has no orientation any more, as from a decoded data set.

    Args:
        source: The picture.
        channels: 1 gray (ITU-R 601), 3 RGB, or 4 RGBA.
        background: RGB colour in 0..255 under transparent pixels; unused for 4 channels.

    Returns:
        uint8 tensor (channels, H, W), on the CPU, in memory of its own.

    Raises:
        ImageFileError: The file is missing, truncated, damaged, or of a format or a kind of
            pixels that is not read.
        ImageValueError: The picture has a layout that is not read, or is over the pixel limit, or
            the source is a URL.
        ImageTypeError: The source is no picture, or has pixels of a kind that is not read.
    """
    return to_channels(_read(source), channels, background)


def picture_size(source: object) -> tuple[int, int]:
    """(height, width) of what `read_picture` gives, after EXIF orientation.

    Only the header of a file is read, except for a PNG without EXIF before its pixels: there it
    may follow them, and the pixels are decoded. Where the picture is read anyway, the shape of
    `read_picture`'s result says the same for nothing.

    Raises:
        ImagetokError: As in `read_picture`, as far as the header tells.
    """
    source = _unwrap(source)
    if not isinstance(source, (Image.Image, *FILE_SOURCES)):
        height, width, _ = _read(source).shape
        return height, width
    with _opened(source) as image:
        if image.format == "PNG" and "exif" not in image.info:
            _load(image, source)
        # Pillow states a TIFF's size as it will be after orientation, and no other format's.
        turned = image.format != "TIFF" and orientation(image) >= 5
        return (image.width, image.height) if turned else (image.height, image.width)


def describe(value: object) -> str:
    """What messages call a picture or what was given for one."""
    if isinstance(value, FILE_SOURCES):
        return file_name(value)
    if isinstance(value, Image.Image):
        return f"a PIL image of mode {value.mode}"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"an object of type {type(value).__name__}"


def _read(source: object) -> Pixels:
    source = _unwrap(source)
    name = describe(source)
    if isinstance(source, (Image.Image, *FILE_SOURCES)):
        with _opened(source) as image:
            _load(image, source)
            with pillow_errors(name, "cannot be converted; its palette or metadata is damaged"):
                return pixels_of(image)
    if isinstance(source, np.ndarray):
        check_array(source, name)
        _check_is_one(source.ndim, name)
        return array_to_pixels(source)
    if isinstance(source, Tensor):
        check_tensor(source, name)
        _check_is_one(source.ndim, name)
        return tensor_to_pixels(source)
    raise ImageTypeError(f"{name} is no picture; pass {KINDS}")


@contextmanager
def _opened(source: Image.Image | FileSource) -> Iterator[Image.Image]:
    """A PIL image whose size and mode are checked, and which need not be decoded yet."""
    if isinstance(source, Image.Image):
        check_size(source.height, source.width, describe(source))
        check_mode(source, describe(source))
        yield source
    else:
        with open_file(source) as image:
            yield image


def _load(image: Image.Image, source: Image.Image | FileSource) -> None:
    fault = "cannot be decoded: it is truncated or damaged"
    if image is source:
        fault += ", or its file was closed before it was read"
    with pillow_errors(describe(source), fault):
        image.load()


def _unwrap(source: object) -> object:
    """The file that a value of an undecoded image column stands for; other sources as they are."""
    if source is None:
        raise ImageTypeError("found None where a picture was expected; leave such rows out")
    if not isinstance(source, Mapping):
        return source
    if not source or not source.keys() <= {"bytes", "path"}:
        keys = ", ".join(sorted(str(key) for key in source))
        raise ImageTypeError(
            f"found a mapping with the keys {keys or '(none)'}; of a data set's row pass the value "
            'of its image column, such as row["image"]'
        )
    content, path = source.get("bytes"), source.get("path")
    found = path if content is None else content
    if found is None:
        raise ImageValueError("an image value has neither bytes nor a path; leave such rows out")
    return found


def _check_is_one(axes: int, name: str) -> None:
    if axes == 4:
        raise ImageValueError(f"{name} is a batch where one picture was expected; take it apart")
