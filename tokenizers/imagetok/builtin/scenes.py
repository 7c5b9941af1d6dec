"""Scenes of `builtin:shapes` and their captions: what stands in image number n, and where.

A scene is a background and one to four objects that do not overlap. It is a pure function of its
index. Positions and lengths are fractions of the image's side, whole multiples of 1/4096, and
are drawn with integer arithmetic from the raw words of a Philox generator, so that every machine
and every version of numpy draws the same scene.

The objects of a scene have different colours: a description names one object only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from imagetok.errors import InvalidValueError

T = TypeVar("T")
RGB = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "diamond", "star", "ring", "cross", "hexagon")
TEXTURES = ("solid", "striped", "dotted", "checkered")
SIZES = ("small", "large")
COLOURS: dict[str, RGB] = {
    "red": (206, 24, 44),
    "orange": (245, 130, 20),
    "yellow": (250, 230, 50),
    "green": (46, 158, 66),
    "cyan": (52, 198, 216),
    "blue": (30, 90, 215),
    "purple": (135, 45, 170),
    "pink": (240, 124, 188),
}
MAX_OBJECTS = 4

_UNIT = 4096
_RADII = {"small": (400, 480), "large": (640, 800)}
_REACH = 1.2
_GAP = 80
_TRIES = 40


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene; positions and lengths are fractions of the image's side.

    Attributes:
        shape: One of `SHAPES`.
        colour: A name in `COLOURS`.
        texture: One of `TEXTURES`.
        size: One of `SIZES`.
        x: Centre, from the left edge.
        y: Centre, from the top edge.
        radius: Half the width of the shape's template.
        direction: Way along which stripes follow one another: 0 rightwards, 1 downwards, 2 and 3
            along the diagonals.
        phase: Shift of the texture in the object, as a share of its period, (x, y) in [0, 1).
    """

    shape: str
    colour: str
    texture: str
    size: str
    x: float
    y: float
    radius: float
    direction: int
    phase: tuple[float, float]

    @property
    def reach(self) -> float:
        """Distance from the centre that no part of the object exceeds."""
        return self.radius * _REACH


@dataclass(frozen=True)
class Background:
    """A plain colour (`start == end`) or a linear gradient.

    Attributes:
        tone: `light` or `dark`.
        start: Colour where the gradient begins.
        end: Colour where it ends.
        direction: 0 rightwards, 1 downwards, 2 and 3 along the diagonals.
    """

    tone: str
    start: RGB
    end: RGB
    direction: int


@dataclass(frozen=True)
class Scene:
    """A background and its objects, in the order in which a caption names them."""

    background: Background
    objects: tuple[SceneObject, ...]


class _Draws:
    """Integers from the raw 64-bit words of a counter-based generator."""

    def __init__(self, key: int) -> None:
        self._bits = np.random.Philox(key=key)
        self._words: list[int] = []

    def below(self, high: int) -> int:
        """Uniform integer in [0, high)."""
        if not self._words:
            self._words = self._bits.random_raw(64).tolist()[::-1]
        return ((self._words.pop() >> 32) * high) >> 32

    def between(self, low: int, high: int) -> int:
        """Uniform integer in [low, high]."""
        return low + self.below(high - low + 1)

    def choice(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different options in random order."""
        pool = list(options)
        return [pool.pop(self.below(len(pool))) for _ in range(count)]


def scene(index: int) -> Scene:
    """The scene of image number `index`.

    Args:
        index: Any integer from 0; equal indices give equal scenes as long as
            `imagetok.builtin.shapes.DRAWING_VERSION` stays the same.

    Raises:
        InvalidValueError: `index` is negative or over 2^63.
    """
    if not 0 <= index < 2**63:
        raise InvalidValueError(f"a scene's index lies in [0, 2^63), got {index}")
    draws = _Draws(index)
    background = _draw_background(draws)
    count = draws.between(1, MAX_OBJECTS)
    while (places := _place(draws, count)) is None:
        pass
    colours = draws.sample(tuple(COLOURS), count)
    objects = [
        SceneObject(
            shape=draws.choice(SHAPES),
            colour=colour,
            texture=draws.choice(TEXTURES),
            size=size,
            x=x / _UNIT,
            y=y / _UNIT,
            radius=radius / _UNIT,
            direction=draws.below(4),
            phase=(draws.below(_UNIT) / _UNIT, draws.below(_UNIT) / _UNIT),
        )
        for colour, (size, radius, x, y) in zip(colours, places, strict=True)
    ]
    return Scene(background, tuple(objects))


def caption(scene: Scene) -> str:
    """Describe a scene in one English phrase, objects in the scene's order.

    Every relation is that of the first-named object to another one, read along the axis on which
    the two centres lie further apart: "a large red circle above a small blue striped square, left
    of a small green star and below a large pink dotted ring".
    """
    first, *others = scene.objects
    relations = [f"{_relation(first, other)} {_describe(other)}" for other in others]
    text = " ".join([_describe(first), ", ".join(relations[:-1])]).strip()
    if len(relations) > 1:
        return f"{text} and {relations[-1]}"
    return " ".join([text, *relations])


def _draw_background(draws: _Draws) -> Background:
    tone = draws.choice(("light", "dark"))
    start = _draw_tone(draws, tone)
    end = _draw_tone(draws, tone) if draws.below(2) else start
    return Background(tone, start, end, draws.below(4))


def _draw_tone(draws: _Draws, tone: str) -> RGB:
    level = draws.between(206, 238) if tone == "light" else draws.between(26, 62)
    red, green, blue = (level + draws.between(-14, 14) for _ in range(3))
    return red, green, blue


def _place(draws: _Draws, count: int) -> list[tuple[str, int, int, int]] | None:
    """Sizes, radii and centres of `count` objects that keep apart; None if a try fails."""
    places: list[tuple[str, int, int, int]] = []
    for _ in range(count):
        size = draws.choice(SIZES)
        radius = draws.between(*_RADII[size])
        reach = math.ceil(radius * _REACH)
        for _ in range(_TRIES):
            x = draws.between(reach, _UNIT - reach)
            y = draws.between(reach, _UNIT - reach)
            if all(_apart(x, y, radius, other) for other in places):
                places.append((size, radius, x, y))
                break
        else:
            return None
    return places


def _apart(x: int, y: int, radius: int, other: tuple[str, int, int, int]) -> bool:
    _, other_radius, other_x, other_y = other
    distance = math.ceil((radius + other_radius) * _REACH) + _GAP
    return (x - other_x) ** 2 + (y - other_y) ** 2 >= distance**2


def _describe(drawn: SceneObject) -> str:
    texture = [] if drawn.texture == "solid" else [drawn.texture]
    return " ".join(["a", drawn.size, drawn.colour, *texture, drawn.shape])


def _relation(first: SceneObject, other: SceneObject) -> str:
    across, down = first.x - other.x, first.y - other.y
    if abs(across) > abs(down):
        return "left of" if across < 0 else "right of"
    return "above" if down < 0 else "below"
