"""Decoding JPEG files with simplejpeg, where it is installed (extra `fast`), in place of Pillow.

Both are libjpeg-turbo and give the same pixels; simplejpeg takes less time around it. Pillow reads
the header all the same and decides what is read; it also decodes whatever simplejpeg finds a fault
in, so that what is refused, and why, does not depend on what is installed.
"""

from __future__ import annotations

import importlib
import io
import logging
from functools import cache
from types import ModuleType

import numpy as np
import numpy.typing as npt
from PIL import Image, JpegImagePlugin

logger = logging.getLogger(__name__)

_COLOR_SPACES = {"L": "GRAY", "RGB": "RGB"}
"""Pillow's mode -> what simplejpeg calls it; files of other modes are left to Pillow."""

MAX_BYTES = 2**28
"""Largest file that is read into memory; Pillow decodes a larger one piece by piece."""


def decode_jpeg(image: Image.Image) -> npt.NDArray[np.uint8] | None:
    """The pixels of a JPEG file of which Pillow has read the header alone.

    Args:
        image: The image as just opened from the beginning of a file, which is still open.

    Returns:
        uint8 array (H, W, 1) or (H, W, 3), not turned by EXIF orientation; None where Pillow is to
        decode, or to say what is wrong.
    """
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or image.mode not in _COLOR_SPACES:
        return None
    simplejpeg = _simplejpeg()
    if simplejpeg is None or image.fp is None:
        return None
    try:
        place = image.fp.tell()
        image.fp.seek(0)
        content = image.fp.read(MAX_BYTES + 1)
        image.fp.seek(place)
    except OSError:  # Pillow meets it too, and what it says is worded
        return None
    if len(content) > MAX_BYTES:
        return None
    pixels = _decode(simplejpeg, content, _COLOR_SPACES[image.mode])
    return None if pixels is None or pixels.shape[:2] != image.size[::-1] else pixels


@cache
def _simplejpeg() -> ModuleType | None:
    """The library, where it is installed and has the pixels that Pillow has."""
    try:
        simplejpeg = importlib.import_module("simplejpeg")
    except ImportError:
        return None
    steps = np.arange(0, 256, 4, dtype=np.uint8)
    sample = np.stack([np.add.outer(steps, step) for step in (steps, steps[::-1], 3 * steps)], -1)
    file = io.BytesIO()
    Image.fromarray(sample).save(file, "JPEG", quality=75)
    pixels = _decode(simplejpeg, file.getvalue(), "RGB")
    if pixels is None or not np.array_equal(pixels, np.asarray(Image.open(file))):
        logger.warning("warning: simplejpeg has other pixels than Pillow here, and is not used")
        return None
    return simplejpeg


def _decode(
    simplejpeg: ModuleType, content: bytes, color_space: str
) -> npt.NDArray[np.uint8] | None:
    try:
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(content, color_space, strict=True)
    except (
        ValueError,
        RuntimeError,
    ):  # Pillow decodes what it can of a damaged file, or words the refusal
        return None
    return pixels
