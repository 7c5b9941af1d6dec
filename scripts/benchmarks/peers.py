"""The published packages that imagetok is compared with, and our weights in their networks.

They are installed by `pip install -e ".[bench]"` and `pip install --no-deps dalle-pytorch DALL-E`:
what the latter two ask for besides, torchvision and a tokenizer that needs a compiler among it,
takes no part in what is measured, and stand-ins keep their imports from failing.
"""

from __future__ import annotations

import sys
from typing import Any
from unittest.mock import MagicMock

DALLE_PYTORCH = ("dalle-pytorch", "DALL-E")
DALL_E = ("DALL-E", "attrs")
VECTOR_QUANTIZE = ("vector-quantize-pytorch",)

_STAND_INS = (
    *("axial_positional_embedding", "rotary_embedding_torch", "omegaconf", "pkg_resources"),
    *("requests", "taming", "taming.models", "taming.models.vqgan", "torchvision"),
)
"""Modules that the peers import and that what is measured does not call."""


def _stand_in() -> None:
    for name in _STAND_INS:
        sys.modules.setdefault(name, MagicMock())


def dalle_pytorch(**sizes: Any) -> Any:
    """A DiscreteVAE of dalle-pytorch."""
    _stand_in()
    from dalle_pytorch import DiscreteVAE

    return DiscreteVAE(**sizes)


def dall_e() -> tuple[Any, Any, Any, Any]:
    """The DALL-E package in the sizes that OpenAI published.

    Returns:
        Encoder, decoder, and the maps of pixels before the encoder and after the decoder.
    """
    _stand_in()
    from dall_e import Decoder, Encoder, map_pixels, unmap_pixels

    return Encoder(), Decoder(), map_pixels, unmap_pixels


def vector_quantize(**options: Any) -> Any:
    """A VectorQuantize of vector-quantize-pytorch that takes (B, C, h, w)."""
    from vector_quantize_pytorch import VectorQuantize

    return VectorQuantize(accept_image_fmap=True, **options)
