"""A PNG file without the texts in it, for Pillow, which unpacks them and refuses long ones.

    file --without_texts--> the same stream, or one of the ranges between the texts

A prompt with a graph of nodes, or an editor's history, says nothing about pixels, however long it
is. Chunks of text (tEXt, zTXt, iTXt) are left out while reading. These stay: a chunk whose checksum
is wrong, so that a damaged file is still refused; and metadata that may hold the orientation, where
they are not too long for Pillow. A colour profile (iCCP) that is too long for Pillow is left out,
and handed over beside the stream.
"""

from __future__ import annotations

import io
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from typing import IO

from PIL import PngImagePlugin

from imagetok.images.color_profile import MAX_PROFILE_BYTES

_TEXTS, _PROFILE = (b"tEXt", b"zTXt", b"iTXt"), b"iCCP"
_ORIENTATIONS = (b"exif", b"Raw profile type exif", b"XML:com.adobe.xmp", b"xmp")
"""Keywords of texts that Pillow looks for the orientation in."""

_SIGNATURE_SIZE, _HEAD_SIZE, _CHECKSUM_SIZE = 8, 8, 4
_KEYWORD_SIZE = 80
_BLOCK = 2**16


def without_texts(stream: IO[bytes]) -> tuple[IO[bytes], bytes | None]:
    """Cut out of a PNG what is too long for Pillow, or of no use.

    Args:
        stream: The file, seekable.

    Returns:
        A stream that stands at its start: the same one where there is nothing to cut. And the
        colour profile, if it was cut; of one over `MAX_PROFILE_BYTES` only the beginning, which
        is one byte longer than that.

    Raises:
        OSError: The file cannot be read.
    """
    cuts, profile = list[tuple[int, int]](), None
    for kind, start, length in _chunks(stream):
        if kind not in (*_TEXTS, _PROFILE) or not _is_sound(stream, kind, length):
            continue
        stream.seek(start + _HEAD_SIZE)
        if kind == _PROFILE:
            packed = _packed(kind, stream.read(min(length, MAX_PROFILE_BYTES + _BLOCK)))
            is_cut = _is_too_long(packed)
            profile = _unpack(packed, MAX_PROFILE_BYTES + 1) if is_cut else profile
        else:
            is_cut = not _is_needed(stream, kind, length)
        if is_cut:
            cuts.append((start, start + _HEAD_SIZE + length + _CHECKSUM_SIZE))
    stream.seek(0)
    return (io.BufferedReader(_Spliced(stream, cuts)) if cuts else stream), profile


def _chunks(stream: IO[bytes]) -> Iterator[tuple[bytes, int, int]]:
    """Kind, place in the stream, and length of the data of each chunk; the data come next."""
    start = _SIGNATURE_SIZE
    while True:
        stream.seek(start)
        head = stream.read(_HEAD_SIZE)
        if len(head) < _HEAD_SIZE or head[4:] == b"IEND":
            return
        length, kind = struct.unpack(">I4s", head)
        yield kind, start, length
        start += _HEAD_SIZE + length + _CHECKSUM_SIZE


def _is_sound(stream: IO[bytes], kind: bytes, length: int) -> bool:
    """Whether a chunk, whose data come next, is complete and has the right checksum."""
    checksum = zlib.crc32(kind)
    while length:
        block = stream.read(min(length, _BLOCK))
        if not block:
            return False
        checksum = zlib.crc32(block, checksum)
        length -= len(block)
    return stream.read(_CHECKSUM_SIZE) == struct.pack(">I", checksum)


def _is_needed(stream: IO[bytes], kind: bytes, length: int) -> bool:
    """Whether a text, which comes next, may hold the orientation and is not too long for Pillow."""
    beginning = stream.read(min(length, _KEYWORD_SIZE))
    if beginning.partition(b"\0")[0] not in _ORIENTATIONS:
        return False
    if length > PngImagePlugin.MAX_TEXT_MEMORY:
        return False
    return not _is_too_long(_packed(kind, beginning + stream.read(length - len(beginning))))


def _packed(kind: bytes, data: bytes) -> bytes:
    """The part of a chunk's data that is compressed."""
    _, _, rest = data.partition(b"\0")
    if kind in (b"zTXt", _PROFILE):
        return rest[1:] if rest[:1] == b"\0" else b""
    if kind == b"iTXt" and rest[:1] != b"\0":
        return rest[2:].split(b"\0", 2)[-1]
    return b""


def _is_too_long(packed: bytes) -> bool:
    """Whether data unpack to more than Pillow takes, by Pillow's own measure."""
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(packed, PngImagePlugin.MAX_TEXT_CHUNK)
    except zlib.error:
        return False
    return bool(unpacker.unconsumed_tail)


def _unpack(packed: bytes, limit: int) -> bytes:
    """The first bytes of compressed data; none where they are damaged."""
    try:
        return zlib.decompressobj().decompress(packed, limit)
    except zlib.error:
        return b""


class _Spliced(io.RawIOBase):
    """What lies outside of some ranges of a stream, as a stream without gaps.

    Args:
        stream: The whole stream, which stays open when this one is closed.
        cuts: (first, end) of the ranges to leave out, in ascending order.
    """

    def __init__(self, stream: IO[bytes], cuts: list[tuple[int, int]]) -> None:
        super().__init__()
        self._stream, self._at = stream, 0
        # Of each part that is left: where it starts here, where it starts and ends in the stream.
        firsts = [0, *(end for _, end in cuts)]
        ends = [*(first for first, _ in cuts), None]
        self._starts, self._parts, start = list[int](), list[tuple[int, int | None]](), 0
        for first, end in zip(firsts, ends, strict=True):
            self._starts.append(start)
            self._parts.append((first, end))
            start += 0 if end is None else end - first

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the end of the stream is not known")
        self._at = offset if whence == io.SEEK_SET else self._at + offset
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        # Of parts that start at one place all but the last are empty.
        number = bisect_right(self._starts, self._at) - 1
        first, end = self._parts[number]
        place = first + self._at - self._starts[number]
        wanted = len(buffer) if end is None else min(len(buffer), end - place)
        self._stream.seek(place)
        block = self._stream.read(wanted)
        buffer[: len(block)] = block
        self._at += len(block)
        return len(block)
