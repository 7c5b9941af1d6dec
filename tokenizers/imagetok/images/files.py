"""Opening picture files: an allow-list of formats, a size limit, and errors in our own words.

Each format's reader of Pillow's is called directly, picked by the file's first bytes. What
`Image.open` would add is unwanted here: it tries every installed plugin, and warns or raises by
Pillow's global pixel limit before the size of the picture can be told. No global setting of
Pillow's is changed.

Pillow's own messages never pass: they hold memory addresses, and differ between its versions.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Final

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from imagetok.errors import ImageFileError, ImagetokError, ImageTypeError, ImageValueError
from imagetok.images.limits import MAX_PIXELS, check_size
from imagetok.images.modes import check_mode

FileSource = str | os.PathLike[str] | bytes | bytearray | memoryview
FILE_SOURCES: Final = (str, os.PathLike, bytes, bytearray, memoryview)
"""Kinds of objects that stand for a file: paths, and the contents themselves."""

# JpegImageFile also reads the first picture of the multi-picture files that telephones write.
_READERS: dict[str, tuple[re.Pattern[bytes], Callable[[IO[bytes]], Image.Image]]] = {
    "JPEG": (re.compile(rb"\xff\xd8\xff"), JpegImagePlugin.JpegImageFile),
    "PNG": (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImagePlugin.PngImageFile),
    "WebP": (re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImagePlugin.WebPImageFile),
    "GIF": (re.compile(rb"GIF8[79]a"), GifImagePlugin.GifImageFile),
    "BMP": (re.compile(rb"BM"), BmpImagePlugin.BmpImageFile),
    "TIFF": (re.compile(rb"II[*+]\x00|MM\x00[*+]"), TiffImagePlugin.TiffImageFile),
}

FORMATS = tuple(_READERS)
"""Names of the formats that are read."""

_PREFIX_SIZE = 16
_URL = re.compile(r"[a-z][a-z0-9+.-]*://|data:", re.IGNORECASE)


def file_name(source: FileSource) -> str:
    """What messages call a file: its path in quotes, or the number of its bytes."""
    if isinstance(source, str | os.PathLike):
        return f"'{os.fsdecode(source)}'"
    return f"a picture of {memoryview(source).nbytes} bytes"


@contextmanager
def open_file(source: FileSource) -> Iterator[Image.Image]:
    """Open a picture file, read its header and refuse what must not be decoded.

    Args:
        source: Path of a file, or the bytes of one.

    Yields:
        The picture, not yet decoded; it can be decoded inside the `with` block only.

    Raises:
        ImageFileError: There is no such file, it is of no format of the list, its header is
            damaged, or its pixels are of a kind that is not read.
        ImageValueError: The source is a URL, or the picture is over the pixel limit.
    """
    with _stream(source) as stream:
        yield _read_header(stream, file_name(source))


@contextmanager
def pillow_errors(name: str, fault: str) -> Iterator[None]:
    """Replace whatever Pillow raises by an `ImageFileError` that says `name` and `fault`."""
    try:
        yield
    except (ImagetokError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise ImageValueError(
            f"{name} is over the limit of {MAX_PIXELS // 10**6} megapixels, or over the lower one "
            "that this process has set as PIL.Image.MAX_IMAGE_PIXELS; shrink it first"
        ) from None
    except Exception:  # damaged files make Pillow raise nearly every builtin exception
        raise ImageFileError(f"{name} {fault}") from None


def _stream(source: FileSource) -> IO[bytes]:
    if not isinstance(source, str | os.PathLike):
        return io.BytesIO(bytes(source))
    name, path = file_name(source), os.fsdecode(source)
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


def _read_header(stream: IO[bytes], name: str) -> Image.Image:
    try:
        prefix = stream.read(_PREFIX_SIZE)
        stream.seek(0)
    except OSError as error:
        raise ImageFileError(f"{name} cannot be read: {error.strerror}") from None
    if not prefix:
        raise ImageFileError(f"{name} is empty; it was probably not written to its end")
    kind = next((kind for kind, (magic, _) in _READERS.items() if magic.match(prefix)), None)
    if kind is None:
        raise ImageFileError(
            f"{name} is of no format that is read, whatever its name says; convert it to one of: "
            + ", ".join(FORMATS)
        )
    with pillow_errors(name, f"has a damaged header, or is of a kind of {kind} that is not read"):
        image = _READERS[kind][1](stream)
    check_size(image.height, image.width, name)
    try:
        check_mode(image, name)
    except ImageTypeError as error:
        raise ImageFileError(str(error)) from None
    if isinstance(image, PngImagePlugin.PngImageFile):
        _check_transparent_color(image, name)
    return image


def _check_transparent_color(image: PngImagePlugin.PngImageFile, name: str) -> None:
    """Refuse the PNG files whose transparent colour Pillow compares at the wrong bit depth."""
    layout = image.tile[0][3] if image.tile else None
    if "transparency" in image.info and layout in ("L;2", "L;4", "RGB;16B"):
        raise ImageFileError(
            f"{name} is a PNG that names a transparent colour at 2, 4 or 16 bits a channel, which "
            "is not read rightly; save it with an alpha channel"
        )
