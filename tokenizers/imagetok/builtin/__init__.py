"""The built-in datasets: drawn shapes with captions, and handwritten digits; no download."""

from imagetok.builtin.check import CheckRate, ObjectCheck, check_rate, check_scene
from imagetok.builtin.digits import digits_dataset
from imagetok.builtin.drawing import render
from imagetok.builtin.scenes import Background, Scene, SceneObject, caption, scene
from imagetok.builtin.shapes import DRAWING_VERSION, first_index, shapes_dataset

__all__ = [
    "DRAWING_VERSION",
    "Background",
    "CheckRate",
    "ObjectCheck",
    "Scene",
    "SceneObject",
    "caption",
    "check_rate",
    "check_scene",
    "digits_dataset",
    "first_index",
    "render",
    "scene",
    "shapes_dataset",
]
