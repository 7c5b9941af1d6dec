"""Training: one loop for all systems."""

from imagetok.training.run import TrainResult, train

__all__ = ["TrainResult", "train"]
