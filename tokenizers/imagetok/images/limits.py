"""The size limit of pictures, the same for files, arrays and tensors."""

from __future__ import annotations

from imagetok.errors import ImageValueError

MAX_PIXELS = 50_000_000
"""Most pixels of one picture. An 11 kB file can unpack to far more than a machine's memory."""


def check_size(height: int, width: int, name: str) -> None:
    """Refuse an empty picture and one of more than `MAX_PIXELS`.

    Args:
        height: Height in pixels.
        width: Width in pixels.
        name: What the message calls the picture.

    Raises:
        ImageValueError: A side is zero, or height * width is over the limit.
    """
    if height < 1 or width < 1:
        raise ImageValueError(
            f"{name} is {height} high and {width} wide; both sides must have at least one pixel"
        )
    if height * width > MAX_PIXELS:
        raise ImageValueError(
            f"{name} is {height} high and {width} wide, {height * width} pixels, over the limit of "
            f"{MAX_PIXELS // 10**6} megapixels; shrink it or cut it into pieces first"
        )
