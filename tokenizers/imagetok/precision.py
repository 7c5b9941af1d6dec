"""Full precision: arithmetic in float32 or better, whatever autocast or a module's dtype says.

Codes differ by little, and exponentials overflow half-precision types, so the bottleneck and the
likelihood compute in `promote_types(dtype, float32)` and are never narrowed; only the two networks
are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn


def promote(tensor: Tensor) -> Tensor:
    """The tensor in float32; unchanged if its dtype is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def no_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """A context with autocast off on the tensor's device; the meta device has no autocast."""
    return nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)


@contextmanager
def full_precision(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the tensor in float32 or better, with autocast off on its device in the context."""
    with no_autocast(tensor):
        yield promote(tensor)


class FullPrecisionModule(nn.Module):
    """A module that `.half()` and `.to(dtype)` move but do not narrow; `.double()` widens it."""

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Self:
        def keep_wide(tensor: Tensor) -> Tensor:
            result: Tensor = fn(tensor)
            narrow = result.is_floating_point() and result.dtype.itemsize < 4
            return tensor.to(result.device) if narrow else result

        super()._apply(keep_wide, recurse)  # type: ignore[no-untyped-call]
        return self
