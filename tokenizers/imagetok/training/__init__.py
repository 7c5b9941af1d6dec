"""Training: one loop for all systems."""

from imagetok.training.pushing import PushPlan
from imagetok.training.run import TrainResult, train

__all__ = ["PushPlan", "TrainResult", "train"]
