"""The pixel contract, both ways; the one place that opens an image file.

    path, bytes, PIL image, uint8 array or tensor, image column
          |  read_image: format and size checked, upright, 8 bits, sRGB, channels as asked
          v
    uint8 (C, H, W) --resize: centre box, antialiased--> uint8 (B, C, h, w) --to_unit--> x
    float tensor ----checked: [0, 1], layout, channels, divisible sides----------------> x

    x_hat --to_pil, grid_image--> PIL images

8-bit images are converted, float tensors are taken as prepared; whatever is ambiguous or unreadable
is refused with the remedy. The same image gives the same pixels on every route.
"""

from imagetok.images.color_profile import color_library
from imagetok.images.imagesource import FORMATS, measure_image, read_image
from imagetok.images.pixels import MAX_PIXELS, MOST_PIXELS, to_unit
from imagetok.images.preprocessor import FILTERS, Box, Preprocessor, center_box, resize
from imagetok.images.rendering import grid_image, to_pil

# Names of the first version, for code that uses them.
picture_size = measure_image
read_picture = read_image

__all__ = [
    "FILTERS",
    "FORMATS",
    "MAX_PIXELS",
    "MOST_PIXELS",
    "Box",
    "Preprocessor",
    "center_box",
    "color_library",
    "grid_image",
    "measure_image",
    "picture_size",
    "read_image",
    "read_picture",
    "resize",
    "to_pil",
    "to_unit",
]
