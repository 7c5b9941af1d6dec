"""The pixel contract, both ways; the one place that opens a picture.

    path, bytes, PIL image, uint8 array or tensor, image column
          |  read_picture: format and size checked, upright, 8 bits, channels as asked
          v
    uint8 (C, H, W) --resize: centre box, antialiased--> uint8 (B, C, h, w) --/ 255--> x
    float tensor ----checked: [0, 1], layout, channels, divisible sides-----------> x

    x_hat --to_pil, grid_image--> PIL images

Pictures are converted, float tensors are taken as prepared; whatever is ambiguous or unreadable
is refused in words. One picture gives the same pixels on every route.
"""

from imagetok.images.files import FORMATS
from imagetok.images.limits import MAX_PIXELS
from imagetok.images.preprocessor import Preprocessor
from imagetok.images.reading import picture_size, read_picture
from imagetok.images.rendering import grid_image, to_pil
from imagetok.images.resizing import FILTERS, Box, center_box, resize

__all__ = [
    "FILTERS",
    "FORMATS",
    "MAX_PIXELS",
    "Box",
    "Preprocessor",
    "center_box",
    "grid_image",
    "picture_size",
    "read_picture",
    "resize",
    "to_pil",
]
