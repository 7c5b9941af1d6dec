"""The rasteriser of `builtin:shapes`: a scene to pixels at any size.

Every pixel is sampled at 4 x 4 points, at each of which it is decided whether the point lies in
an object and whether in the dark or in the light part of its texture. Colours are then mixed by
the counts of points, in integers. Point tests use only the operations that IEEE 754 rounds
exactly (no sine, no power, no fused product), so that pixels are the same on every machine.

An object's second colour is a shade of its own one on a light background and a tint of it on a
dark one: both parts of a texture stand out against the background.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from imagetok.builtin.scenes import COLOURS, RGB, Background, Scene, SceneObject
from imagetok.errors import InvalidValueError

Points: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]
Pixels: TypeAlias = NDArray[np.uint8]

SAMPLES = 4
POINTS = SAMPLES * SAMPLES
MIN_SIZE, MAX_SIZE = 8, 4096

_PERIOD = 0.1
_CHECK_PERIOD = 0.14
_DOT = 0.3
_HALF_SQRT2 = 0.7071067811865476
_PENTAGON = (
    (0.0, -1.0),
    (0.9510565162951535, -0.3090169943749474),
    (0.5877852522924731, 0.8090169943749475),
    (-0.5877852522924731, 0.8090169943749475),
    (-0.9510565162951535, -0.3090169943749474),
)
"""Outward normals (x, y downwards) of a pentagram's five lines."""


def _circle(u: Points, v: Points) -> Mask:
    return u * u + v * v <= 0.98


def _square(u: Points, v: Points) -> Mask:
    return (np.abs(u) <= 0.84) & (np.abs(v) <= 0.84)


def _triangle(u: Points, v: Points) -> Mask:
    return (v <= 0.75) & (np.abs(u) * 1.75 <= v + 1.0)


def _diamond(u: Points, v: Points) -> Mask:
    return np.abs(u) * 1.3 + np.abs(v) <= 1.15


def _star(u: Points, v: Points) -> Mask:
    """Points on the inner side of at least four of the five lines."""
    inner = sum(((u * x + v * y) <= 0.365).astype(np.uint8) for x, y in _PENTAGON)
    return np.asarray(inner) >= 4


def _ring(u: Points, v: Points) -> Mask:
    square = u * u + v * v
    return (square <= 1.0) & (square >= 0.27)


def _cross(u: Points, v: Points) -> Mask:
    across, down = np.abs(u), np.abs(v)
    return ((across <= 0.36) & (down <= 1.0)) | ((across <= 1.0) & (down <= 0.36))


def _hexagon(u: Points, v: Points) -> Mask:
    across, down = np.abs(u), np.abs(v)
    return (down <= 0.87) & (across * 0.866 + down * 0.5 <= 0.87)


_SHAPES: dict[str, Callable[[Points, Points], Mask]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "diamond": _diamond,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "hexagon": _hexagon,
}


def _cycle(position: Points, period: float, phase: float) -> Points:
    """Place within the period, in [0, 1)."""
    cycles = position / period + phase
    return cycles - np.floor(cycles)


def _second(drawn: SceneObject, x: Points, y: Points) -> Mask | None:
    """Points of the texture's second colour; None where there is no texture."""
    if drawn.texture == "solid":
        return None
    if drawn.texture == "striped":
        ways = (x, y, (x + y) * _HALF_SQRT2, (x - y) * _HALF_SQRT2)
        return _cycle(ways[drawn.direction], _PERIOD, drawn.phase[0]) < 0.5
    period = _CHECK_PERIOD if drawn.texture == "checkered" else _PERIOD
    u = _cycle(x, period, drawn.phase[0]) - 0.5
    v = _cycle(y, period, drawn.phase[1]) - 0.5
    if drawn.texture == "checkered":
        return (u < 0) ^ (v < 0)
    return u * u + v * v <= _DOT * _DOT


@dataclass(frozen=True)
class Coverage:
    """Where an object lies on the pixels of an image.

    Attributes:
        box: (top, left, height, width) in pixels; nothing of the object lies outside.
        inside: uint8 (height, width), how many of `POINTS` points lie in the object.
        second: uint8 (height, width), how many of these have the second colour; None where there
            is no texture.
    """

    box: tuple[int, int, int, int]
    inside: Pixels
    second: Pixels | None

    @property
    def window(self) -> tuple[slice, slice]:
        """The box as an index into an image."""
        top, left, height, width = self.box
        return slice(top, top + height), slice(left, left + width)


def coverage(drawn: SceneObject, size: int) -> Coverage:
    """Count the sample points of each pixel that lie in an object.

    Args:
        drawn: An object of a scene.
        size: Side of the image in pixels.
    """
    left, width = _span(drawn.x, drawn.reach, size)
    top, height = _span(drawn.y, drawn.reach, size)
    x = _sample_points(size)[None, left * SAMPLES : (left + width) * SAMPLES] - drawn.x
    y = _sample_points(size)[top * SAMPLES : (top + height) * SAMPLES, None] - drawn.y
    inside = _SHAPES[drawn.shape](x / drawn.radius, y / drawn.radius)
    second = _second(drawn, x, y)
    return Coverage(
        (top, left, height, width),
        _count(inside),
        None if second is None else _count(inside & second),
    )


def _span(centre: float, reach: float, size: int) -> tuple[int, int]:
    """First pixel and number of pixels that an extent touches."""
    first = max(0, int((centre - reach) * size))
    last = min(size - 1, int((centre + reach) * size))
    return first, last - first + 1


@lru_cache(maxsize=8)
def _sample_points(size: int) -> Points:
    return (np.arange(size * SAMPLES) + 0.5) / (size * SAMPLES)


def _count(points: Mask) -> Pixels:
    """Add up the points of each pixel: bool (S h, S w) to uint8 (h, w)."""
    fine = points.view(np.uint8)
    rows = np.add.reduce([fine[n::SAMPLES] for n in range(SAMPLES)], dtype=np.uint8)
    return np.asarray(np.add.reduce([rows[:, n::SAMPLES] for n in range(SAMPLES)], dtype=np.uint8))


def second_colour(colour: RGB, tone: str) -> RGB:
    """The other colour of a texture: a shade on `light` backgrounds, a tint on `dark` ones."""
    if tone == "light":
        red, green, blue = (value * 7 // 16 for value in colour)
    else:
        red, green, blue = (value + (255 - value) * 10 // 16 for value in colour)
    return red, green, blue


def render(scene: Scene, size: int) -> Pixels:
    """Draw a scene.

    Args:
        scene: What to draw, from `imagetok.builtin.scene`.
        size: Side of the image in pixels.

    Returns:
        uint8 (size, size, 3), RGB.

    Raises:
        InvalidValueError: `size` is not in [8, 4096].
    """
    pixels = render_background(scene.background, size)
    for drawn in scene.objects:
        _paint(pixels, drawn, scene.background.tone)
    return pixels


def render_background(background: Background, size: int) -> Pixels:
    """The background alone, uint8 (size, size, 3); errors as in `render`."""
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise InvalidValueError(
            f"a scene is drawn at {MIN_SIZE} to {MAX_SIZE} pixels a side, got size={size}"
        )
    pixels = np.empty((size, size, 3), dtype=np.uint8)
    if background.start == background.end:
        pixels[:] = background.start
        return pixels
    index = np.arange(size)
    across, down = 2 * index[None, :, None] + 1, 2 * index[:, None, None] + 1
    ways = (across, down, across + down, across + down[::-1])
    way = ways[background.direction]
    whole = 2 * size if background.direction < 2 else 4 * size
    start, end = np.asarray(background.start), np.asarray(background.end)
    pixels[:] = (start * (whole - way) + end * way + whole // 2) // whole
    return pixels


def _paint(pixels: Pixels, drawn: SceneObject, tone: str) -> None:
    """Lay an object over the image, in place."""
    covered = coverage(drawn, len(pixels))
    colour = COLOURS[drawn.colour]
    inside = covered.inside[..., None].astype(np.uint16)
    below = pixels[covered.window]
    mixed = below * (POINTS - inside) + POINTS // 2
    if covered.second is None:
        mixed += inside * np.asarray(colour, np.uint16)
    else:
        second = covered.second[..., None].astype(np.uint16)
        mixed += (inside - second) * np.asarray(colour, np.uint16)
        mixed += second * np.asarray(second_colour(colour, tone), np.uint16)
    pixels[covered.window] = mixed // POINTS
