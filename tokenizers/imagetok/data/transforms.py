"""Training transforms: random crop and flip as functions of a key."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from imagetok.errors import InvalidValueError
from imagetok.images import Box, Preprocessor, center_box, read_image, resize
from imagetok.keys import generator, make_key


@dataclass(frozen=True)
class TrainTransform:
    """A picture as training sees it under a key.

    Attributes:
        preprocessor: Decides size, channels, filter and background.
        crop_scale: Crops have the shape of `image_size`; their side is drawn uniformly from this
            range of shares of the largest one that fits, their place uniformly. None takes the
            preprocessor's own centre crop.
        flip: Mirror left and right with probability a half.

    Raises:
        InvalidValueError: `crop_scale` is no range (low, high) within (0, 1].
    """

    preprocessor: Preprocessor
    crop_scale: tuple[float, float] | None = None
    flip: bool = False

    def __post_init__(self) -> None:
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise InvalidValueError(
                f"crop_scale {self.crop_scale} is no range (low, high) within (0, 1]"
            )

    def __call__(self, picture: object, key: int) -> Tensor:
        """Read, crop, resize and perhaps mirror a picture.

        Args:
            picture: Anything that `imagetok.images.read_image` takes.
            key: Decides crop and flip, from `imagetok.keys`.

        Returns:
            uint8 tensor (C, H, W) on the CPU.

        Raises:
            ImagetokError: The picture is refused.
        """
        parts = self.preprocessor
        pixels = read_image(picture, parts.channels, parts.background)
        box = self._box(pixels.shape[1], pixels.shape[2], key)
        pixels = resize(pixels, box, parts.image_size, parts.resize)
        return pixels.flip(-1) if self.flip and _draw(key, "flip") < 0.5 else pixels

    def _box(self, height: int, width: int, key: int) -> Box:
        largest = center_box(height, width, self.preprocessor.image_size)
        if self.crop_scale is None:
            return largest
        low, high = self.crop_scale
        share, down, across = (_draw(key, f"crop/{part}") for part in ("side", "top", "left"))
        share = low + (high - low) * share
        box_height, box_width = (max(1, round(side * share)) for side in largest[2:])
        top = int(down * (height - box_height + 1))
        left = int(across * (width - box_width + 1))
        return top, left, box_height, box_width


def _draw(key: int, purpose: str) -> float:
    """Uniform number in [0, 1)."""
    random = generator(make_key(key, 0, 0, purpose))
    return float(torch.rand((), generator=random, dtype=torch.float64))
