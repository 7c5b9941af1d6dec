"""8-bit pixels: from Pillow's many modes to the channels of a tokenizer, and on to [0, 1].

    PIL image --pixels_of--> (H, W, 1 | 2 | 3 | 4) --to_channels--> (channels, H, W) --to_unit--> x
              orientation,     gray, gray + alpha,     composited on                  float in
              palette, depth   RGB, RGBA               the background,                [0, 1]
                                                       gray by ITU-R 601

Arrays and tensors join at the second arrow, so that every conversion has one implementation. No
image has more pixels than a limit, `MAX_PIXELS` unless another one is given.

Depth: 16-bit gray is divided by 257 and rounded. 16-bit *colour* reaches us as the upper 8 bits,
because Pillow decodes no more of it: exact for 8-bit values scaled by 257, and otherwise up to one
level lower or higher.

Colour: with `color_profile="srgb"` the ICC profile that a file or a PIL image carries is applied to
its 8-bit pixels, before alpha is composited and gray is made; see `color_profile.py`. With
`"ignore"`, without a profile, and where a profile cannot be applied, values are taken for sRGB, and
CMYK is converted by its plain formula. Arrays and tensors carry no profile.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image
from torch import Tensor

from imagetok.errors import ImageTypeError, ImageValueError, InvalidValueError
from imagetok.images.color_profile import ProfileError, to_srgb

Pixels = npt.NDArray[np.uint8]

MAX_PIXELS = 50_000_000
"""Most pixels of one image, unless more are allowed. An 11 kB file can unpack to far more than a
machine's memory."""

MOST_PIXELS = 178_956_970
"""Most pixels that can be allowed: where Pillow itself ends, at twice its MAX_IMAGE_PIXELS."""

LIMIT_REMEDY = f", or raise max_pixels, to at most {MOST_PIXELS}"
"""How the message about an image over the limit ends."""

CHANNELS = (1, 3, 4)
"""Channels that an image or a tokenizer can have: gray, RGB, RGBA."""

_WIDE_MODES = ("I;16", "I;16L", "I;16B", "I;16N")

_TARGETS = {
    "1": ("L", "LA"),
    "L": ("L", "LA"),
    "LA": ("LA", "LA"),
    "La": ("LA", "LA"),
    "P": ("RGB", "RGBA"),
    "PA": ("RGBA", "RGBA"),
    "RGB": ("RGB", "RGBA"),
    "RGBA": ("RGBA", "RGBA"),
    "RGBa": ("RGBA", "RGBA"),
    "RGBX": ("RGB", "RGB"),
    "CMYK": ("RGB", "RGB"),
    "YCbCr": ("RGB", "RGB"),
    "HSV": ("RGB", "RGB"),
}
"""Pillow's mode -> mode without and with transparency that it is converted to."""

_REFUSED = {
    "I": "32-bit integers, whose range is not known",
    "F": "floating-point numbers, whose range is not known",
    "LAB": "CIELAB colours, which need a colour profile",
}

_DIVIDED_BY_257 = ((np.arange(2**16) + 128) // 257).astype(np.uint8)

_BITS_TAG, _PHOTOMETRIC_TAG, _BLACK_IS_ZERO = 258, 262, 1


def check_limit(max_pixels: int) -> None:
    """Refuse a limit that is not an integer in 1..`MOST_PIXELS`.

    Raises:
        InvalidValueError: It is not.
    """
    if type(max_pixels) is not int or not 1 <= max_pixels <= MOST_PIXELS:
        raise InvalidValueError(
            f"max_pixels is {max_pixels!r}; expected an integer in 1..{MOST_PIXELS}, which is as "
            "many pixels as Pillow opens"
        )


def limit_text(max_pixels: int) -> str:
    """A limit as messages state it."""
    millions, rest = divmod(max_pixels, 10**6)
    return f"{max_pixels} pixels" if rest else f"{millions} megapixels"


def check_size(height: int, width: int, name: str, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse an empty image, and one of more pixels than a limit.

    Args:
        height: Height in pixels.
        width: Width in pixels.
        name: What the message calls the image.
        max_pixels: The limit.

    Raises:
        ImageValueError: A side is zero, or height * width is over the limit.
    """
    if height < 1 or width < 1:
        raise ImageValueError(
            f"{name} is {height} high and {width} wide; both sides must have at least one pixel"
        )
    if height * width > max_pixels:
        raise ImageValueError(
            f"{name} is {height} high and {width} wide, {height * width} pixels, over the limit of "
            f"{limit_text(max_pixels)}; shrink it or cut it into pieces first{LIMIT_REMEDY}"
        )


def check_mode(image: Image.Image, name: str) -> None:
    """Refuse an image whose pixels cannot be read as 8-bit values with certainty.

    Raises:
        ImageTypeError: The pixels are 32-bit integers, floating-point numbers, CIELAB, 16-bit gray
            with another range than black = 0 and white = 65535, or of an unknown mode.
    """
    if image.mode in _WIDE_MODES:
        tags: Any = getattr(image, "tag_v2", None)
        if tags and (tags.get(_BITS_TAG), tags.get(_PHOTOMETRIC_TAG)) != ((16,), _BLACK_IS_ZERO):
            raise ImageTypeError(
                f"{name} is a TIFF of over 8 bits in which white is not 65535; scale its pixels "
                "to 0..255 and pass them as a uint8 array"
            )
    elif image.mode not in _TARGETS:
        held = _REFUSED.get(image.mode, f"pixels of mode {image.mode}, which is not known")
        raise ImageTypeError(
            f"{name} holds {held}; pass its pixels as a uint8 array in 0..255 or as a float "
            "tensor in [0, 1]"
        )


def pixels_of(
    image: Image.Image,
    color_profile: str = "ignore",
    notes: list[str] | None = None,
    decoded: Pixels | None = None,
) -> Pixels:
    """The upright pixels of a PIL image whose mode has been checked.

    Args:
        image: The image, which is decoded unless its pixels are given.
        color_profile: `ignore`, or `srgb` to apply the profile that it carries.
        notes: A list that gets a message where there is a profile that cannot be applied.
        decoded: Its gray or RGB pixels as stored, (H, W, 1 or 3).

    Returns:
        uint8 array (H, W, C): C = 1 gray, 2 gray and alpha, 3 RGB, 4 RGBA. It may share memory
        with the image.
    """
    pixels = None
    if color_profile != "ignore" and "icc_profile" in image.info:
        try:
            pixels = _in_srgb(image, image.info["icc_profile"], decoded)
        except ProfileError as error:
            if notes is not None:
                notes.append(f"its colour profile is ignored: {error}")
    if pixels is None:
        pixels = _plain(image) if decoded is None else decoded
    return _upright(pixels, orientation(image))


def _plain(image: Image.Image) -> Pixels:
    if image.mode in _WIDE_MODES:
        return _narrow(image)
    mode = _TARGETS[image.mode][image.has_transparency_data]
    pixels: Pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _in_srgb(image: Image.Image, profile: object, decoded: Pixels | None) -> Pixels:
    if image.mode == "CMYK":
        return to_srgb(np.asarray(image), "CMYK", profile)
    pixels = _plain(image) if decoded is None else decoded
    count = 1 if pixels.shape[-1] < 3 else 3
    color, alpha = pixels[..., :count], pixels[..., count:]
    color = to_srgb(color, "L" if count == 1 else "RGB", profile)
    return np.concatenate([color, alpha], axis=-1)


def _narrow(image: Image.Image) -> Pixels:
    wide = np.asarray(image)
    gray: Pixels = _DIVIDED_BY_257[wide]
    transparent = image.info.get("transparency")
    if transparent is None:
        return gray[:, :, None]
    alpha = np.where(wide == transparent, np.uint8(0), np.uint8(255))
    return np.stack([gray, alpha], axis=-1)


def orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8 of an image; 1 if it has none or its metadata cannot be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata says nothing about the pixels, and is common
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def to_channels(pixels: Pixels, channels: int, background: tuple[int, int, int]) -> Tensor:
    """Convert an image to the number of channels of a tokenizer.

    Args:
        pixels: uint8 array (H, W, C): C = 1 gray, 2 gray and alpha, 3 RGB, 4 RGBA.
        channels: 1 gray, 3 RGB, or 4 RGBA, opaque if the image has no alpha.
        background: RGB colour under transparent pixels; unused for 4 channels.

    Returns:
        uint8 tensor (channels, H, W), in memory of its own, where the channels of a pixel lie
        together.

    Raises:
        InvalidValueError: `channels` is not 1, 3 or 4.
    """
    if channels not in CHANNELS:
        raise InvalidValueError(f"channels is {channels}; choose one of: 1, 3, 4")
    has_alpha = pixels.shape[-1] in (2, 4)
    color = pixels[..., :-1] if has_alpha else pixels
    alpha = pixels[..., -1:] if has_alpha else np.full_like(pixels[..., :1], 255)
    if channels == 4:
        rgb = np.broadcast_to(color, (*color.shape[:2], 3))
        return _to_tensor(np.concatenate([rgb, alpha], axis=-1))
    if has_alpha and alpha.min() < 255:
        color = _composite(color, alpha, background)
    if channels == 1:
        return _to_tensor(_luma(color) if color.shape[-1] == 3 else color)
    return _to_tensor(np.broadcast_to(color, (*color.shape[:2], 3)))


def to_unit(
    pixels: Tensor, dtype: torch.dtype = torch.float32, out: Tensor | None = None
) -> Tensor:
    """Convert 8-bit values to floats in [0, 1]; the only division by 255 of the package.

    Args:
        pixels: uint8 tensor of any shape, on any device.
        dtype: Float type of the result. The division runs in float32 or better and is rounded to
            a narrower type afterwards.
        out: float32 tensor of the shape and device of `pixels` that takes the quotients, so that
            its memory is used again; None allocates one.

    Returns:
        pixels / 255, correctly rounded: the same bits on every device.

    Raises:
        ImageTypeError: `pixels` is not a uint8 tensor.
    """
    if pixels.dtype != torch.uint8:
        raise ImageTypeError(f"found dtype {pixels.dtype}; 8-bit pixels are uint8 in 0..255")
    exact = torch.promote_types(dtype, torch.float32)
    x = pixels.to(exact) if out is None else out.copy_(pixels)
    # By a tensor: CUDA multiplies by the rounded reciprocal of a plain number instead.
    return x.div_(torch.full((), 255, dtype=exact, device=x.device)).to(dtype)


def _composite(color: Pixels, alpha: Pixels, background: tuple[int, int, int]) -> Pixels:
    """Round (alpha * color + (255 - alpha) * background) / 255; the sum stays under 2^16."""
    weight = alpha.astype(np.uint16)
    under = np.array(background, dtype=np.uint16)
    return ((weight * color + (255 - weight) * under + 127) // 255).astype(np.uint8)


def _luma(rgb: Pixels) -> Pixels:
    """ITU-R 601 luma, (0.299 R + 0.587 G + 0.114 B) rounded, in 16-bit fixed point."""
    red, green, blue = np.moveaxis(rgb.astype(np.uint32), -1, 0)
    luma = (19_595 * red + 38_470 * green + 7_471 * blue + 32_768) >> 16
    gray: Pixels = luma.astype(np.uint8)
    return gray[..., None]


def _to_tensor(pixels: Pixels) -> Tensor:
    return torch.from_numpy(np.array(pixels, order="C")).permute(2, 0, 1)
