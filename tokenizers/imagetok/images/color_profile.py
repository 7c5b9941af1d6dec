"""From the colours of an image's ICC profile to sRGB, by littlecms.

    profile --_conversion, remembered--> transform, table or nothing --to_srgb--> colours in sRGB

The intent is perceptual, and pixels have 8 bits before and after. A profile that moves no colour by
more than one level, as the many variants of sRGB do, changes nothing. Gray pixels are converted by
a table of 256 entries and stay gray; under a profile of RGB colours they stand for equal parts of
red, green and blue.

Only ICC profiles are applied; what a PNG says in gAMA, cHRM or cICP chunks is not.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, features

from imagetok.config import printable
from imagetok.errors import InvalidValueError

Colors = NDArray[np.uint8]
"""uint8 (H, W, C): C = 1 gray, 3 RGB, 4 CMYK."""

Conversion = Callable[[Colors], Colors]

COLOR_PROFILES = ("ignore", "srgb")
"""What can be done with profiles: nothing, or a conversion to sRGB."""

MAX_PROFILE_BYTES = 2**22
"""Most bytes of a profile. Those of printers have up to 3 MB."""

REMEMBERED = 32
"""Transforms that are kept, because building one takes as long as converting a small image."""

_SPACES = {"L": ("GRAY", "RGB"), "RGB": ("RGB",), "CMYK": ("CMYK",)}
"""Colour spaces of profiles that can describe pixels of a mode of Pillow's."""

_PROBE_STEPS = 17


class ProfileError(ValueError):
    """A profile that cannot be applied, and why; the image is read as if it had none."""


def check_color_profile(color_profile: str) -> None:
    """Refuse what is not one of `COLOR_PROFILES`, or cannot be done by this build of Pillow.

    Raises:
        InvalidValueError: It is unknown, or Pillow was built without littlecms.
    """
    if color_profile not in COLOR_PROFILES:
        raise InvalidValueError(
            f"unknown color_profile '{color_profile}'; choose one of: {', '.join(COLOR_PROFILES)}"
        )
    if color_profile == "srgb" and not features.check_module("littlecms2"):
        raise InvalidValueError(
            "color_profile is 'srgb', and this Pillow was built without littlecms, which converts "
            "colours; install Pillow from its wheels"
        )


def color_library() -> str:
    """Version of littlecms, which decides how colours are rounded."""
    return str(features.version_module("littlecms2"))


def to_srgb(colors: Colors, mode: str, profile: object) -> Colors:
    """Convert colours to sRGB.

    Args:
        colors: Pixels without alpha.
        mode: Pillow's name for their kind: L, RGB or CMYK.
        profile: The profile, as a file holds it or as Pillow gives it.

    Returns:
        Gray for gray, otherwise RGB; the same array where the profile changes nothing.

    Raises:
        ProfileError: The profile is damaged or too long, or not one for such pixels.
    """
    if not isinstance(profile, bytes):
        raise ProfileError("it is incomplete or damaged")
    if len(profile) > MAX_PROFILE_BYTES:
        raise ProfileError(f"it has over {MAX_PROFILE_BYTES} bytes")
    convert = _conversion(profile, mode)
    return colors if convert is None else convert(colors)


@lru_cache(maxsize=REMEMBERED)
def _conversion(profile: bytes, mode: str) -> Conversion | None:
    """The conversion of a profile; None where it changes nothing."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = str(source.profile.xcolor_space).strip()
        if space not in _SPACES[mode]:
            raise ProfileError(
                f"it describes colours of {printable(space)}, and the pixels are {mode}"
            )
        entered = "L" if space == "GRAY" else space
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            entered,
            "RGB",
            renderingIntent=ImageCms.Intent.PERCEPTUAL,
            # Of gray, littlecms would keep 33 levels and interpolate, up to ten levels off.
            flags=ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE,
        )
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError) as error:
        if isinstance(error, ProfileError):
            raise
        raise ProfileError("it is damaged, or of a kind that is not supported") from None

    def convert(colors: Colors) -> Colors:
        return np.asarray(transform.apply(_image(colors, entered)))

    if mode == "L":
        return _by_table(convert, entered)
    if mode == "CMYK":
        return convert
    probe = _probe()
    return convert if _differ(convert(probe), probe) else None


def _by_table(
    convert: Callable[[Colors], Colors], entered: str
) -> Callable[[Colors], Colors] | None:
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 256, 1)
    converted = _image(convert(ramp if entered == "L" else ramp.repeat(3, axis=2)), "RGB")
    table = np.asarray(converted.convert("L")).reshape(256)
    return (lambda gray: table[gray]) if _differ(table, ramp.reshape(256)) else None


def _image(colors: Colors, mode: str) -> Image.Image:
    size = (colors.shape[1], colors.shape[0])
    return Image.frombuffer(mode, size, np.ascontiguousarray(colors), "raw", mode, 0, 1)


def _probe() -> Colors:
    """Colours (1, N, 3) that are spread evenly over all that RGB can say."""
    levels = np.linspace(0, 255, _PROBE_STEPS).round().astype(np.uint8)
    return np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)


def _differ(a: Colors, b: Colors) -> bool:
    return bool(np.abs(a.astype(np.int16) - b.astype(np.int16)).max() > 1)
