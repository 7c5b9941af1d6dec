"""Training: one loop for all systems."""

from imagetok.training.loop import TrainResult, train
from imagetok.training.pusher import PushPlan

__all__ = ["PushPlan", "TrainResult", "train"]
