"""Small ICC profiles, written by hand: littlecms makes no other than sRGB through Pillow."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np

WHITE = (0.9642, 1.0, 0.8249)
"""D50, the white of all profiles."""

DISPLAY_P3 = (
    (0.51512, 0.24120, -0.00105),
    (0.29198, 0.69225, 0.04189),
    (0.15710, 0.06657, 0.78407),
)
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
"""XYZ of red, green and blue, adapted to D50."""


def rgb_profile(primaries: tuple[tuple[float, ...], ...]) -> bytes:
    """RGB with the tone curve of sRGB."""
    colors = {
        name: _xyz(color) for name, color in zip(("rXYZ", "gXYZ", "bXYZ"), primaries, strict=True)
    }
    return _profile(
        "mntr", "RGB ", "XYZ ", colors | dict.fromkeys(("rTRC", "gTRC", "bTRC"), _tone())
    )


def gray_profile(gamma: float) -> bytes:
    """Gray with a power for its tone curve."""
    curve = b"curv" + struct.pack(">IIH", 0, 1, round(gamma * 256))
    return _profile("mntr", "GRAY", "XYZ ", {"kTRC": curve})


def cmyk_profile() -> bytes:
    """CMYK in which ink of any kind makes paper gray, as no plain formula does."""
    inks = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), axis=-1).reshape(-1, 4)
    lightness = np.round(255 * (1 - inks.mean(axis=1)))
    lab = np.stack([lightness, np.full(16, 128), np.full(16, 128)], axis=-1).astype(np.uint8)
    ramp = bytes(range(256))
    identity = struct.pack(">9i", *np.eye(3, dtype=np.int64).reshape(-1) * 65536)
    table = (
        b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + identity + ramp * 4 + lab.tobytes() + ramp * 3
    )
    return _profile("prtr", "CMYK", "Lab ", {"A2B0": table})


def _profile(kind: str, space: str, connection: str, tags: Mapping[str, bytes]) -> bytes:
    named = {
        "desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78),
        "wtpt": _xyz(WHITE),
        **tags,
    }
    place, table, body = 132 + 12 * len(named), b"", b""
    for name, data in named.items():
        table += name.encode() + struct.pack(">II", place + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = place + len(body)
    head = struct.pack(">I4sI", size, b"lcms", 0x0240_0000)
    head += (kind + space + connection).encode() + bytes(12) + b"acsp" + bytes(28) + _numbers(WHITE)
    return head.ljust(128, b"\0") + struct.pack(">I", len(named)) + table + body


def _tone() -> bytes:
    curve = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    return b"para" + bytes(4) + struct.pack(">HH", 3, 0) + _numbers(curve)


def _xyz(color: tuple[float, ...]) -> bytes:
    return b"XYZ " + bytes(4) + _numbers(color)


def _numbers(values: tuple[float, ...]) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)
