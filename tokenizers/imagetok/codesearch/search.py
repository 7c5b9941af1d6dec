"""The code search, and which backend does it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch
from torch import Tensor

from imagetok.codesearch.blocks import search_in_blocks
from imagetok.codesearch.kernel import Kernel, build_kernel
from imagetok.errors import InvalidValueError, KernelError

logger = logging.getLogger(__name__)

BACKENDS = NATIVE, TORCH = "native", "torch"
VARIABLE = "IMAGETOK_BACKEND"
"""Environment variable by which a user chooses the backend."""

_chosen: ContextVar[str | None] = ContextVar("search_backend", default=None)


@torch.no_grad()
def nearest_code(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the code nearest to each vector.

    Args:
        vectors: Float tensor (N, D).
        codebook: Float tensor (K, D).

    Returns:
        int64 tensor (N,) in [0, K).
    """
    return _search(vectors, codebook, None)


@torch.no_grad()
def argmax_linear(features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Index of the largest output of a linear map.

    Args:
        features: Float tensor (N, C).
        weight: Float tensor (K, C).
        bias: Float tensor (K,), or None for zeros.

    Returns:
        int64 tensor (N,) in [0, K).
    """
    return _search(features, weight, weight.new_zeros(len(weight)) if bias is None else bias)


def search_backend(device: torch.device | str = "cpu") -> str:
    """The backend of searches on a device: `native` or `torch`.

    It compiles the kernel if that has not been done on this machine.

    Raises:
        InvalidValueError: IMAGETOK_BACKEND names no backend, or one that this machine cannot have.
    """
    return TORCH if _kernel_for(torch.device(device)) is None else NATIVE


def backend_in_environment() -> str | None:
    """The backend that IMAGETOK_BACKEND names; None where it is unset.

    Raises:
        InvalidValueError: It names none.
    """
    name = os.environ.get(VARIABLE)
    if name not in (None, "", *BACKENDS):
        raise InvalidValueError(
            f"the environment variable {VARIABLE} is '{name}'; set it to one of "
            f"{', '.join(BACKENDS)}, or unset it"
        )
    return name or None


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Search by a backend in the context, whatever the environment says.

    Args:
        name: `torch`; `native` where it can be had; None changes nothing.
    """
    token = _chosen.set(name if name is not None else _chosen.get())
    try:
        yield
    finally:
        _chosen.reset(token)


def _search(rows: Tensor, table: Tensor, biases: Tensor | None) -> Tensor:
    if rows.shape[1:] != table.shape[1:] or (biases is not None and len(biases) != len(table)):
        shapes = [tuple(each.shape) for each in (rows, table, biases) if each is not None]
        raise InvalidValueError(f"these shapes do not fit together: {shapes}")
    kernel = _kernel_for(rows.device)
    if kernel is None or torch.float64 in (rows.dtype, table.dtype) or not table.numel():
        return search_in_blocks(rows, table, biases)
    return kernel.search(rows, table, biases)


def _kernel_for(device: torch.device) -> Kernel | None:
    """The kernel, where searches on a device go by it."""
    forced = backend_in_environment()
    name = _chosen.get() or forced
    if device.type != "cpu" or name == TORCH:
        return None
    kernel, reason = _kernel()
    if kernel is None and name is not None:
        raise InvalidValueError(
            f"the search backend '{NATIVE}' is asked for, but {reason}; install a C++ compiler, or "
            f"set {VARIABLE}={TORCH}"
        )
    return kernel


@cache
def _kernel() -> tuple[Kernel | None, str]:
    """The kernel, or None and why there is none, which is logged once."""
    try:
        return build_kernel(), ""
    except KernelError as error:
        logger.warning("warning: codes are searched by torch, which is slower: %s", error)
        return None, str(error)
