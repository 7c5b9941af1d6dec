"""Are the drawn objects still there? Colours and positions on a reconstruction of a scene.

For every object of the scene, the reconstruction is looked at inside the object's box and a
margin around it, with the pixels of its neighbours left out:

- Colour: the mean over pixels that show the object's main colour (away from edges, where there
  are any) lies nearer to that colour than to any other one of the palette, and within
  `COLOUR_TOLERANCE` of it.
- Position: pixels nearer to the object's colours than to the background make up a region that
  covers the object (intersection over union at least `MIN_OVERLAP`) and whose centre of mass lies
  within `POSITION_TOLERANCE` of the object's.

An image without the objects passes neither, a shifted one loses the position, one with other
colours loses the colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imagetok.builtin.drawing import (
    POINTS,
    Coverage,
    Mask,
    Pixels,
    coverage,
    render_background,
    second_colour,
)
from imagetok.builtin.scenes import COLOURS, Scene, SceneObject
from imagetok.errors import ImageTypeError, ImageValueError, InvalidValueError

COLOUR_TOLERANCE = 80.0
"""Largest distance in RGB (0 to 255 a channel) between a colour and its reconstruction."""

MIN_OVERLAP = 0.6
"""Least intersection over union of an object and the region found."""

POSITION_TOLERANCE = 0.025
"""Largest distance between centres of mass, as a share of the side, and at least one pixel."""

MIN_CHECK_SIZE = 48
"""Least side of an image, in pixels, at which the smallest objects can be told apart."""

_MARGIN = 0.08
_PALETTE = np.asarray(list(COLOURS.values()), dtype=np.float64)
_NAMES = tuple(COLOURS)


@dataclass(frozen=True)
class ObjectCheck:
    """What is left of one drawn object.

    Attributes:
        drawn: The object.
        colour_ok: Its colour is kept.
        position_ok: It lies where it was drawn.
    """

    drawn: SceneObject
    colour_ok: bool
    position_ok: bool


@dataclass(frozen=True)
class CheckRate:
    """Shares of objects, in [0, 1], whose colour and whose position are kept."""

    colours: float
    positions: float
    num_objects: int


def check_rate(checks: Sequence[ObjectCheck]) -> CheckRate:
    """Sum up the checks of any number of images.

    Raises:
        InvalidValueError: `checks` is empty.
    """
    if not checks:
        raise InvalidValueError("a check rate needs at least one checked object, got none")
    return CheckRate(
        colours=sum(check.colour_ok for check in checks) / len(checks),
        positions=sum(check.position_ok for check in checks) / len(checks),
        num_objects=len(checks),
    )


def check_scene(reconstruction: Pixels, scene: Scene) -> list[ObjectCheck]:
    """Look for every object of a scene in a reconstruction of its image.

    Args:
        reconstruction: uint8 (S, S, 3), RGB, with S >= 48.
        scene: What had been drawn.

    Returns:
        One check per object, in the scene's order.

    Raises:
        ImageTypeError: `reconstruction` is not a uint8 array.
        ImageValueError: It is not square, does not have three channels, or is too small.
    """
    if not isinstance(reconstruction, np.ndarray) or reconstruction.dtype != np.uint8:
        found = getattr(reconstruction, "dtype", type(reconstruction).__name__)
        raise ImageTypeError(f"a reconstruction is a uint8 numpy array (S, S, 3), got {found}")
    size = reconstruction.shape[0] if reconstruction.ndim else 0
    if reconstruction.shape != (size, size, 3) or size < MIN_CHECK_SIZE:
        raise ImageValueError(
            f"a reconstruction has shape (S, S, 3) with S >= {MIN_CHECK_SIZE}, "
            f"got {reconstruction.shape}"
        )
    ground = render_background(scene.background, size).astype(np.float64)
    covers = [coverage(drawn, size) for drawn in scene.objects]
    pixels = reconstruction.astype(np.float64)
    return [
        ObjectCheck(
            drawn,
            _colour_is_kept(pixels, drawn, cover),
            _position_is_kept(pixels, ground, scene, number, covers),
        )
        for number, (drawn, cover) in enumerate(zip(scene.objects, covers, strict=True))
    ]


def _colour_is_kept(pixels: NDArray[np.float64], drawn: SceneObject, cover: Coverage) -> bool:
    main = cover.inside if cover.second is None else cover.inside - cover.second
    pure = main >= min(POINTS, int(main.max()))
    core = _erode(pure)
    chosen = pixels[cover.window][core if core.any() else pure]
    distances = np.sqrt(((_PALETTE - chosen.mean(axis=0)) ** 2).sum(axis=1))
    nearest = int(distances.argmin())
    return _NAMES[nearest] == drawn.colour and float(distances[nearest]) <= COLOUR_TOLERANCE


def _erode(mask: Mask) -> Mask:
    """Pixels whose four neighbours lie in the mask too."""
    framed = np.pad(mask, 1)
    return mask & framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]


def _position_is_kept(
    pixels: NDArray[np.float64],
    ground: NDArray[np.float64],
    scene: Scene,
    number: int,
    covers: Sequence[Coverage],
) -> bool:
    drawn, size = scene.objects[number], len(pixels)
    window = _widen(covers[number], size)
    free = ~_mask([cover for n, cover in enumerate(covers) if n != number], size)[window]
    truth = _mask([covers[number]], size)[window]
    near = _distance_to_object(pixels[window], drawn, scene.background.tone)
    found = (near < ((pixels - ground)[window] ** 2).sum(axis=-1)) & free
    if not found.any():
        return False
    overlap = (found & truth).sum() / (found | truth).sum()
    offset = np.subtract(_centre(found), _centre(truth))
    tolerance = max(1.0, POSITION_TOLERANCE * size)
    return bool(overlap >= MIN_OVERLAP and offset @ offset <= tolerance**2)


def _widen(cover: Coverage, size: int) -> tuple[slice, slice]:
    """The object's box with a margin, as an index into an image."""
    top, left, height, width = cover.box
    margin = max(1, round(_MARGIN * size))
    return (
        slice(max(0, top - margin), min(size, top + height + margin)),
        slice(max(0, left - margin), min(size, left + width + margin)),
    )


def _mask(covers: Sequence[Coverage], size: int) -> Mask:
    """Pixels of which at least half lies in one of the objects, bool (size, size)."""
    mask = np.zeros((size, size), dtype=np.bool_)
    for cover in covers:
        mask[cover.window] |= 2 * cover.inside >= POINTS
    return mask


def _distance_to_object(
    pixels: NDArray[np.float64], drawn: SceneObject, tone: str
) -> NDArray[np.float64]:
    """Squared distance (h, w) to the object's colours or, in a texture, any mixture of both."""
    colour = np.asarray(COLOURS[drawn.colour], dtype=np.float64)
    offset = pixels - colour
    if drawn.texture != "solid":
        way = np.asarray(second_colour(COLOURS[drawn.colour], tone)) - colour
        share = np.clip(offset @ way / (way @ way), 0, 1)
        offset = offset - share[..., None] * way
    return np.asarray((offset**2).sum(axis=-1))


def _centre(mask: Mask) -> tuple[float, float]:
    """Centre of mass in pixels, (row, column)."""
    rows, columns = np.nonzero(mask)
    return float(rows.mean()), float(columns.mean())
