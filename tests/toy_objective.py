"""A discriminator of two layers: the second learner of the tests."""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from imagetok.objectives import LearnerConfig, Objective, ObjectiveConfig
from imagetok.outputs import TokenizerOutput


def toy(**changes: Any) -> dict[str, Any]:
    """The discriminator's section of a recipe."""
    optimizer = {"lr": 1e-3, "betas": [0.5, 0.9], "epsilon": 1e-4}
    return {"type": "toy", "learner": {"optimizer": optimizer}, **changes}


class ToyDiscriminatorConfig(ObjectiveConfig):
    """What tells reconstructions from images, and what it tells the decoder."""

    type: Literal["toy"] = "toy"
    balance: Literal["last_layer"] | None = "last_layer"
    learner: LearnerConfig = LearnerConfig()

    def build(self, channels: int, image_size: tuple[int, int]) -> Objective:
        """Build the objective with fresh weights."""
        return ToyDiscriminator(channels, self)


class ToyDiscriminator(Objective):
    """A hinge loss on the mean of a map of logits."""

    def __init__(self, channels: int, config: ToyDiscriminatorConfig) -> None:
        super().__init__(config.weights, config.balance, config.learner)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 8, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 3, 1, 1)
        )

    def terms(self, output: TokenizerOutput, x: Tensor, step: int) -> dict[str, Tensor]:
        """The reconstructions should look like images."""
        return {"loss/adversarial": -self.layers(output.mean).mean()}

    def forward(self, output: TokenizerOutput, x: Tensor, step: int) -> dict[str, Tensor]:
        """Images should have logits over 1, reconstructions under -1."""
        real, fake = self.layers(x), self.layers(output.mean)
        return {"loss/discriminator": F.relu(1 - real).mean() + F.relu(1 + fake).mean()}
