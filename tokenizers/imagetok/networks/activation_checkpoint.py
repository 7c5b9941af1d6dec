"""Gradient checkpointing: compute activations again in the backward pass instead of keeping them.

Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016, arXiv 1604.06174. The unit is a
residual block: its input is kept, what lies inside is computed a second time. Values and gradients
are the same bits, and the weights keep their names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class CheckpointedBlock(nn.Module, ABC):
    """A block that can forget its inner activations; subclasses implement `_forward`.

    Attributes:
        recomputes: Whether it does, where gradients are recorded. Set by `checkpoint_activations`.
    """

    recomputes = False

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, h, w) to (B, out_channels, h, w)."""
        if not self.recomputes:
            return self._forward(x)
        # Nothing in a network is random, so no generator's state has to be restored.
        out: Tensor = checkpoint(self._forward, x, use_reentrant=False, preserve_rng_state=False)
        return out

    @abstractmethod
    def _forward(self, x: Tensor) -> Tensor: ...


def checkpoint_activations(model: nn.Module) -> None:
    """Let all residual blocks of a model recompute their activations in the backward pass.

    The blocks are those of the conv and dalle networks; an mlp has none, and nothing changes.
    Without gradients, as at inference, nothing is kept and so nothing is recomputed.
    """
    for module in model.modules():
        if isinstance(module, CheckpointedBlock):
            module.recomputes = True
