"""Reading one image of any kind at its native size; the only place that opens an image file.

An image source is a path, the bytes of a file, a PIL image, a value of a dataset's image column
(decoded, or as `{"bytes": ..., "path": ...}`), a uint8 array or a uint8 tensor. The same image
gives the same pixels, whichever kind of source it comes from; only files and PIL images carry a
colour profile.

Files are opened by an allow-list of formats: Pillow's reader of a format is called directly, picked
by the first bytes. What `Image.open` would add is unwanted: it tries every installed plugin, and it
warns or raises by Pillow's global pixel limit before the size of the image can be reported. No
global setting of Pillow's is changed. Pillow's own messages are never passed on: they hold memory
addresses and differ between versions. Ours are recorded in the error reports of tokenizing jobs,
which are the same bytes every time, so their wording stays.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Final

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from torch import Tensor

from imagetok.errors import ImageFileError, ImagetokError, ImageTypeError, ImageValueError
from imagetok.images.arrays import array_to_pixels, check_array, check_tensor, tensor_to_pixels
from imagetok.images.color_profile import check_color_profile
from imagetok.images.jpeg_decoder import decode_jpeg
from imagetok.images.pixels import (
    MAX_PIXELS,
    Pixels,
    check_limit,
    check_mode,
    check_size,
    limit_text,
    orientation,
    pixels_of,
    to_channels,
)
from imagetok.images.png_stream import without_texts

FileSource = str | os.PathLike[str] | bytes | bytearray | memoryview
FILE_SOURCES: Final = (str, os.PathLike, bytes, bytearray, memoryview)
"""Types that stand for a file: its path, or its contents."""

KINDS = (
    "a path, bytes, a PIL image, a uint8 array (H, W) or (H, W, C), a uint8 tensor (C, H, W), or a "
    'data set\'s {"bytes": ..., "path": ...}'
)
"""What messages list as the kinds of image sources."""

# JpegImageFile also reads the first image of the multi-picture files that phones write.
_READERS: dict[str, tuple[re.Pattern[bytes], Callable[[IO[bytes]], Image.Image]]] = {
    "JPEG": (re.compile(rb"\xff\xd8\xff"), JpegImagePlugin.JpegImageFile),
    "PNG": (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImagePlugin.PngImageFile),
    "WebP": (re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImagePlugin.WebPImageFile),
    "GIF": (re.compile(rb"GIF8[79]a"), GifImagePlugin.GifImageFile),
    "BMP": (re.compile(rb"BM"), BmpImagePlugin.BmpImageFile),
    "TIFF": (re.compile(rb"II[*+]\x00|MM\x00[*+]"), TiffImagePlugin.TiffImageFile),
}

FORMATS = tuple(_READERS)
"""Names of the file formats that are read."""

_PREFIX_SIZE = 16
_URL = re.compile(r"[a-z][a-z0-9+.-]*://|data:", re.IGNORECASE)


def read_image(
    source: object,
    channels: int = 3,
    background: tuple[int, int, int] = (255, 255, 255),
    *,
    color_profile: str = "ignore",
    max_pixels: int = MAX_PIXELS,
    notes: list[str] | None = None,
) -> Tensor:
    """Read one image at its native size.

    Files may be JPEG, PNG, WebP, GIF, BMP or TIFF, whatever their name says; of an animation the
    first frame is read. EXIF orientation is applied once. A PIL image is taken at its current
    frame; if it carries no orientation any more, as in a decoded dataset, it is taken as upright.

    Args:
        source: The image.
        channels: 1 gray (ITU-R 601), 3 RGB, or 4 RGBA.
        background: RGB colour in 0..255 under transparent pixels; unused for 4 channels.
        color_profile: `ignore`, or `srgb`: colours are converted to sRGB by the ICC profile that a
            file or a PIL image carries.
        max_pixels: Most pixels, read from the header of a file; at most 178,956,970.
        notes: A list that gets a message where a profile cannot be applied, and the image is read
            as if it had none.

    Returns:
        uint8 tensor (channels, H, W), on the CPU, in memory of its own, where the channels of a
        pixel lie together.

    Raises:
        ImageFileError: The file is missing, truncated, damaged, or of a format or a kind of
            pixels that is not read.
        ImageValueError: The image has a layout that is not read, or is over the pixel limit, or
            the source is a URL.
        ImageTypeError: The source is not an image, or its kind of pixels is not read.
        InvalidValueError: Another argument is none of these.
    """
    check_color_profile(color_profile)
    check_limit(max_pixels)
    return to_channels(_read(source, color_profile, max_pixels, notes), channels, background)


def measure_image(source: object, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(height, width) of what `read_image` returns, after EXIF orientation.

    Only the header of a file is read, except for a PNG without EXIF before its pixels: there it
    may follow them, and the pixels are decoded. Where the image is read anyway, the shape of
    `read_image`'s result says the same at no cost.

    Raises:
        ImagetokError: As for `read_image`, as far as the header tells.
    """
    source = _unwrap(source)
    if not isinstance(source, (Image.Image, *FILE_SOURCES)):
        height, width, _ = _read(source, "ignore", max_pixels).shape
        return height, width
    with _opened(source, max_pixels) as image:
        if image.format == "PNG" and "exif" not in image.info:
            _load(image, source)
        # Pillow states a TIFF's size as it will be after orientation, and no other format's.
        turned = image.format != "TIFF" and orientation(image) >= 5
        return (image.width, image.height) if turned else (image.height, image.width)


def file_format(prefix: bytes) -> str | None:
    """Which of `FORMATS` a file is of, by its first 16 bytes; None for other files."""
    return next((kind for kind, (magic, _) in _READERS.items() if magic.match(prefix)), None)


def describe(value: object) -> str:
    """What messages call an image source, or an object given in place of one."""
    if isinstance(value, str | os.PathLike):
        return f"'{os.fsdecode(value)}'"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"a picture of {memoryview(value).nbytes} bytes"
    if isinstance(value, Image.Image):
        return f"a PIL image of mode {value.mode}"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"an object of type {type(value).__name__}"


@contextmanager
def pillow_errors(name: str, fault: str, max_pixels: int = MAX_PIXELS) -> Iterator[None]:
    """Replace whatever Pillow raises by an `ImageFileError` that says `name` and `fault`."""
    try:
        yield
    except (ImagetokError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageValueError(
            f"{name} is over the limit of {limit_text(max_pixels)}, or over the lower one that "
            "this process has set as PIL.Image.MAX_IMAGE_PIXELS; shrink it first"
        ) from None
    except Exception:  # damaged files make Pillow raise nearly every builtin exception
        raise ImageFileError(f"{name} {fault}") from None


def _read(
    source: object, color_profile: str, max_pixels: int, notes: list[str] | None = None
) -> Pixels:
    source = _unwrap(source)
    name = describe(source)
    if isinstance(source, (Image.Image, *FILE_SOURCES)):
        with _opened(source, max_pixels) as image:
            # A PIL image may have been changed, or be at another frame than the file's first.
            pixels = None if image is source else decode_jpeg(image)
            if pixels is None:
                _load(image, source)
            with pillow_errors(name, "cannot be converted; its palette or metadata is damaged"):
                return pixels_of(image, color_profile, notes, pixels)
    if isinstance(source, np.ndarray):
        check_array(source, name, max_pixels)
        _check_is_one(source.ndim, name)
        return array_to_pixels(source)
    if isinstance(source, Tensor):
        check_tensor(source, name, max_pixels)
        _check_is_one(source.ndim, name)
        return tensor_to_pixels(source)
    raise ImageTypeError(f"{name} is no picture; pass {KINDS}")


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


@contextmanager
def _opened(source: Image.Image | FileSource, max_pixels: int) -> Iterator[Image.Image]:
    """A PIL image whose size and mode have been checked, and which need not be decoded yet.

    An image from a file can be decoded inside the `with` block only.
    """
    name = describe(source)
    if isinstance(source, Image.Image):
        check_size(source.height, source.width, name, max_pixels)
        check_mode(source, name)
        yield source
    else:
        with _stream(source, name) as stream:
            yield _read_header(stream, name, max_pixels)


def _load(image: Image.Image, source: Image.Image | FileSource) -> None:
    fault = "cannot be decoded: it is truncated or damaged"
    if image is source:
        fault += ", or its file was closed before it was read"
    with pillow_errors(describe(source), fault):
        image.load()


def _stream(source: FileSource, name: str) -> IO[bytes]:
    if not isinstance(source, str | os.PathLike):
        return io.BytesIO(bytes(source))
    path = os.fsdecode(source)
    if _URL.match(path):
        raise ImageValueError(
            f"{name} is a URL, and URLs are never opened; download the picture and pass its path "
            "or its bytes"
        )
    try:
        kind = os.stat(path).st_mode
        if stat.S_ISDIR(kind):
            raise ImageFileError(f"{name} is a directory; pass the picture files in it as a list")
        if not stat.S_ISREG(kind):
            raise ImageFileError(f"{name} is no regular file; read it and pass the bytes")
        return open(path, "rb")
    except ImageFileError:
        raise
    except OSError as error:
        raise ImageFileError(f"{name} cannot be read: {error.strerror}") from None
    except ValueError:
        raise ImageFileError(f"{name} cannot be read: it is not a valid path") from None


def _read_header(stream: IO[bytes], name: str, max_pixels: int) -> Image.Image:
    with _reading(name):
        prefix = stream.read(_PREFIX_SIZE)
        stream.seek(0)
    if not prefix:
        raise ImageFileError(f"{name} is empty; it was probably not written to its end")
    kind = file_format(prefix)
    if kind is None:
        raise ImageFileError(
            f"{name} is of no format that is read, whatever its name says; convert it to one of: "
            + ", ".join(FORMATS)
        )
    profile = None
    if kind == "PNG":
        with _reading(name):
            stream, profile = without_texts(stream)
    fault = f"has a damaged header, or is of a kind of {kind} that is not read"
    with pillow_errors(name, fault, max_pixels):
        image = _READERS[kind][1](stream)
    if profile is not None:
        image.info["icc_profile"] = profile
    check_size(image.height, image.width, name, max_pixels)
    try:
        check_mode(image, name)
    except ImageTypeError as error:
        raise ImageFileError(str(error)) from None
    if isinstance(image, PngImagePlugin.PngImageFile):
        _check_transparent_color(image, name)
    return image


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ImageFileError(f"{name} cannot be read: {error.strerror}") from None


def _check_transparent_color(image: PngImagePlugin.PngImageFile, name: str) -> None:
    """Refuse the PNG files whose transparent colour Pillow compares at the wrong bit depth."""
    layout = image.tile[0][3] if image.tile else None
    if "transparency" in image.info and layout in ("L;2", "L;4", "RGB;16B"):
        raise ImageFileError(
            f"{name} is a PNG that names a transparent colour at 2, 4 or 16 bits a channel, which "
            "is not read rightly; save it with an alpha channel"
        )
