"""The first objective of every run: the losses that the tokenizer itself yields."""

from __future__ import annotations

from torch import Tensor

from imagetok.objectives.objective import Objective
from imagetok.outputs import TokenizerOutput


class TokenizerTerms(Objective):
    """`loss/reconstruction`, `loss/kl`, `loss/commitment` and whatever else the tokenizer yields.

    Whatever their weights, they stay in the gradient: some parameters, such as those of a codebook
    that is learnt by its loss, are reached by a single term, and parameters without any gradient
    would have neither moments in a checkpoint nor a place in distributed training. The KL is the
    exception, as the reconstruction reaches whatever it reaches.
    """

    def unused_terms(self) -> set[str]:
        """See `Objective.unused_terms`."""
        return super().unused_terms() & {"loss/kl"}

    def terms(self, output: TokenizerOutput, x: Tensor, step: int) -> dict[str, Tensor]:
        """See `Objective.terms`."""
        return output.losses
