"""The first objective of every run: the losses that the tokenizer itself yields."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from imagetok.objectives.objective import Objective
from imagetok.outputs import TokenizerOutput


class TokenizerTerms(Objective):
    """`loss/reconstruction`, `loss/kl`, `loss/commitment` and whatever else the tokenizer yields.

    All of them stay in the gradient whatever their weights: some parameters, such as those of a
    codebook that is learnt by its loss, are reached by a single term, and parameters without any
    gradient would have neither moments in a checkpoint nor a place in distributed training.
    """

    keeps_all_terms: ClassVar[bool] = True

    def terms(self, output: TokenizerOutput, x: Tensor, step: int) -> dict[str, Tensor]:
        """See `Objective.terms`."""
        return output.losses
