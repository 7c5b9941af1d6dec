"""From a tokenizer's config to its parts: each part builds itself, and widths are passed on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from imagetok.bottlenecks import Bottleneck
from imagetok.images import Preprocessor
from imagetok.likelihoods import Likelihood
from imagetok.tokenizer_config import TokenizerConfig


@dataclass(frozen=True)
class Parts:
    """What an `ImageTokenizer` is made of."""

    preprocessor: Preprocessor
    encoder: nn.Module
    bottleneck: Bottleneck
    decoder: nn.Module
    likelihood: Likelihood


def build_parts(config: TokenizerConfig) -> Parts:
    """Build the parts that a config describes, with fresh weights from torch's generator."""
    size, channels = config.image_size, config.channels
    encoder = config.encoder.build(size, channels, config.bottleneck.encoder_channels)
    bottleneck = config.bottleneck.build(encoder.out_channels)
    likelihood = config.likelihood.build()
    out_channels = likelihood.channel_multiple * channels
    decoder = config.decoder.build(size, bottleneck.latent_dim, out_channels)
    return Parts(
        preprocessor=Preprocessor(
            size,
            channels=channels,
            resize=config.preprocessing.resize,
            background=config.preprocessing.background,
            color_profile=config.preprocessing.color_profile,
        ),
        encoder=cast(nn.Module, encoder),
        bottleneck=bottleneck,
        decoder=cast(nn.Module, decoder),
        likelihood=likelihood,
    )


@contextmanager
def without_values() -> Iterator[None]:
    """Within the context, what is built has shapes and types but no values, and takes no memory."""
    with torch.device("meta"), _WithoutDraws():
        yield


class _WithoutDraws(TorchFunctionMode):
    """Leaves out what only fills weights: torch would import its compiler, which takes a second."""

    _DRAWS = (torch.rand, torch.randn)
    _FILLS = (torch.Tensor.normal_, functional.normalize)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """What torch makes of it; a fill leaves its tensor as it is."""
        given = kwargs or {}
        if func in self._DRAWS:
            return torch.empty(*args, **{k: v for k, v in given.items() if k != "generator"})
        if func in self._FILLS or getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else given["tensor"]
        return func(*args, **given)
