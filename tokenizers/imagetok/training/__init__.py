"""Training: one loop for all systems."""

from imagetok.training.loop import TrainResult, train

__all__ = ["TrainResult", "train"]
