"""The parts of a tokenizer as one module: the training pass, and inference a batch at a time.

```
 image -> Preprocessor -> x (B, C, H, W) -> encoder -> z -> bottleneck -> z_q -> decoder -> params
                                                               |                             |
                                                         ids (B, h, w)     likelihood: score, x_hat
```

Each network gets its input in its own dtype; at inference autocast is off, and an output that is
not finite is refused. What users call stands in `imagetok.tokenizer`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import chain
from typing import Any, Literal, Self, cast, get_args

import torch
from PIL import Image
from torch import Tensor, nn

from imagetok.bottlenecks import Bottleneck, ParameterGroup
from imagetok.config import printable
from imagetok.errors import InvalidValueError
from imagetok.ids import read_grid
from imagetok.images import Preprocessor, to_pil
from imagetok.likelihoods import Likelihood
from imagetok.modelfile import tensors_digest
from imagetok.networks import MlpEncoder
from imagetok.outputs import TokenizerOutput
from imagetok.tokenizer_config import TokenizerConfig

BATCH_SIZE = 32
"""Images encoded or decoded at once; longer inputs are worked through in pieces of this many."""

Output = Literal["pil", "pt"]
Pictures = Image.Image | list[Image.Image]


class Codec(nn.Module):
    """Encoder, bottleneck, decoder and likelihood as one module.

    Args:
        preprocessor: Brings pictures to the encoder's size.
        encoder: Network with an attribute `factors`.
        bottleneck: What lies between the networks.
        decoder: Network that yields the likelihood's parameters.
        likelihood: Scores pixels and yields the reconstruction.
        config: What the parts were built from.
    """

    encoder: nn.Module
    bottleneck: Bottleneck
    decoder: nn.Module

    def __init__(
        self,
        preprocessor: Preprocessor,
        encoder: nn.Module,
        bottleneck: Bottleneck,
        decoder: nn.Module,
        likelihood: Likelihood,
        config: TokenizerConfig | None = None,
    ) -> None:
        super().__init__()
        self.preprocessor = preprocessor
        self.encoder, self.bottleneck, self.decoder = encoder, bottleneck, decoder
        self.likelihood = likelihood
        self.config = config
        self._narrowed: tuple[str, str] | None = None  # digest of narrow weights, fingerprint

    def forward(
        self,
        x: Tensor,
        values: Mapping[str, float] | None = None,
        keys: Tensor | None = None,
    ) -> TokenizerOutput:
        """The training pass; changes no state.

        Args:
            x: Pixels, float (B, C, H, W) in [0, 1].
            values: This step's schedule values, such as `temperature`.
            keys: int64 (B,), the key of each sample's noise; None draws torch's ordinary noise.
        """
        z = self.encoder(x.to(self._dtype_of(self.encoder)))
        inner = self.bottleneck(z, values, keys)
        params = self.decoder(inner.z_q.to(self._dtype_of(self.decoder)))
        nats = {**inner.losses, "loss/reconstruction": self.likelihood.nll(params, x).mean()}
        for name in ("loss/reconstruction", "loss/kl"):
            if name in nats:
                nats[name] = nats[name] / x[0].numel()
        mean = self.likelihood.mean(params)
        return TokenizerOutput(
            mean=mean,
            x_hat=mean.detach().clamp(0, 1),
            ids=inner.ids,
            losses=nats,
            metrics=inner.metrics,
            statistics=inner.statistics,
        )

    def parameter_groups(self) -> dict[str, ParameterGroup]:
        """How parameters are learnt, by name, where it is not by the defaults."""
        groups = self.bottleneck.parameter_groups()
        return {f"bottleneck.{name}": group for name, group in groups.items()}

    @property
    def fingerprint(self) -> str:
        """sha256 of all that decides ids or latents.

        The tensors of encoder and bottleneck, and `TokenizerConfig.identity`. A decoder that is
        trained further keeps it; so does a change of device, and of dtype until the weights that it
        rounded are taken for float32 ones again.
        """
        weights = self._deciding_weights()
        if self._narrowed and self._narrowed[0] == weights and self.dtype.itemsize < 4:
            return self._narrowed[1]
        decides = self.config.identity() if self.config else asdict(self.preprocessor)
        text = f"{weights}{json.dumps(decides, sort_keys=True)}"
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._a_weight().device

    @property
    def dtype(self) -> torch.dtype:
        """Of the two networks; bottleneck and likelihood stay in float32 or better."""
        return self._a_weight().dtype

    @property
    def _factors(self) -> tuple[int, int]:
        return cast(tuple[int, int], self.encoder.factors)

    def _a_weight(self) -> Tensor:
        """A weight of the networks; an encoder, such as a reshape, may have none."""
        weights = chain(self.encoder.parameters(), self.decoder.parameters())
        return next(weights, torch.empty(0, dtype=torch.float32, device="cpu"))

    def _dtype_of(self, network: nn.Module) -> torch.dtype:
        weight = next(network.parameters(), None)
        return self.dtype if weight is None else weight.dtype

    def _check_weights(self) -> None:
        if self.device.type == "meta":
            raise InvalidValueError(
                "this tokenizer is on the meta device, where weights have no values; load it with "
                "from_pretrained, or keep a copy before moving it"
            )

    def _deciding_weights(self) -> str:
        """Digest of the weights of encoder and bottleneck as they are, in float32."""
        self._check_weights()
        return tensors_digest(
            {
                name: tensor.float() if tensor.is_floating_point() else tensor
                for name, tensor in self.state_dict().items()
                if name.startswith(("encoder.", "bottleneck."))
            }
        )

    def _grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] // self._factors[0], size[1] // self._factors[1]

    def _check_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        found = read_grid(grid)
        if isinstance(self.encoder, MlpEncoder) and found != (1, 1):
            raise InvalidValueError(
                f"this decoder makes images of {self.preprocessor.image_size} only, from a grid of "
                f"(1, 1); got a grid of {found}"
            )
        return found

    def _map_latents(self, images: Any, function: Callable[[Tensor], Tensor]) -> Tensor:
        result, single = self._latents(images, function)
        return result[0] if single else result

    @torch.no_grad()
    def _latents(self, images: Any, function: Callable[[Tensor], Tensor]) -> tuple[Tensor, bool]:
        """Apply a function to the encoder's output of images, piece by piece."""
        self._check_weights()
        batches, single = self.preprocessor.batches(images, self._factors, BATCH_SIZE)
        pieces = []
        for x in batches:
            self._check_grid(self._grid_of((x.shape[2], x.shape[3])))
            with torch.autocast(self.device.type, enabled=False):
                z = self.encoder(x.to(self.device, self._dtype_of(self.encoder)))
                _check_finite(z, "encoder")
                pieces.append(function(z))
        return torch.cat(pieces), single

    @torch.no_grad()
    def _show(
        self,
        batch: Tensor,
        single: bool,
        output: Output,
        lookup: Callable[[Tensor], Tensor] = lambda z_q: z_q,
    ) -> Pictures | Tensor:
        """Decode a batch of latents, or of what `lookup` makes latents of, piece by piece."""
        if not isinstance(output, str) or output not in get_args(Output):
            found = printable(repr(output))
            raise InvalidValueError(f"unknown output {found}; choose one of: pil, pt")
        self._check_weights()
        pieces, dtype = [], self._dtype_of(self.decoder)
        for part in torch.split(batch.to(self.device), BATCH_SIZE):
            with torch.autocast(self.device.type, enabled=False):
                params = self.decoder(lookup(part).to(dtype))
                _check_finite(params, "decoder")
                pieces.append(self.likelihood.mean(params).clamp(0, 1))
        images = torch.cat(pieces)
        images = images[0] if single else images
        return images if output == "pt" else to_pil(images)

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Self:
        # Narrowing the networks is a numeric setting, not another tokenizer: the fingerprint is
        # taken before it, and kept for as long as the weights are what narrowing made of them.
        narrow = self.dtype.itemsize < 4 or self._narrows(fn)
        before = self.fingerprint if narrow and self.device.type != "meta" else None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if before is not None and self.dtype.itemsize < 4 and self.device.type != "meta":
            self._narrowed = (self._deciding_weights(), before)
        return self

    def _narrows(self, fn: Callable[[Any], Any]) -> bool:
        probe: Tensor = fn(self._a_weight().detach()[:0])
        return probe.dtype.itemsize < 4


def _check_finite(values: Tensor, network: str) -> None:
    if torch.isfinite(values).all():
        return
    remedy = "its weights are damaged, or its training has diverged"
    if values.dtype == torch.float16:
        remedy = "load the tokenizer with dtype='float32' or 'bfloat16'"
    raise InvalidValueError(f"the {network}'s output is not finite in {values.dtype}; {remedy}")
