"""A network that runs as compiled code, with its weights built in.

torch's inductor compiles the network for one shape of its input at a time. The code holds a copy of
the weights in the layout that the machine's convolutions want, and activations are joined to the
layers before them. Values differ from those of the network itself by rounding alone.

The copy is compared with the network's weights at each call, so that code never outlives a change
of them. Code is kept in inductor's cache on the disk, which several processes may use at once.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from imagetok.errors import CompilationError

logger = logging.getLogger(__name__)

MAX_SHAPES = 16
"""Most shapes that a network is compiled for; others run through the network itself."""


class CompiledNetwork:
    """Runs a network as compiled code; a copy or a pickle of it starts without code.

    Args:
        batch_size: Inputs of a full batch. Other numbers are filled up to the next power of two
            with copies of the last input, so that few shapes are compiled; None fills all up.
    """

    def __init__(self, batch_size: int | None = None) -> None:
        self._batch_size = batch_size
        self._frozen: nn.Module | None = None
        self._modules: list[tuple[nn.Module, bool]] = []
        self._code: Callable[[Tensor], Tensor] | None = None
        self._shapes: set[tuple[int, ...]] = set()
        self._is_full = False

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._batch_size,)

    @torch.no_grad()
    def __call__(self, network: nn.Module, x: Tensor) -> Tensor:
        """What `network(x)` gives, for x (B, C, H, W) on the network's device and in its dtype.

        Raises:
            CompilationError: The network cannot be compiled on this machine.
        """
        shape = (self._filled(len(x)), *x.shape[1:])
        if not self._is_current(network):
            self._freeze(network)
        if not len(x) or not self._has_room(shape):
            plain: Tensor = network(x)
            return plain
        padding = x[-1:].expand(shape[0] - len(x), *x.shape[1:])
        padded = torch.cat([x, padding]) if len(padding) else x
        return self._run(padded.contiguous(memory_format=_layout_of(x)))[: len(x)]

    def _filled(self, count: int) -> int:
        return count if count == self._batch_size else 1 << max(0, count - 1).bit_length()

    def _has_room(self, shape: tuple[int, ...]) -> bool:
        if shape in self._shapes:
            return True
        if len(self._shapes) < MAX_SHAPES:
            self._shapes.add(shape)
            return True
        if not self._is_full:
            logger.warning(
                "warning: a network is compiled for %d shapes already; further ones, such as %s, "
                "run uncompiled",
                MAX_SHAPES,
                shape,
            )
        self._is_full = True
        return False

    def _is_current(self, network: nn.Module) -> bool:
        """Whether the copy is one of this network as it is now."""
        if self._frozen is None:
            return False
        if _modules(network) != self._modules:  # modules are equal where they are the same
            return False
        ours, theirs = _tensors(self._frozen), _tensors(network)
        return len(ours) == len(theirs) and all(map(_is_same, ours, theirs))

    def _freeze(self, network: nn.Module) -> None:
        self._modules, self._shapes = _modules(network), set()
        self._frozen = copy.deepcopy(network).requires_grad_(False)
        # Every shape is compiled anew, and not for sizes that vary: torch takes that for a fault of
        # its caller's from the eighth shape on.
        self._code = torch.compile(  # type: ignore[call-overload]
            self._frozen, dynamic=False, recompile_limit=2 * MAX_SHAPES, isolate_recompiles=True
        )

    def _run(self, x: Tensor) -> Tensor:
        assert self._code is not None
        with _compiling():
            return self._code(x)


def check_compiler(device: torch.device) -> None:
    """Refuse early to compile where no compiler is installed.

    Raises:
        CompilationError: There is none for the device.
    """
    if device.type != "cpu":
        return  # a GPU's compiler comes with torch
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise CompilationError(
            "there is no C++ compiler to compile the networks with; install g++, or name another "
            "one by the environment variable CXX, or go on uncompiled"
        ) from None


@contextmanager
def _compiling() -> Iterator[None]:
    """A context in which code is compiled with frozen weights, and its faults are ours."""
    import torch._inductor.config as inductor
    from torch._dynamo.exc import TorchDynamoException

    try:
        # One thread compiles: a pool of processes would stay after it.
        with (
            inductor.patch(freezing=True, compile_threads=1),
            torch.inference_mode(mode=False),
            torch.no_grad(),
        ):
            yield
    except TorchDynamoException as error:
        reason = str(error).strip().splitlines()[0]
        raise CompilationError(
            f"the network cannot be compiled on this machine ({reason}); go on uncompiled"
        ) from error


def _modules(network: nn.Module) -> list[tuple[nn.Module, bool]]:
    return [(module, module.training) for module in network.modules()]


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


def _is_same(one: Tensor, other: Tensor) -> bool:
    kind = one.dtype == other.dtype and one.device == other.device
    return kind and one.shape == other.shape and torch.equal(one, other)


def _layout_of(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.ndim == 4 else torch.contiguous_format
