"""imagetok: train, ship and use image tokenizers for generative models.

    from imagetok import ImageTokenizer

    tok = ImageTokenizer.from_pretrained("folder")
    ids = tok.encode("photo.jpg")           # int64 (h, w) in [0, tok.codebook_size)
    image = tok.decode(ids)                 # PIL image

Names are imported when they are first used: `import imagetok` alone imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from imagetok._version import __version__
from imagetok.errors import ImagetokError

if TYPE_CHECKING:
    from imagetok.bottlenecks import GaussianPosterior
    from imagetok.config import RunConfig, TokenizerConfig, load_recipe
    from imagetok.data import open_images
    from imagetok.tokenizer import ImageTokenizer, TokenizerOutput
    from imagetok.training import TrainResult, train

_HOMES = {
    "GaussianPosterior": "imagetok.bottlenecks",
    "ImageTokenizer": "imagetok.tokenizer",
    "RunConfig": "imagetok.config",
    "TokenizerConfig": "imagetok.config",
    "TokenizerOutput": "imagetok.tokenizer",
    "TrainResult": "imagetok.training",
    "load_recipe": "imagetok.config",
    "open_images": "imagetok.data",
    "train": "imagetok.training",
}

__all__ = [
    "GaussianPosterior",
    "ImageTokenizer",
    "ImagetokError",
    "RunConfig",
    "TokenizerConfig",
    "TokenizerOutput",
    "TrainResult",
    "__version__",
    "load_recipe",
    "open_images",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'imagetok' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
